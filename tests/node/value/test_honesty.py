"""Medians, tolerance, plants: who pays is who was dishonest, and nobody else."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfl_node.value import honesty
from dfl_node.value.honesty import (
    REFUSED,
    TOLERANCE_ABS,
    Known,
    Offence,
    Seat,
    Twins,
    capture,
    judge,
    lower_median,
    tolerated,
)

scores = st.integers(-(10**15), 10**15) | st.just(REFUSED)
weights = st.integers(1, 10**30)
WORTHS = (50_000_000, -20_000_000, 300_000_000)


def seat(*own: int | None, weight: int = 1) -> Seat:
    return Seat(weight, own)


@given(st.lists(st.tuples(scores, weights), min_size=1, max_size=16))
def test_the_median_is_the_first_score_that_half_of_the_stake_does_not_exceed(
    votes: list[tuple[int, int]],
) -> None:
    found, total = lower_median(votes), sum(weight for _, weight in votes)
    assert 2 * sum(weight for score, weight in votes if score <= found) >= total
    assert 2 * sum(weight for score, weight in votes if score < found) < total
    assert found in {score for score, _ in votes}


@given(st.lists(st.tuples(scores, weights), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_seats_does_not_matter(votes: list[tuple[int, int]], chance: object) -> None:
    mixed = list(votes)
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    assert lower_median(mixed) == lower_median(votes)


@pytest.mark.parametrize(
    ("votes", "median"),
    [
        ([], 0),
        ([(7, 1)], 7),
        ([(7, 1), (9, 1)], 7),  # the lower of two
        ([(9, 1), (7, 1), (8, 1)], 8),
        ([(1, 1), (2, 1), (3, 2)], 2),  # half is enough
        ([(1, 1), (2, 1), (3, 3)], 3),
        ([(REFUSED, 2), (5, 1), (6, 1)], REFUSED),
    ],
)
def test_medians_by_stake(votes: list[tuple[int, int]], median: int) -> None:
    assert lower_median(votes) == median


@given(st.integers(-(10**15), 10**15))
def test_tolerance_at_its_borders(median: int) -> None:
    slack = max(TOLERANCE_ABS, abs(median) * honesty.TOLERANCE_NUMERATOR // honesty.TOLERANCE_DENOMINATOR)
    assert all(tolerated(median + apart, median) for apart in (0, slack, -slack))
    assert not any(tolerated(median + apart, median) for apart in (slack + 1, -slack - 1))
    assert not tolerated(REFUSED, median)
    assert not tolerated(median, REFUSED)
    assert tolerated(REFUSED, REFUSED)


def test_an_outlier_pays_once_and_the_others_nothing() -> None:
    found = judge([seat(*WORTHS), seat(*WORTHS), seat(0, 0, 0), seat(*WORTHS)], 3)
    assert found.medians == WORTHS
    assert found.offences == {2: Offence.OUTLIER}


def test_one_lie_among_many_true_scores_is_enough() -> None:
    lie = (*WORTHS[:2], WORTHS[2] * 2)
    assert judge([seat(*WORTHS), seat(*WORTHS), seat(*lie)], 3).offences == {2: Offence.OUTLIER}


def test_withheld_scores_have_no_vote() -> None:
    found = judge([seat(*WORTHS), Seat(100, None)], 3)
    assert found.medians == WORTHS
    assert found.offences == {1: Offence.WITHHELD}
    assert judge([Seat(1, None)], 2).medians == (0, 0)


def test_nobody_judges_its_own_work() -> None:
    found = judge([seat(None, 5, weight=100), seat(10**9, 5), seat(10**9, 5)], 2)
    assert found.medians == (10**9, 5)
    assert found.offences == {}


def test_a_refusal_that_only_one_side_sees_is_an_offence() -> None:
    seats = [seat(REFUSED, 5), seat(REFUSED, 5), seat(-3, 5)]
    assert judge(seats, 2).offences == {2: Offence.OUTLIER}


@given(st.sampled_from([(0, 0, 0), (7, 7, 7), (10**8, 10**8, -(10**6))]))
def test_a_plant_catches_even_a_majority_and_spares_who_was_right(agreed: tuple[int, int, int]) -> None:
    """Three of four agree on a lie: the planted contribution at place 1 does harm, and its owner knows it."""
    plant = Known(1, low=-60_000_000, high=-7_000_000)
    seats = [seat(*agreed), seat(*agreed), seat(*WORTHS), seat(*agreed)]
    assert judge(seats, 3).offences == {2: Offence.OUTLIER}  # without it, honesty would pay
    found = judge(seats, 3, [plant])
    assert found.medians == WORTHS
    assert found.offences == dict.fromkeys((0, 1, 3), Offence.PLANTED)


def test_planted_junk_must_be_refused() -> None:
    plant = Known(0, REFUSED, REFUSED)
    found = judge([seat(REFUSED, 1), seat(0, 1), seat(0, 1)], 2, [plant])
    assert found.offences == dict.fromkeys((1, 2), Offence.PLANTED)
    assert found.medians == (REFUSED, 1)


def test_planted_twins_are_worth_the_same_but_for_a_rest() -> None:
    twins = Twins(0, 2)
    seats = [seat(5, 9, 5), seat(6, 9, 5), seat(7, 9, 5), seat(5, 9, None)]
    assert judge(seats, 3, [twins]).offences == {2: Offence.PLANTED}


def test_vectors_have_a_score_for_every_subject() -> None:
    with pytest.raises(ValueError, match="not 3"):
        judge([seat(1, 2)], 3)


def test_how_often_a_share_of_the_evaluators_has_half_of_a_panel() -> None:
    assert capture(21, 7, 16) == 0
    assert capture(3, 1, 1) == Fraction(1, 3)
    assert capture(4, 2, 2) == 1 - Fraction(1, 6)  # one of two seats is half
    assert capture(100, 20, 16) < Fraction(1, 100) < capture(100, 33, 16) < Fraction(15, 100)
    assert capture(5, 5, 9) == 1
