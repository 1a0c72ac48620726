"""Estimated Shapley values: against exact ones, within their error bars, within the evaluations promised."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_node.value import gtg, shapley, valuation
from dfl_node.value.gtg import Estimate
from tests.node.value.games import Value, additive, averaging, members, saturating

KINDS = {
    "averaging": averaging,
    "with a hostile one": lambda n, seed: averaging(n, seed, hostile=1),
    "saturating": saturating,
    "additive": additive,
}


def estimate(n: int, value: Value, seed: int = 1) -> Estimate:
    return valuation.drive(gtg.estimate(n, seed), value)


def exact(n: int, value: Value) -> list[float]:
    return [float(worth) for worth in shapley.shapley([value(mask) for mask in range(1 << n)])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [8, 9, 10])
def test_estimates_are_within_their_error_bars(n: int, kind: str) -> None:
    """19 of 20 within two and a half, all within five; the bars are no wider than the worths."""
    apart = []
    for seed in range(4):
        value = KINDS[kind](n, seed)
        truth, found = exact(n, value), estimate(n, value, seed)
        apart += [
            abs(worth - own) / (error + 1)
            for worth, own, error in zip(found.worths, truth, found.errors, strict=True)
        ]
        assert sum(found.errors) <= 0.5 * sum(map(abs, truth))
    apart.sort()
    assert apart[len(apart) * 19 // 20 - 1] <= 2.5
    assert apart[-1] <= 5


@given(st.sampled_from(sorted(KINDS)), st.integers(9, 40), st.integers(0, 2**256 - 1))
@settings(max_examples=30, deadline=None)
def test_efficiency_within_the_evaluations_promised(kind: str, n: int, seed: int) -> None:
    asked: list[int] = []
    value = KINDS[kind](n, seed % 1000)

    def answer(coalition: int) -> int:
        asked.append(coalition)
        return value(coalition)

    found = valuation.drive(gtg.estimate(n, seed), answer)
    assert abs(sum(found.worths) - value((1 << n) - 1)) <= n / 2 or not any(found.worths)
    assert len(asked) == len(set(asked)) == found.evaluations <= gtg.most_evaluations(n)
    assert all(0 < coalition < 1 << n for coalition in asked)


@given(st.integers(9, 12), st.integers(0, 10**6), st.integers(0, 8))
@settings(max_examples=20, deadline=None)
def test_null_player(n: int, seed: int, null: int) -> None:
    """Who changes no coalition gets nothing."""
    value = saturating(n, seed)
    assert estimate(n, lambda coalition: value(coalition & ~(1 << null)), seed).worths[null] == 0


@given(st.integers(9, 12), st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_symmetry(n: int, seed: int) -> None:
    """Players 0 and 1 made interchangeable get the same, within their error bars."""
    value = averaging(n, seed)

    def even(coalition: int) -> int:
        return value(coalition ^ 0b11) if coalition & 0b11 == 0b10 else value(coalition)

    found = estimate(n, even, seed)
    assert abs(found.worths[0] - found.worths[1]) <= 4 * (found.errors[0] + found.errors[1] + 1)


def test_who_adds_the_same_everywhere_is_worth_exactly_that() -> None:
    value = additive(12, 3)
    found = estimate(12, value)
    assert found.worths == tuple(value(1 << player) for player in range(12))
    assert set(found.errors) == {0}


def test_same_values_and_seed_give_the_same_integers() -> None:
    value = averaging(11, 5, hostile=2)
    assert estimate(11, value, 7) == estimate(11, value, 7)
    assert estimate(11, value, 7).worths != estimate(11, value, 8).worths


def test_golden() -> None:
    """Other nodes, other versions: the same draws and the same rounding."""
    found = estimate(9, lambda coalition: 10**9 * len(members(coalition)) ** 2 + coalition, 2**255 + 19)
    assert found == Estimate(
        (
            9481006867,
            8606769424,
            9360447095,
            9197384489,
            8935332022,
            8635069394,
            8263584664,
            9526823251,
            8993583304,
        ),
        (360674749, 313024416, 339134232, 329567670, 345457504, 366404826, 339629761, 342997602, 341762693),
        271,
    )


def test_a_round_that_changed_nothing_is_not_looked_into() -> None:
    assert estimate(20, lambda coalition: coalition % gtg.UNCHANGED) == Estimate((0,) * 20, (0,) * 20, 1)


def test_an_order_is_cut_when_nothing_is_left_to_add() -> None:
    """Three suffice for everything: nobody looks at larger coalitions, but for the first and the last."""
    asked = set()

    def value(coalition: int) -> int:
        asked.add(coalition)
        return 10**9 * min(3, coalition.bit_count())

    found = estimate(16, value)
    assert {len(members(coalition)) for coalition in asked} <= {1, 2, 3, 4, 15, 16}
    assert max(found.worths) - min(found.worths) <= sum(found.errors[:2]) * 4 + 1


@pytest.mark.parametrize("n", [33, 100, 600])
def test_many_updates_are_valued_in_bounds(n: int) -> None:
    """Whoever does harm is told from who does good, at a few evaluations an update."""
    value = averaging(n, 2, hostile=1)
    found = estimate(n, value)
    assert found.evaluations <= gtg.most_evaluations(n) <= 1400 + 12 * n
    assert found.worths[0] == min(found.worths) < 0
    assert abs(sum(found.worths) - value((1 << n) - 1)) <= n / 2


@pytest.mark.parametrize("seed", [-1, 2**256])
def test_seeds_have_32_bytes(seed: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        estimate(9, lambda coalition: coalition << 20, seed)
