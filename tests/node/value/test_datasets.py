"""What datasets are worth: by what their updates did, never by what was declared of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_node.value import datasets, shapley, valuation
from dfl_node.value.valuation import LEAVE_ONE_OUT, SHAPLEY
from tests.node.value.games import Value, additive, averaging, saturating

Uses = list[frozenset[int]]


def worths(uses: Uses, value: Value, method: str = SHAPLEY) -> dict[int, int]:
    asked: list[int] = []

    def answer(coalition: int) -> int:
        asked.append(coalition)
        return value(coalition)

    found = valuation.drive(datasets.worths(uses, method, 1), answer)
    assert len(asked) == len(set(asked)) <= datasets.most_evaluations(uses, method)
    assert 0 not in asked
    return found


def test_one_dataset_an_update_is_worth_its_update() -> None:
    value = averaging(4, 2)
    uses = [frozenset({asset}) for asset in (70, 7, 9, 8)]
    exact = shapley.shapley([value(coalition) for coalition in range(16)])
    assert worths(uses, value) == {
        asset: round(worth) for asset, worth in zip((70, 7, 9, 8), exact, strict=True)
    }


def test_a_dataset_of_many_updates_is_worth_what_they_are_together() -> None:
    value = additive(5, 3)
    uses = [frozenset({asset}) for asset in (1, 2, 1, 2, 1)]
    assert worths(uses, value) == {1: value(0b10101), 2: value(0b01010)}


def test_datasets_used_together_share_and_both_are_needed() -> None:
    value = additive(3, 3)
    found = worths([frozenset({1, 2}), frozenset({2}), frozenset({1, 2, 3})], value)
    first, second, third = (value(1 << update) for update in range(3))
    expected = {1: first / 2 + third / 3, 2: first / 2 + second + third / 3, 3: third / 3}
    assert found == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("game", [averaging, saturating], ids=lambda game: game.__name__)
def test_many_names_for_one_set_of_rows_earn_what_one_does(game: Callable[[int, int], Value]) -> None:
    """Three updates, of which the second used dataset 5, and then 5 to 9."""
    value = game(3, 8)
    once = worths([frozenset({1}), frozenset({5}), frozenset({2})], value)
    split = worths([frozenset({1}), frozenset(range(5, 10)), frozenset({2})], value)
    assert (split[1], split[2]) == (once[1], once[2])
    assert sum(split[asset] for asset in range(5, 10)) == once[5]
    assert max(split[asset] for asset in range(5, 10)) - min(split[asset] for asset in range(5, 10)) <= 1


def test_undeclared_data_keeps_its_worth_and_no_dataset_gets_it() -> None:
    value = additive(3, 5)
    assert worths([frozenset(), frozenset({4}), frozenset()], value) == {4: value(0b010)}
    assert worths([frozenset(), frozenset()], value) == {}
    assert worths([], value) == {}


def test_a_useless_dataset_is_worth_nothing_however_often_it_is_declared() -> None:
    value = averaging(4, 1)
    blind = [frozenset({1}), frozenset({2}), frozenset({9}), frozenset({9})]
    assert worths(blind, lambda coalition: value(coalition & 0b0011))[9] == 0


@given(st.lists(st.frozensets(st.integers(1, 6), max_size=3), min_size=1, max_size=7), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_efficiency(uses: Uses, seed: int) -> None:
    """All datasets, and the undeclared data, add up to what all updates are worth."""
    value = averaging(len(uses), seed)
    everything = [own or frozenset({1000}) for own in uses]  # gives the undeclared a name
    total = sum(worths(everything, value).values())
    assert abs(total - value((1 << len(uses)) - 1)) <= len(datasets.players(everything)) / 2
    named = worths(everything, value)
    named.pop(1000, None)
    assert worths(uses, value) == named


@given(st.lists(st.frozensets(st.integers(1, 6), max_size=3), min_size=1, max_size=7), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_where_worths_add_up_no_coalition_has_to_be_measured(uses: Uses, seed: int) -> None:
    value = additive(len(uses), seed)
    own = [value(1 << update) for update in range(len(uses))]
    found = datasets.parted(own, uses)
    assert found == pytest.approx(worths(uses, value), abs=len(uses))
    assert sum(found.values()) == sum(worth for worth, used in zip(own, uses, strict=True) if used)


def test_the_parts_of_a_piece_are_whole() -> None:
    uses = [frozenset({2, 1, 3}), frozenset({3}), frozenset()]
    assert datasets.players(uses) == ((1, 2), (3,))
    assert datasets.parted([5, 7, 11], uses) == {1: 2, 2: 1, 3: 2 + 7}
    assert datasets.parted([], []) == {}


def test_many_datasets_are_estimated_and_few_evaluations_do() -> None:
    uses = [frozenset({asset, asset + 1}) for asset in range(30)]
    value = averaging(30, 1)
    found = worths(uses, value)
    assert list(found) == list(range(31))
    assert abs(sum(found.values()) - value((1 << 30) - 1)) <= 31 / 2


def test_leave_one_out() -> None:
    value = averaging(3, 6)
    uses = [frozenset({1}), frozenset({1, 2}), frozenset()]
    everyone = value(0b111)
    assert worths(uses, value, LEAVE_ONE_OUT) == {1: everyone - value(0b100), 2: everyone - value(0b101)}
