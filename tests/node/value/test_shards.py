"""Validation rows in shards: disjoint, complete, with every class, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfl_ledger.errors import UsageError
from dfl_node.value import shards


@given(st.lists(st.integers(0, 4), min_size=5, max_size=200), st.integers(1, 20), st.integers(0, 2**256 - 1))
def test_every_row_is_in_one_shard_and_every_class_in_even_parts(
    labels: list[int], count: int, seed: int
) -> None:
    if len(labels) < count * len(set(labels)):
        with pytest.raises(UsageError):
            shards.places(labels, count, seed)
        return
    found = shards.places(labels, count, seed)
    assert sorted(row for shard in found for row in shard) == list(range(len(labels)))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    counts = [Counter(labels[row] for row in shard) for shard in found]
    for label in set(labels):
        of_it = [count[label] for count in counts]
        assert max(of_it) - min(of_it) <= 1


def test_digits_get_five_of_each_class_in_ten_rounds() -> None:
    labels = [row % 10 for row in range(500)]
    found = shards.places(labels, 10, 7)
    assert all(Counter(labels[row] for row in shard) == dict.fromkeys(range(10), 5) for shard in found)
    assert found == shards.places(labels, 10, 7)
    assert found != shards.places(labels, 10, 8)
    assert any(shard != tuple(range(shard[0], 500, 10)) for shard in found)  # which ones is drawn


@pytest.mark.parametrize(("rows", "count"), [(0, 1), (19, 2), (20, 0), (20, -1), (10**6, 10**5)])
def test_what_cannot_be_cut_is_refused(rows: int, count: int) -> None:
    with pytest.raises(UsageError):
        shards.places([row % 10 for row in range(rows)], count, 1)
