"""What a panel says together: twin of contracts/libraries/WeightedMedian.sol and Outliers.sol."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dfl_ledger.records import REFUSED

TOLERANCE_ABS = 1_000_000  # in 1e-9 of loss: what any score may differ by
TOLERANCE_DIV = 4  # the part of the median that a score may differ by


class Vote(NamedTuple):
    """A seat's score. They sort by score, then by seat."""

    score: int
    seat: int
    weight: int  # wei at stake


def weighted_median(votes: Iterable[Vote]) -> int:
    """The stake-weighted lower median: in rising order, the first score at which twice the weight so far
    reaches the weight of all. 0 if there are no votes.

    Less than half of the weight cannot move it beyond the scores of the rest.
    """
    rising = sorted(votes)
    total = sum(vote.weight for vote in rising)
    so_far = 0
    for vote in rising:
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
