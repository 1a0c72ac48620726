"""Evidence: the formula, its bytes, and what does not follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger import codec, evidence
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.evidence import Evidence, EvidenceEntry, split
from dfl_ledger.merkle import SumTree, leaf_key, verify
from dfl_ledger.records import Address, JobId, Leaf
from tests.ledger.fake_chain import BUDGET_WEI, address, cid, with_leaf


def entry(index: int, score: int = 0, *, accepted: bool = True, node: int | None = None) -> EvidenceEntry:
    who = address(index if node is None else node)
    return EvidenceEntry(who, index, cid(f"u{index}"), 640, accepted, "" if accepted else "NaN", score)


def make(
    entries: tuple[EvidenceEntry, ...], previous: tuple[Leaf, ...] = (), budget_wei: int = BUDGET_WEI
) -> Evidence:
    return Evidence(
        job=JobId(1),
        round=2,
        parent=cid("parent"),
        model=cid("model"),
        validation=cid("validation"),
        method="shapley",
        round_budget_wei=budget_wei,
        entries=entries,
        leaves=split(budget_wei, entries, previous),
    )


def rewards(leaves: tuple[Leaf, ...]) -> dict[Address, tuple[int, int]]:
    return {leaf.account: (leaf.reward_wei, leaf.cumulative_wei) for leaf in leaves}


# -- the formula ------------------------------------------------------------------------------------------
def test_rewards_are_proportional_to_scores() -> None:
    leaves = split(100, (entry(0, 3), entry(1, 1), entry(2, -5)), ())
    assert rewards(leaves) == {address(0): (75, 75), address(1): (25, 25), address(2): (0, 0)}
    assert {leaf.account: leaf.score for leaf in leaves}[address(2)] == -5


def test_the_remainder_is_not_paid() -> None:
    leaves = split(100, (entry(0, 1), entry(1, 1), entry(2, 1)), ())
    assert sum(leaf.reward_wei for leaf in leaves) == 99


def test_equal_shares_where_no_score_is_positive() -> None:
    leaves = split(100, (entry(0, 0), entry(1, -4), entry(2, accepted=False)), ())
    assert rewards(leaves) == {address(0): (50, 50), address(1): (50, 50), address(2): (0, 0)}


def test_nothing_is_paid_where_nothing_was_accepted() -> None:
    leaves = split(100, (entry(0, accepted=False), entry(1, accepted=False)), ())
    assert rewards(leaves) == {address(0): (0, 0), address(1): (0, 0)}


def test_rewards_add_up_over_rounds() -> None:
    first = split(100, (entry(0, 1), entry(1, 1)), ())
    second = split(100, (entry(0, 1), entry(1, 3, node=2)), first)
    assert rewards(second) == {address(0): (25, 75), address(1): (0, 50), address(2): (75, 75)}
    assert {leaf.account: leaf.score for leaf in second}[address(1)] == 0


def test_an_asset_of_an_earlier_round_keeps_its_leaf() -> None:
    asset = Leaf(address(0), 7, 4, 10, 10)
    leaves = split(100, (entry(0, 1),), (asset,))
    assert leaves == (Leaf(address(0), 0, 1, 100, 100), Leaf(address(0), 7, 0, 0, 10))


def test_a_node_counts_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        split(100, (entry(0, 1), entry(1, 1, node=0)), ())
    leaf = Leaf(address(0), 0, 0, 0, 1)
    with pytest.raises(ValueError, match="twice"):
        split(100, (), (leaf, leaf))


scores = st.lists(
    st.one_of(st.none(), st.integers(-(2**127), 2**127 - 1), st.integers(-5, 5)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**96 - 1), st.lists(scores, min_size=1, max_size=4))
def test_any_rounds_can_be_settled_checked_and_claimed(budget_wei: int, rounds: list[Any]) -> None:
    previous: tuple[Leaf, ...] = ()
    for number, given_scores in enumerate(rounds):
        entries = tuple(
            entry(i, score or 0, accepted=score is not None, node=i * (number + 1))
            for i, score in enumerate(given_scores)
        )
        found = make(entries, previous, budget_wei)
        settlement = found.settlement(cid("evidence"))
        read = Evidence.decode(found.encode())
        assert read == found
        read.check(settlement, previous)
        read.check(settlement)
        grown = settlement.total_wei - sum(leaf.cumulative_wei for leaf in previous)
        assert 0 <= grown <= budget_wei
        if any(e.accepted for e in entries):
            assert budget_wei - grown < len(entries)
        tree = SumTree(found.leaves)
        for index, leaf in enumerate(tree.leaves):
            assert verify(leaf, tree.proof(index), settlement.root, settlement.total_wei)
        previous = found.leaves


# -- checking ---------------------------------------------------------------------------------------------
FIRST = split(100, (entry(0, 1), entry(1, 1)), ())
GOOD = make((entry(0, 2), entry(1, 1), entry(2, accepted=False)), FIRST)


def leaf_of(found: Evidence, node: int) -> int:
    return next(i for i, leaf in enumerate(found.leaves) if leaf.account == address(node))


LIES: dict[str, tuple[Evidence, str]] = {
    "too much": (
        with_leaf(GOOD, leaf_of(GOOD, 0), reward_wei=BUDGET_WEI, cumulative_wei=BUDGET_WEI),
        "budget",
    ),
    "another's share": (with_leaf(GOOD, leaf_of(GOOD, 0), reward_wei=5, cumulative_wei=55), "due"),
    "another score": (with_leaf(GOOD, leaf_of(GOOD, 0), score=3), "due"),
    "less in all than now": (with_leaf(GOOD, leaf_of(GOOD, 0), cumulative_wei=1), "less in all"),
    "lost earnings": (with_leaf(GOOD, leaf_of(GOOD, 2), cumulative_wei=3), "has earned 0 wei"),
    "a leaf missing": (replace(GOOD, leaves=GOOD.leaves[1:]), "no leaf"),
    "pay for nothing": (
        replace(GOOD, leaves=tuple(sorted((*GOOD.leaves, Leaf(address(9), 0, 0, 1, 1)), key=leaf_key))),
        "no contribution",
    ),
    "money from nowhere": (
        replace(GOOD, leaves=tuple(sorted((*GOOD.leaves, Leaf(address(9), 0, 0, 0, 1)), key=leaf_key))),
        "has earned 0 wei",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_does_not_follow_is_refused(lie: str) -> None:
    found, why = LIES[lie]
    with pytest.raises(VerificationFailed, match=why):
        found.check(found.settlement(cid("evidence")), FIRST)


def test_another_settlement_is_refused() -> None:
    settlement = GOOD.settlement(cid("evidence"))
    for wrong, why in (
        (replace(settlement, round=3), "another round"),
        (replace(settlement, job=JobId(2)), "another round"),
        (replace(settlement, root=bytes(32)), "root"),
        (replace(settlement, total_wei=settlement.total_wei + 1), "sum"),
    ):
        with pytest.raises(VerificationFailed, match=why):
            GOOD.check(wrong, FIRST)
    GOOD.check(settlement, FIRST)


# -- bytes ------------------------------------------------------------------------------------------------
def as_map() -> dict[str, Any]:
    values: dict[str, Any] = codec.decode(GOOD.encode(), max_bytes=1 << 20)
    return values


def set_at(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: Any) -> None:
        for step in path[:-1]:
            values = values[step]
        values[path[-1]] = to

    return change


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another version": set_at("version", to=2),
    "a version that is true": set_at("version", to=True),
    "an unknown field": set_at("extra", to=1),
    "a missing field": lambda v: v.pop("method"),
    "a negative job": set_at("job", to=-1),
    "a job that is text": set_at("job", to="1"),
    "a round beyond 32 bits": set_at("round", to=2**32),
    "a parent that is text": set_at("parent", to="bafy"),
    "an empty method": set_at("method", to=""),
    "a long method": set_at("method", to="x" * 65),
    "a budget as integer": set_at("round_budget_wei", to=5),
    "a budget beyond 96 bits": set_at("round_budget_wei", to=str(2**96)),
    "entries that are no list": set_at("entries", to={}),
    "an entry that is no map": set_at("entries", 0, to=[]),
    "an entry with another index": set_at("entries", 0, "index", to=1),
    "an entry in lower case": lambda v: set_at("entries", 0, "node", to=v["entries"][0]["node"].lower())(v),
    "a node twice": lambda v: set_at("entries", 1, "node", to=v["entries"][0]["node"])(v),
    "an address with a space": set_at("entries", 0, "node", to="0x" + " " * 40),
    "negative samples": set_at("entries", 0, "samples", to=-1),
    "accepted as a number": set_at("entries", 0, "accepted", to=1),
    "a refused entry with a score": set_at("entries", 2, "score", to="5"),
    "an accepted entry with a reason": set_at("entries", 0, "why", to="?"),
    "a reason without end": set_at("entries", 2, "why", to="x" * 301),
    "a score as float": set_at("entries", 0, "score", to=0.5),
    "a score beyond 128 bits": set_at("entries", 0, "score", to=str(2**127)),
    "no leaves": set_at("leaves", to=[]),
    "leaves out of order": lambda v: v["leaves"].reverse(),
    "a leaf twice": lambda v: v["leaves"].insert(0, v["leaves"][0]),
    "a negative reward": set_at("leaves", 0, "reward_wei", to="-1"),
    "a cumulative reward beyond 128 bits": set_at("leaves", 0, "cumulative_wei", to=str(2**128)),
    "an asset beyond 256 bits": set_at("leaves", 0, "asset", to=str(2**256)),
    "a leaf with another field": set_at("leaves", 0, "bonus", to="1"),
    "a sum beyond 128 bits": lambda v: [
        set_at("leaves", i, "cumulative_wei", to=str(2**128 - 1))(v) for i in (0, 1)
    ],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_evidence_is_refused(name: str) -> None:
    values = as_map()
    MALFORMED[name](values)
    with pytest.raises(VerificationFailed, match="malformed"):
        Evidence.decode(codec.encode(values))


@pytest.mark.parametrize("value", [None, 1, [], "x", {}])
def test_what_is_no_evidence_at_all(value: Any) -> None:
    with pytest.raises(VerificationFailed, match="malformed"):
        Evidence.decode(codec.encode(value))


def test_size_is_limited_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = GOOD.encode()
    monkeypatch.setattr(evidence, "MAX_EVIDENCE_BYTES", len(encoded) - 1)
    with pytest.raises(VerificationFailed, match="too large"):
        Evidence.decode(encoded)
    with pytest.raises(ValueError, match="bytes"):
        GOOD.encode()


def test_a_contributor_cannot_make_its_refusal_unpublishable() -> None:
    """The reason may quote names in a hostile file: any length, and halves of surrogate pairs."""
    hostile = replace(entry(2, accepted=False), why="tensor \ud800" + "x" * 10_000)
    found = replace(GOOD, entries=(*GOOD.entries[:2], hostile))
    assert Evidence.decode(found.encode()) == found
    assert found.entries[2].why.startswith("tensor ?x")


def test_evidence_without_validation_rows() -> None:
    assert Evidence.decode(replace(GOOD, validation=None).encode()).validation is None
