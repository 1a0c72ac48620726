"""The rule of near-duplicates: who is alike, who belongs together, who gets what."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dfl_node.value import duplicates, scoring, shapley, valuation
from dfl_node.value.duplicates import THRESHOLD
from tests.node.value.games import averaging

lengths = st.floats(1e-30, 1e12)


def turned(angle: float, one: float, other: float) -> bool:
    """Whether steps of these lengths, so far apart, are alike."""
    return duplicates.alike(math.cos(angle) * one * other, one * one, other * other)


@given(lengths, lengths)
def test_scale_does_not_matter(one: float, other: float) -> None:
    border = math.acos(THRESHOLD)
    assert turned(0.0, one, other)
    assert turned(border - 0.001, one, other)
    assert not turned(border + 0.001, one, other)
    assert not turned(math.pi, one, other)  # the negation of a step is no copy of it


def test_steps_of_no_length_are_alike_each_other_alone() -> None:
    assert duplicates.alike(0.0, 0.0, 0.0)
    assert not duplicates.alike(0.0, 1.0, 0.0)
    assert not duplicates.alike(0.0, 0.0, 1.0)


@given(st.integers(0, 12), st.data())
def test_groups_are_what_is_connected(n: int, data: st.DataObject) -> None:
    pairs = data.draw(st.frozensets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=8))
    first = duplicates.groups(n, lambda i, j: (i, j) in pairs or (j, i) in pairs)
    assert all(first[i] == first[j] for i, j in pairs if i < n and j < n)
    assert all(first[own] == own <= i for i, own in enumerate(first))
    groups = duplicates.members(first)
    assert sorted(i for group in groups for i in group) == list(range(n))
    for group in groups:  # each is held together by pairs of its own
        reached, seen = {group[0]}, set()
        while reached - seen:
            at = (reached - seen).pop()
            seen.add(at)
            reached |= {j for i, j in pairs if i == at and j < n} | {i for i, j in pairs if j == at and i < n}
        assert seen == set(group)


@given(st.integers(-(10**15), 10**15), st.integers(1, 50))
def test_shares_are_equal_and_add_up(worth: int, updates: int) -> None:
    found = duplicates.shares(worth, updates)
    assert sum(found) == worth
    assert max(found) - min(found) <= 1
    assert sorted(found, reverse=True) == list(found)
    assert all(part * worth >= 0 for part in found)


def test_a_copy_earns_nothing_extra_and_takes_from_nobody_else() -> None:
    """Five updates, the second of which has two copies: as if there were none, and its worth in three."""
    value = averaging(5, 3)
    alone = valuation.drive(scoring.score([True] * 5, range(5), [frozenset()] * 5, "shapley", 1), value)
    copied = valuation.drive(
        scoring.score([True] * 7, (0, 1, 1, 3, 4, 1, 6), [frozenset()] * 7, "shapley", 1), value
    )
    assert sum(copied.worths[place] for place in (1, 2, 5)) == alone.worths[1]
    assert [copied.worths[place] for place in (0, 3, 4, 6)] == [alone.worths[p] for p in (0, 2, 3, 4)]
    assert copied.alike == (0, 1, 1, 3, 4, 1, 6)


def test_refused_updates_are_no_players() -> None:
    value = averaging(3, 3)
    accepted = [False, True, True, False, True]
    uses = [frozenset({5}), frozenset({6}), frozenset({7}), frozenset({8}), frozenset({7})]
    found = valuation.drive(scoring.score(accepted, (0, 1, 2), uses, "shapley", 1), value)
    exact = [round(worth) for worth in shapley.shapley([value(mask) for mask in range(8)])]
    assert found.worths == (0, exact[0], exact[1], 0, exact[2])
    assert found.alike == (0, 1, 2, 3, 4)
    assert set(found.datasets) == {6, 7}


def test_a_group_used_what_all_its_updates_used() -> None:
    value = averaging(2, 3)
    uses = [frozenset({1}), frozenset(), frozenset({2})]
    found = valuation.drive(scoring.score([True] * 3, (0, 1, 0), uses, "shapley", 1), value)
    assert found.datasets[1] == found.datasets[2]


def test_all_that_a_scoring_asks_for_is_known_before() -> None:
    for n in (3, 8, 9, 20):
        uses = [frozenset({i % 5}) if i % 4 else frozenset[int]() for i in range(n)]
        asked: list[int] = []
        value = averaging(n, n)

        def answer(coalition: int, value=value, asked=asked) -> int:  # type: ignore[no-untyped-def]
            asked.append(coalition)
            return int(value(coalition))

        found = valuation.drive(scoring.score([True] * n, range(n), uses, "shapley", 1), answer)
        assert len(asked) == len(set(asked)) <= scoring.most_evaluations(n, 5, "shapley")
        assert any(found.errors) == (n > 8)
