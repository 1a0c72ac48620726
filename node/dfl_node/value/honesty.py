"""What a panel of evaluators says, and who of it pays for what it said. Pure, in whole numbers.

A subject's score is the stake-weighted lower median of the seats that judged it: scores in rising order, the
first at which the stake so far is half of all or more. The contract (ScoreBoard) decides likewise.

    outlier    too far from the median of a subject. Honest evaluators have the same bytes and the same seed,
               so they differ by float32 alone: by 5e-8 of loss at most between the processors and thread
               counts tried (benchmarks/evaluators.py). Whoever sent a constant, an older round's scores, or a
               guess is off by more on some subject.
    planted    wrong about a contribution that the requester made itself, without anybody's knowing, and
               whose worth it knows: no majority makes that right. Who is caught so is struck from the panel
               first.

A median can be no better than the panel's majority: seats are drawn by stake, and `capture` tells how likely
a given share of it is to get half of a panel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from math import comb

REFUSED = -(2**63)  # not a valid piece: no score at all
TOLERANCE_ABS = 1_000_000
TOLERANCE_NUMERATOR, TOLERANCE_DENOMINATOR = 1, 4


class Offence(Enum):
    """Why a seat pays."""

    WITHHELD = "did not reveal its scores"
    PLANTED = "was wrong about a contribution of known worth"
    OUTLIER = "is too far from the others"


@dataclass(frozen=True, slots=True)
class Seat:
    """An evaluator on a panel. `scores` has one a subject, None for what it may not judge: its own work;
    it is None itself if nothing was revealed in time."""

    weight: int  # its stake
    scores: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Known:
    """A planted contribution whose worth is from `low` to `high`: REFUSED for one that is no model at all,
    below 0 for an honest step turned round and amplified."""

    subject: int
    low: int
    high: int

    def caught(self, scores: Sequence[int | None]) -> bool:
        own = scores[self.subject]
        return own is not None and not self.low <= own <= self.high


@dataclass(frozen=True, slots=True)
class Twins:
    """One step planted twice, under two names: near-duplicates share a worth, so it is the same for both but
    for what whole numbers leave over."""

    one: int
    other: int

    def caught(self, scores: Sequence[int | None]) -> bool:
        first, second = scores[self.one], scores[self.other]
        return first is not None and second is not None and abs(first - second) > 1


Planted = Known | Twins


@dataclass(frozen=True, slots=True)
class Judgement:
    medians: tuple[int, ...]  # one a subject; 0 where nobody judged
    offences: Mapping[int, Offence]  # by seat; one penalty each, however many subjects


def lower_median(scores: Sequence[tuple[int, int]]) -> int:
    """Of (score, weight), seats in order: ties go to the earlier one, which changes nothing. 0 of nothing."""
    total, so_far = sum(weight for _, weight in scores), 0
    for score, weight in sorted(scores, key=lambda own: own[0]):
        so_far += weight
        if 2 * so_far >= total:
            return score
    return 0


def tolerated(score: int, median: int) -> bool:
    """Whether a score may stand beside this median."""
    if REFUSED in (score, median):
        return score == median
    slack = abs(median) * TOLERANCE_NUMERATOR // TOLERANCE_DENOMINATOR
    return abs(score - median) <= max(TOLERANCE_ABS, slack)


def judge(seats: Sequence[Seat], subjects: int, planted: Sequence[Planted] = ()) -> Judgement:
    """The medians of a panel and who pays. Raises ValueError unless every vector has `subjects` scores."""
    if any(seat.scores is not None and len(seat.scores) != subjects for seat in seats):
        raise ValueError(f"a vector of scores has not {subjects} of them")
    offences: dict[int, Offence] = {}
    standing: dict[int, tuple[int | None, ...]] = {}
    for number, seat in enumerate(seats):
        if seat.scores is None:
            offences[number] = Offence.WITHHELD
        elif any(canary.caught(seat.scores) for canary in planted):
            offences[number] = Offence.PLANTED
        else:
            standing[number] = seat.scores

    def median(subject: int) -> int:
        return lower_median(
            [(own, seats[n].weight) for n, scores in standing.items() if (own := scores[subject]) is not None]
        )

    medians = tuple(median(subject) for subject in range(subjects))
    for number, scores in standing.items():
        pairs = zip(scores, medians, strict=True)
        if any(own is not None and not tolerated(own, middle) for own, middle in pairs):
            offences[number] = Offence.OUTLIER
    return Judgement(medians, offences)


def capture(evaluators: int, colluding: int, seats: int) -> Fraction:
    """How likely it is that `colluding` of so many evaluators with equal stake get half of the seats or more:
    then the median is theirs. Seats are drawn without replacement."""
    seats = min(seats, evaluators)
    ways = sum(
        comb(colluding, own) * comb(evaluators - colluding, seats - own)
        for own in range((seats + 1) // 2, seats + 1)
    )
    return Fraction(ways, comb(evaluators, seats))
