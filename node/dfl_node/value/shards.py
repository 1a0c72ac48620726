"""Validation rows in shards, one a round: what was unsealed for one round scores no other. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dfl_ledger.errors import UsageError
from dfl_node.value.draws import shuffled

MAX_SHARDS = 10_000


def places(labels: Sequence[int], count: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """The rows of each of `count` shards, in rising order, no row in two.

    Each class is dealt out like cards after a shuffle, and where one class ends the next goes on: shards
    differ by one row at most, and so do they in each class. Raises UsageError unless a shard can have as many
    rows as there are classes.
    """
    classes = sorted(set(labels))
    least = count * max(1, len(classes))
    if not 1 <= count <= MAX_SHARDS or len(labels) < least:
        why = f"one a round, 1 to {MAX_SHARDS}, with as many rows each as classes: at least {least} rows"
        raise UsageError(f"{len(labels)} validation rows cannot be cut into {count} shards", why=why)
    rows = range(len(labels))
    cards = [
        row
        for number, label in enumerate(classes)
        for row in shuffled(b"dfl shard rows", seed, number, [row for row in rows if labels[row] == label])
    ]
    return tuple(tuple(sorted(cards[first::count])) for first in range(count))
