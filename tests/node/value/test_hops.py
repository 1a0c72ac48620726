"""What a hop is worth: fair to late hops, hard on lazy ones, whole numbers whatever comes."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_node.value.hops import MAX_ALL_PAIRS, worths
from dfl_node.value.shapley import MAX_LOSS, UNIT

LARGEST = int(MAX_LOSS) * UNIT
gains_of_a_lap = st.lists(st.integers(-LARGEST, LARGEST), min_size=1, max_size=12)


def in_order(gains: list[int]) -> tuple[int, ...]:
    """The worths of hops that each built on the one before."""
    return worths(gains, range(len(gains)))


def lap(n: int, decay: float, first: float = 0.8) -> list[int]:
    """The gains of n equally good hops."""
    return [round(first * UNIT * decay**k) for k in range(n)]


@given(st.integers(1, 8), st.floats(0.26, 1.0))
def test_hops_that_did_equally_well_earn_the_same_wherever_they_came(n: int, decay: float) -> None:
    found = in_order(lap(n, decay))
    assert max(found) - min(found) <= max(found) * 1e-3


def test_over_all_orders_the_same_skill_earns_the_same() -> None:
    """And a place earns the same as another, within a tenth: only skill makes a difference."""
    total = dict.fromkeys((1.0, 0.9, 0.8), 0)
    by_place = [0, 0, 0]
    for order in permutations(total):
        found = in_order([round(gain * own) for gain, own in zip(lap(3, 0.5), order, strict=True)])
        for place, (own, worth) in enumerate(zip(order, found, strict=True)):
            total[own] += worth
            by_place[place] += worth
    assert total[1.0] > total[0.9] > total[0.8]
    assert max(by_place) < 1.1 * min(by_place)


@given(gains_of_a_lap)
def test_a_hop_that_gained_nothing_earns_nothing_and_nobody_less(gains: list[int]) -> None:
    for gain, worth in zip(gains, in_order(gains), strict=True):
        assert worth == 0 if gain <= 0 else worth >= 0


@given(st.integers(2, 8), st.floats(0.4, 1.0), st.floats(1e-6, 0.05), st.data())
def test_a_lazy_hop_earns_less_than_a_quarter_of_an_honest_one(
    n: int, decay: float, effort: float, data: st.DataObject
) -> None:
    gains = lap(n, decay)
    lazy = data.draw(st.just(n - 1) | st.integers(0, n - 1), label="who is lazy")
    gains[lazy] = max(1, round(gains[lazy] * effort))
    found = list(in_order(gains))
    lazy_worth = found.pop(lazy)
    assert 4 * lazy_worth < min(found)


@given(st.integers(3, 8), st.floats(0.4, 1.0))
def test_one_lazy_hop_does_not_change_what_the_honest_earn_among_themselves(n: int, decay: float) -> None:
    honest = in_order([*lap(n, decay)[:-1], 10])[:-1]
    assert max(honest) <= 1.001 * min(honest)


@given(gains_of_a_lap)
def test_nobody_earns_more_than_twice_the_mean_gain(gains: list[int]) -> None:
    positive = [gain for gain in gains if gain > 0]
    assert all(worth * len(positive) <= 2 * sum(positive) + len(positive) for worth in in_order(gains))


@given(gains_of_a_lap, st.randoms(use_true_random=False))
def test_the_order_in_which_hops_are_listed_does_not_matter(gains: list[int], random: object) -> None:
    places = list(range(len(gains)))
    random.shuffle(places)  # type: ignore[attr-defined]
    found = in_order(gains)
    assert worths([gains[i] for i in places], places) == tuple(found[i] for i in places)


def test_one_hop_is_worth_its_gain() -> None:
    assert in_order([7 * UNIT]) == (7 * UNIT,)
    assert in_order([-1]) == in_order([0]) == (0,)
    assert worths([], []) == ()


def test_two_hops_share_by_gain_with_a_bounded_correction() -> None:
    assert in_order([8 * UNIT, 4 * UNIT]) == (6 * UNIT, 6 * UNIT)  # halved: as a steep lap would have it
    first, second = in_order([100 * UNIT, UNIT])  # a hundredth: that was not the order alone
    assert 0 < 4 * second < first
    first, second = in_order([4 * UNIT, 8 * UNIT])  # a rise is never put down to the order
    assert second == pytest.approx(2 * first)


def test_hops_of_the_same_depth_are_compared_as_they_are() -> None:
    """Two that built on the same model, the second because the first could not be had."""
    first, second, third = worths([8 * UNIT, 4 * UNIT, 3 * UNIT], [0, 0, 1])
    assert first == pytest.approx(2 * second)
    assert third > 0


@settings(max_examples=5, deadline=None)
@given(st.integers(MAX_ALL_PAIRS + 1, 2 * MAX_ALL_PAIRS), st.floats(0.99, 1.0))
def test_a_lap_of_hundreds_is_judged_alike(n: int, decay: float) -> None:
    found = in_order(lap(n, decay))
    assert max(found) - min(found) <= max(found) * 1e-3
