"""What a panel says together: twin of contracts/libraries/WeightedMedian.sol and Outliers.sol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dfl_ledger.records import REFUSED

TOLERANCE_ABS = 1_000_000  # in 1e-9 of loss: what any score may differ by
TOLERANCE_DIV = 4  # the part of the median that a score may differ by


class Vote(NamedTuple):
    """A seat's score. They sort by score, then by seat."""

    score: int
    seat: int
    weight: int  # wei at stake


class Medians(NamedTuple):
    """Alike unless half of the weight says one thing and half another."""

    lower: int  # what is paid for
    upper: int  # negative if more than half of the weight is

    def are_beyond(self, score: int) -> bool:
        """True if a score is an outlier of both: more than half of the weight says something else."""
        return is_outlier(score, self.lower) and is_outlier(score, self.upper)


def weighted_medians(votes: Iterable[Vote]) -> Medians:
    """The stake-weighted medians. The lower one: in rising order, the first score at which twice the weight
    so far reaches the weight of all; the upper one: the same in falling order. 0 if there are no votes.

    Less than half of the weight cannot move either beyond the scores of the rest, half of it can move one of
    the two.
    """
    rising = sorted(votes)
    return Medians(_middle(rising), _middle(rising[::-1]))


def weighted_median(votes: Iterable[Vote]) -> int:
    """The lower one."""
    return weighted_medians(votes).lower


def _middle(ordered: Sequence[Vote]) -> int:
    total = sum(vote.weight for vote in ordered)
    so_far = 0
    for vote in ordered:
        so_far += vote.weight
        if 2 * so_far >= total:
            return vote.score
    return 0


def is_outlier(score: int, median: int) -> bool:
    """True for a score too far from the median, or if just one of the two is REFUSED.

    Honest evaluators measure on the same rows and differ by rounding only; the tolerance is far wider than
    that, and relative where scores are large.
    """
    if (score == REFUSED) != (median == REFUSED):
        return True
    return abs(score - median) > max(TOLERANCE_ABS, abs(median) // TOLERANCE_DIV)
