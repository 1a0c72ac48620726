"""Which updates are near-duplicates (`value.duplicates` has the rule), and the one update that a group is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from dfl_node.train import aggregation
from dfl_node.train.aggregation import Weighted
from dfl_node.train.aggregators import arrays
from dfl_node.train.aggregators.arrays import Array64, Vector
from dfl_node.value import duplicates

# Far above what sums of float64 differ by, whatever their order, and far below what matters.
_MARGIN = 1e-6


def groups(steps: Sequence[Vector]) -> tuple[int, ...]:
    """For each step the first one of its group: the same on every machine.

    Most pairs are nowhere near. A matrix product tells, in whatever order the processor adds up; only pairs
    near the threshold or above it are looked at in the fixed order of `arrays`.
    """
    rough = _cosines(steps)

    @cache
    def square(i: int) -> float:
        return arrays.dot(steps[i], steps[i])

    def are_alike(i: int, j: int) -> bool:
        if rough[i, j] < duplicates.THRESHOLD - _MARGIN:  # never for NaN, which a step of length 0 has
            return False
        return duplicates.alike(arrays.dot(steps[i], steps[j]), square(i), square(j))

    return duplicates.groups(len(steps), are_alike)


def players(updates: Sequence[Weighted], first: Sequence[int]) -> tuple[Weighted, ...]:
    """One update a group: the mean of its steps by weight, as heavy as its heaviest."""
    found: list[Weighted] = []
    for group in duplicates.members(first):
        if len(group) == 1:
            found.append(updates[group[0]])
        else:
            own = [updates[i] for i in group]
            found.append((aggregation.mean(own), max(weight for _, weight in own)))
    return tuple(found)


def _cosines(steps: Sequence[Vector]) -> Array64:
    """(n, n), nearly."""
    dots = np.zeros((len(steps), len(steps)))
    for name, piece in arrays.places(steps[0]) if steps else ():
        block = np.stack([step[name].reshape(-1)[piece].astype(np.float64) for step in steps])
        dots += block @ block.T
    lengths = np.sqrt(np.diagonal(dots))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: Array64 = dots / np.outer(lengths, lengths)
    return cosines
