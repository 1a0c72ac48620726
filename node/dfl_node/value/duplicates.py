"""Near-duplicates share one contributor's worth: one piece of work under many names earns once. Pure.

Two updates are near-duplicates when the cosine of their steps is at least THRESHOLD: a copy, a scaled copy, a
copy with noise of up to a seventh of its length. Likeness carries on: who is alike a third belongs to the
third's group. A group is one player of the valuation:

    its step      the mean of its updates, by their weights
    its weight    the largest of its updates' weights: ten copies weigh what one does
    its worth     in equal whole parts to its updates; what is left over, one each to the first revealed

So the others are worth what they were without the copies, and the copies together what one of them was alone.
Steps of length 0 are alike each other and nobody else.

Honest steps are below it. Measured on digits (benchmarks/similarity.py), IID shards: at most 0.88
where batches are drawn, and less as training goes on; 0.96 for five steps without any chance, each on half of
all rows. Such steps of several thousand rows each would come near the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

THRESHOLD = 0.99


def alike(dot: float, one: float, other: float) -> bool:
    """Whether two steps are near-duplicates, from their dot product and their squared lengths."""
    if not one or not other:
        return one == other
    return dot > 0 and dot * dot >= THRESHOLD * THRESHOLD * one * other


def groups(n: int, are_alike: Callable[[int, int], bool]) -> tuple[int, ...]:
    """For each of n updates the first one of its group. `are_alike(i, j)` is asked with j < i."""
    first = list(range(n))
    for i in range(n):
        for j in range(i):
            if first[i] != first[j] and are_alike(i, j):
                low, high = sorted((first[i], first[j]))
                first = [low if own == high else own for own in first]
    return tuple(first)


def members(first: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The groups, in the order of their first updates."""
    return tuple(
        tuple(i for i, own in enumerate(first) if own == head)
        for head in range(len(first))
        if first[head] == head
    )


def shares(worth: int, updates: int) -> tuple[int, ...]:
    """Equal whole parts that add up to `worth`; never of both signs."""
    part, left = divmod(worth, updates)
    return tuple(part + (place < left) for place in range(updates))
