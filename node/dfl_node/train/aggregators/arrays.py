"""Distances between updates, and plans carried out on them: float64, the same bits on every machine.

numpy may add up an array in another order on another processor; what it does element by element is IEEE 754
everywhere. So nothing here is left to a reduction of numpy's: sums over updates are written out in their
order, and sums over parameters run in lanes that are folded by halves, which is pairwise summation with
additions of whole arrays. Only one value can stand at each place of a sorted column: -0.0, which equals 0.0,
is made 0.0 first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dfl_node.train.aggregators import Middle, Plan, Sum
from dfl_node.train.tensors import Array

LANES = 1 << 14  # a power of two; with it a pair of updates works in the processor's cache

Array64 = NDArray[np.float64]
Vector = Mapping[str, Array]  # one update: all its tensors as one vector


def distances(vectors: Sequence[Vector]) -> list[list[float]]:
    """Squared Euclidean distances between the n updates and, last, the zero vector: (n + 1, n + 1)."""
    n = len(vectors)
    result = [[0.0] * (n + 1) for _ in range(n + 1)]
    for i, one in enumerate(vectors):
        result[i][n] = result[n][i] = _squared(one, None)
        for j in range(i):
            result[i][j] = result[j][i] = _squared(one, vectors[j])
    return result


def dot(one: Vector, other: Vector) -> float:
    """The sum of the products of two updates' numbers."""
    return _folded(
        one[name].reshape(-1)[piece].astype(np.float64) * other[name].reshape(-1)[piece].astype(np.float64)
        for name, piece in places(one)
    )


def relative_distance(one: Vector, other: Vector) -> float:
    """||one - other|| / ||other||; Inf from a zero vector to anything else."""
    apart, length = _squared(one, other), _squared(other, None)
    if length == 0:
        return math.inf if apart else 0.0
    return math.sqrt(apart / length)


def _squared(one: Vector, other: Vector | None) -> float:
    """||one - other||^2, or ||one||^2."""

    def squares(name: str, piece: slice) -> Array64:
        apart = one[name].reshape(-1)[piece].astype(np.float64)
        if other is not None:
            apart -= other[name].reshape(-1)[piece]
        apart *= apart
        return apart

    return _folded(squares(name, piece) for name, piece in places(one))


def _folded(pieces: Iterable[Array64]) -> float:
    """The sum of all their numbers."""
    lanes = np.zeros(LANES)
    for piece in pieces:
        lanes[: len(piece)] += piece
    half = LANES
    while half > 1:
        half //= 2
        lanes[:half] += lanes[half : 2 * half]
    return float(lanes[0])


def execute(plan: Plan, vectors: Sequence[Vector]) -> dict[str, Array64]:
    """The step that a plan makes of the updates."""
    result: dict[str, Array64] = {}
    for name in vectors[0]:
        tensors = [vector[name] for vector in vectors]
        result[name] = _summed(plan, tensors) if isinstance(plan, Sum) else _middle(plan, tensors)
    return result


def _summed(plan: Sum, tensors: Sequence[Array]) -> Array64:
    total = np.zeros(tensors[0].shape)
    for tensor, weight in zip(tensors, plan.weights, strict=True):
        if weight:
            total += tensor.astype(np.float64) * weight
    return total / plan.total


def _middle(plan: Middle, tensors: Sequence[Array]) -> Array64:
    flat = [tensor.reshape(-1) for tensor in tensors]
    result = np.empty(flat[0].size)
    for piece in _pieces(flat[0].size):
        values = [tensor[piece].astype(np.float64) + 0.0 for tensor in flat]  # each (LANES,) or less
        ordered = np.sort(np.stack([_mean([values[k] for k in group]) for group in plan.groups]), axis=0)
        result[piece] = _mean(list(ordered[plan.trim : len(ordered) - plan.trim]))
    return result.reshape(tensors[0].shape)


def _mean(rows: Sequence[Array64]) -> Array64:
    total = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total / len(rows)


def places(vector: Vector) -> Iterator[tuple[str, slice]]:
    """Every piece of every tensor, in a fixed order."""
    return ((name, piece) for name in sorted(vector) for piece in _pieces(vector[name].size))


def _pieces(size: int) -> Iterator[slice]:
    return (slice(start, start + LANES) for start in range(0, size, LANES))
