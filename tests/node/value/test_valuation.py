"""Which method values how many, what it asks for, and what one valuation leaves another to ask."""

from __future__ import annotations

import pytest

from dfl_node.value import gtg, shapley, valuation
from dfl_node.value.valuation import GTG_SHAPLEY, LEAVE_ONE_OUT, SHAPLEY, Valuation
from tests.node.value.games import averaging


@pytest.mark.parametrize("n", [0, 1, 2, 5, 8, 9, 30])
@pytest.mark.parametrize("method", valuation.METHODS)
def test_what_is_asked_for_is_known_before(n: int, method: str) -> None:
    asked: list[int] = []
    value = averaging(n, 1)

    def answer(coalition: int) -> int:
        asked.append(coalition)
        return value(coalition)

    found = valuation.drive(valuation.value(n, method, 1), answer)
    assert len(asked) == len(set(asked)) == found.evaluations <= valuation.most_evaluations(n, method)
    assert len(found.worths) == len(found.errors) == n
    assert found.method == (GTG_SHAPLEY if method == SHAPLEY and n > 8 else method)
    assert any(found.errors) == (found.method == GTG_SHAPLEY)


def test_up_to_eight_are_valued_exactly() -> None:
    value = averaging(8, 4)
    found = valuation.drive(valuation.value(8, SHAPLEY, 1), value)
    exact = shapley.shapley([value(coalition) for coalition in range(256)])
    assert found == Valuation(tuple(round(worth) for worth in exact), (0,) * 8, SHAPLEY, 255)
    assert found == valuation.drive(valuation.value(8, SHAPLEY, 99), value)  # nothing is drawn
    assert valuation.most_evaluations(9, SHAPLEY) == gtg.most_evaluations(9)


def test_leave_one_out_stays_cheap() -> None:
    value = averaging(50, 4)
    found = valuation.drive(valuation.value(50, LEAVE_ONE_OUT, 1), value)
    everyone = (1 << 50) - 1
    assert found.evaluations == 51
    assert found.worths[7] == value(everyone) - value(everyone & ~(1 << 7))


def test_what_is_known_is_not_asked_again() -> None:
    value, known = averaging(4, 1), {0: 0}
    asked: list[int] = []

    def answer(coalition: int) -> int:
        asked.append(coalition)
        return value(coalition)

    first = valuation.drive(valuation.asked_once(valuation.value(4, SHAPLEY, 1), known), answer)
    again = valuation.drive(valuation.asked_once(valuation.value(4, SHAPLEY, 1), known), answer)
    assert first == again
    assert sorted(asked) == list(range(1, 16))
