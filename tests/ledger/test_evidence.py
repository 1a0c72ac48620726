"""Evidence: what follows from the chain, its bytes, and what does not follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger import codec, evidence, rewards, vectors
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.evidence import Evidence
from dfl_ledger.facts import Ballot, Piece, RoundFacts, Shares
from dfl_ledger.merkle import verify
from dfl_ledger.records import NOBODY, REFUSED, JobId, Leaf, Payee
from dfl_ledger.rewards import leaves
from tests.ledger.fake_chain import BUDGET_WEI, address, cid, with_leaf

MODEL, DATA = 7, 9
JUDGES = (20, 21, 22)


def piece(index: int, node: int | None = None) -> Piece:
    return Piece(address(index if node is None else node), cid(f"u{index}"), 640)


def facts(
    scores: tuple[tuple[int, ...] | None, ...],
    *,
    nodes: tuple[int, ...] = (0, 1, 2),
    datasets: tuple[int, ...] = (),
    shares: Shares | None = None,
    payees: tuple[Payee, ...] | None = None,
    weights: tuple[int, ...] = (20, 30, 50),
) -> RoundFacts:
    """A round by the scores that each judge showed (None: none), each with a verdict of the model at its
    end.
    """
    accounts = (*nodes, *(judge for judge, own in zip(JUDGES, scores, strict=False) if own is not None))
    return RoundFacts(
        job=JobId(1),
        round=2,
        parent=cid("parent"),
        model=cid("model"),
        shares=shares or Shares(BUDGET_WEI),
        contributions=tuple(piece(index, node) for index, node in enumerate(nodes)),
        datasets=datasets,
        audits=0,
        ballots=tuple(
            Ballot(address(judge), weight, None if own is None else vectors.encode(own))
            for judge, weight, own in zip(JUDGES, weights, scores, strict=False)
        ),
        payees=payees or tuple(Payee(address(n), 0) for n in dict.fromkeys(accounts)),
    )


def make(found: RoundFacts, previous: tuple[Leaf, ...] = (), **changes: Any) -> Evidence:
    whys = {2: "NaN"}
    return replace(
        Evidence.of(found, previous, validation=cid("rows"), method="shapley", whys=whys), **changes
    )


def rewards_of(found: tuple[Leaf, ...]) -> list[int]:
    return [leaf.reward_wei for leaf in found]


# -- the formula ------------------------------------------------------------------------------------------
def test_rewards_are_proportional_to_the_median_scores() -> None:
    found = facts(((3, 1, -5, 1), (3, 1, -5, 1), (900, 0, 0, 1)), weights=(30, 30, 39), shares=Shares(100))
    assert found.medians == (3, 1, -5)
    lines = leaves(found, ())
    assert rewards_of(lines)[:3] == [75, 25, 0]
    assert [line.score for line in lines] == [3, 1, -5, 0, 0, 0]


def test_equal_shares_where_no_score_is_positive() -> None:
    assert rewards_of(leaves(facts(((0, -4, REFUSED, 1),), shares=Shares(100)), ())) == [50, 50, 0, 0]
    assert rewards_of(leaves(facts((), shares=Shares(100)), ())) == [33, 33, 33]


def test_nothing_is_paid_where_nothing_was_accepted() -> None:
    shares = Shares(100, model_bps=1000, model_asset=MODEL, evaluator_bps=100)
    payees = (Payee(NOBODY, MODEL), *(Payee(address(n), 0) for n in (0, 1, 2, 20)))
    found = facts(((REFUSED, REFUSED, REFUSED, 1),), shares=shares, payees=payees)
    assert rewards_of(leaves(found, ())) == [0, 0, 0, 0, 1]  # but for whoever found out


def test_every_pot_has_its_own_rule() -> None:
    shares = Shares(
        10_000,
        data_bps=2000,
        model_bps=500,
        algorithm_bps=300,
        evaluator_bps=700,
        model_asset=MODEL,
        algorithm_asset=8,
    )
    payees = (
        *(
            Payee(NOBODY, MODEL),
            Payee(NOBODY, 8),
            Payee(address(0), 0),
            Payee(NOBODY, DATA),
            Payee(NOBODY, 10),
        ),
        *(Payee(address(n), 0) for n in (1, 2, 20, 21)),
    )
    found = facts(
        ((2, 2, 0, 6, -1, 1), None, (2, 2, 0, 6, -1, 1)), datasets=(DATA, 10), shares=shares, payees=payees
    )
    assert rewards_of(leaves(found, ())) == [500, 300, 3250, 2000, 0, 3250, 0, 233, 0]
    assert [line.account for line in leaves(found, ())][:5] == [NOBODY, NOBODY, address(0), NOBODY, NOBODY]


def test_a_contributor_that_judges_earns_both_and_does_not_judge_itself() -> None:
    shares = Shares(1000, evaluator_bps=1000)
    found = facts(((90, 1, 1), (3, 1, 1)), nodes=(20, 1), weights=(90, 10), shares=shares)
    assert found.medians == (3, 1)
    assert rewards_of(leaves(found, ())) == [900 * 3 // 4 + 50, 900 // 4, 50]


def test_rewards_add_up_over_rounds_by_number() -> None:
    first = leaves(facts(((1, 1, 0, 1),), shares=Shares(100)), ())
    later = facts(
        ((1, 3, 1),),
        nodes=(0, 5),
        shares=Shares(100),
        payees=(*facts(((1, 1, 0, 1),)).payees, Payee(address(5), 0)),
    )
    second = leaves(later, first)
    assert [(line.reward_wei, line.cumulative_wei) for line in second] == [
        (25, 75),
        (0, 50),
        (0, 0),
        (0, 0),
        (75, 75),
    ]
    with pytest.raises(ValueError, match="another one"):
        leaves(replace(later, payees=tuple(reversed(later.payees))), first)
    with pytest.raises(ValueError, match="payees"):
        leaves(facts(((1, 1),), nodes=(0,)), first)


scores = st.lists(
    st.one_of(st.just(REFUSED), st.integers(-(2**63), 2**63 - 1), st.integers(-5, 5)), min_size=3, max_size=3
)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**96 - 1),
    st.lists(st.lists(st.one_of(st.none(), scores), max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(1, 2**90), min_size=3, max_size=3),
)
def test_any_rounds_can_be_settled_checked_and_claimed(
    budget_wei: int, rounds: list[list[list[int] | None]], weights: list[int]
) -> None:
    previous: tuple[Leaf, ...] = ()
    payees = tuple(Payee(address(n), 0) for n in (0, 1, 2, *JUDGES))
    shares = Shares(budget_wei, evaluator_bps=500)
    for told in rounds:
        shown = tuple(None if own is None else (*own, 1) for own in told)
        found = facts(shown, shares=shares, payees=payees, weights=tuple(weights))
        own = Evidence.of(found, previous, validation=None, method="shapley")
        settlement = own.settlement(cid("evidence"))
        read = Evidence.decode(own.encode())
        assert read == own
        read.check(settlement, previous, found)
        read.check(settlement)
        grown = settlement.total_wei - sum(leaf.cumulative_wei for leaf in previous)
        assert 0 <= grown <= budget_wei
        tree = own.reward_tree
        for place, leaf in enumerate(tree.leaves):
            assert verify(leaf, tree.proof(place), tree.top)
        previous = own.leaves


# -- checking ---------------------------------------------------------------------------------------------
SHOWN = ((2, 1, REFUSED, 4, 1), (2, 1, REFUSED, 4, 1), None)
SHARES = Shares(BUDGET_WEI, data_bps=1000)
PAYEES = (Payee(address(0), 0), Payee(NOBODY, DATA), *(Payee(address(n), 0) for n in (1, 2, 20, 21)))
TRUE = facts(SHOWN, datasets=(DATA,), shares=SHARES, payees=PAYEES)
FIRST = leaves(replace(TRUE, round=1), ())
GOOD = make(TRUE, FIRST)

LIES: dict[str, tuple[Evidence, str]] = {
    "another's share": (with_leaf(GOOD, 0, reward_wei=5), f"{address(0)} is due"),
    "another score in a line": (with_leaf(GOOD, 0, score=3), "for a score of 2"),
    "too much for data": (with_leaf(GOOD, 1, reward_wei=BUDGET_WEI), f"asset {DATA} is due"),
    "less in all than now": (with_leaf(GOOD, 0, cumulative_wei=1), "less in all"),
    "lost earnings": (with_leaf(GOOD, 0, cumulative_wei=GOOD.leaves[0].reward_wei), "wei in all"),
    "money from nowhere": (with_leaf(GOOD, 3, cumulative_wei=3), "has earned 0 wei"),
    "a score that is no median": (
        replace(GOOD, entries=(replace(GOOD.entries[0], score=3), *GOOD.entries[1:])),
        "the median score of .* is 2, not 3",
    ),
    "a worth that is no median": (
        replace(GOOD, datasets=(replace(GOOD.datasets[0], worth=5),)),
        f"the median score of asset {DATA} is 4, not 5",
    ),
    "a vector too short": (replace(GOOD, audits=1), "32 bytes|40 bytes"),
    "fewer payees than before": (replace(GOOD, leaves=GOOD.leaves[:3]), "payees were settled before"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_does_not_follow_is_refused(lie: str) -> None:
    found, why = LIES[lie]
    with pytest.raises(VerificationFailed, match=why):
        found.check(found.settlement(cid("evidence")), FIRST)


CONTRADICTIONS: dict[str, tuple[RoundFacts, str]] = {
    "another model": (replace(TRUE, model=cid("else")), "its model is"),
    "another budget": (replace(TRUE, shares=Shares(1)), "its shares is round_budget_wei"),
    "another piece": (
        replace(TRUE, contributions=(piece(5), *TRUE.contributions[1:])),
        r"its contributions\[0\] is node",
    ),
    "one piece more": (
        replace(TRUE, contributions=(*TRUE.contributions, piece(8))),
        "it has 3 contributions, the chain 4",
    ),
    "a data set less": (replace(TRUE, datasets=()), "it has 1 datasets, the chain 0"),
    "another vector": (
        replace(TRUE, ballots=(replace(TRUE.ballots[0], vector=b"\x01" * 40), *TRUE.ballots[1:])),
        r"its ballots\[0\] is evaluator",
    ),
    "a vector that was shown": (
        replace(TRUE, ballots=(*TRUE.ballots[:2], replace(TRUE.ballots[2], vector=b"\x01" * 40))),
        r"its ballots\[2\]",
    ),
    "another payee": (replace(TRUE, payees=(*PAYEES[:5], Payee(address(3), 0))), r"its payees\[5\]"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_contradicts_the_chain_is_named(name: str) -> None:
    chain, why = CONTRADICTIONS[name]
    with pytest.raises(VerificationFailed, match=why):
        GOOD.check(GOOD.settlement(cid("evidence")), FIRST, chain)


def test_another_settlement_is_refused() -> None:
    settlement = GOOD.settlement(cid("evidence"))
    for wrong, why in (
        (replace(settlement, round=3), "another round"),
        (replace(settlement, job=JobId(2)), "another round"),
        (replace(settlement, root=bytes(32)), "its lines have the root"),
        (replace(settlement, total_wei=settlement.total_wei + 1), "sum"),
        (replace(settlement, score_root=bytes(32)), "its scores have the root"),
        (replace(settlement, weights=settlement.weights + 1), "weigh"),
    ):
        with pytest.raises(VerificationFailed, match=why):
            GOOD.check(wrong, FIRST)
    GOOD.check(settlement, FIRST, TRUE)


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


def copied(what: str, source: int, to: int, name: str) -> Callable[[dict[str, Any]], None]:
    return lambda v: set_at(what, to, name, to=v[what][source][name])(v)


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another version": set_at("version", to=1),
    "a version that is true": set_at("version", to=True),
    "an unknown field": set_at("extra", to=1),
    "a missing field": lambda v: v.pop("method"),
    "a negative job": set_at("job", to=-1),
    "a job that is text": set_at("job", to="1"),
    "a round beyond 32 bits": set_at("round", to=2**32),
    "a parent that is text": set_at("parent", to="bafy"),
    "an empty method": set_at("method", to=""),
    "a long method": set_at("method", to="x" * 65),
    "a budget as integer": set_at("shares", "round_budget_wei", to=5),
    "a budget beyond 96 bits": set_at("shares", "round_budget_wei", to=str(2**96)),
    "shares beyond the whole": set_at("shares", "model_bps", to=9_001),
    "a share below nothing": set_at("shares", "data_bps", to=-1),
    "a share without a name": lambda v: v["shares"].pop("data_bps"),
    "entries that are no list": set_at("entries", to={}),
    "no entries": set_at("entries", to=[]),
    "an entry that is no map": set_at("entries", 0, to=[]),
    "an entry with another index": set_at("entries", 0, "index", to=1),
    "an entry in lower case": lambda v: set_at("entries", 0, "node", to=v["entries"][0]["node"].lower())(v),
    "a node twice": copied("entries", 0, 1, "node"),
    "an address with a space": set_at("entries", 0, "node", to="0x" + " " * 40),
    "negative samples": set_at("entries", 0, "samples", to=-1),
    "an accepted entry with a reason": set_at("entries", 0, "why", to="?"),
    "a reason without end": set_at("entries", 2, "why", to="x" * 301),
    "a score as float": set_at("entries", 0, "score", to=0.5),
    "a score beyond 64 bits": set_at("entries", 0, "score", to=2**63),
    "a data set of no asset": set_at("datasets", 0, "asset", to=0),
    "more audits than fit": set_at("audits", to=256),
    "a ballot twice": copied("ballots", 0, 1, "evaluator"),
    "more ballots than seats": lambda v: set_at("ballots", to=[v["ballots"][0]] * 17)(v),
    "a vector that is text": set_at("ballots", 0, "vector", to="0x00"),
    "a weight as integer": set_at("ballots", 0, "weight", to=1),
    "no leaves": set_at("leaves", to=[]),
    "a leaf twice": lambda v: v["leaves"].insert(0, v["leaves"][0]),
    "a leaf of nobody": set_at("leaves", 0, "account", to=NOBODY),
    "a leaf of an asset and an account": set_at("leaves", 0, "asset", to=3),
    "a negative reward": set_at("leaves", 0, "reward_wei", to="-1"),
    "a cumulative reward beyond 128 bits": set_at("leaves", 0, "cumulative_wei", to=str(2**128)),
    "an asset beyond 63 bits": set_at("leaves", 1, "asset", to=2**63),
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
    whys = {2: "tensor \ud800" + "x" * 10_000, 0: "an accepted piece has none"}
    found = Evidence.of(TRUE, FIRST, validation=None, method="shapley", whys=whys)
    assert Evidence.decode(found.encode()) == found
    assert found.entries[2].why.startswith("tensor ?x")
    assert found.entries[0].why == ""
    assert rewards.accepted(found.score_tree.total) == 2
