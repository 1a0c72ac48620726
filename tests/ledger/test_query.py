"""What the ledger says to readers: filters, money, plain JSON, and clear errors for what is no ledger."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.errors import NodeNotRunning, UsageError
from dfl_ledger.evidence import Evidence
from dfl_ledger.indexer import Indexer
from dfl_ledger.merkle import Top, verify
from dfl_ledger.query import LedgerRows, open_ledger
from dfl_ledger.records import Cid, Kind
from tests.ledger.fake_chain import BUDGET_WEI, FakeChain, JobStory, address, cid, hex32, register

CONTRIBUTION_FIELDS = [
    *("id", "node", "job", "round", "kind", "cid", "parent", "samples"),
    *("score", "reward_wei", "accepted", "why", "tx", "block"),
]


class Ledger:
    """Two jobs: one with two settled rounds and one published, one just begun."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chain = FakeChain()
        register(self.chain, 1)
        self.indexer = Indexer(path, self.chain.ledger, deployment_key="test", start_block=1, span_blocks=100)
        self.story = JobStory(self.chain)
        self.story.create()
        self.evidence: list[tuple[Evidence, Cid]] = []
        for claimable_at in (1000, 2000):
            self.story.whole_round()
            found = self.story.evidence()
            self.evidence.append((found, self.story.settle(found, claimable_at)))
        self.story.whole_round()
        other = JobStory(self.chain, job=2, nodes=(1, 4))
        other.create()
        other.open_round()
        other.contribute()
        self.step()
        for found, evidence_cid in self.evidence:
            self.indexer.add_evidence(found, evidence_cid)

    def step(self) -> None:
        while self.indexer.lag():
            self.indexer.step()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "a ledger?#%.sqlite")  # what a URI would choke on
    yield made
    made.indexer.close()


@pytest.fixture
def rows(ledger: Ledger) -> Iterator[LedgerRows]:
    with open_ledger(ledger.path) as opened:
        yield opened


def ids(rows: LedgerRows, **filters: Any) -> list[str]:
    return [row.id for row in rows.contributions(**filters)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [f"1.{r}.{i}" for r in (1, 2, 3) for i in (0, 1, 2)] + ["2.1.0", "2.1.1"]),
        ({"limit": 3}, ["1.3.2", "2.1.0", "2.1.1"]),
        ({"limit": 0}, []),
        ({"job": 2}, ["2.1.0", "2.1.1"]),
        ({"job": 1, "limit": 2}, ["1.3.1", "1.3.2"]),
        ({"job": 1, "round_": 2}, ["1.2.0", "1.2.1", "1.2.2"]),
        ({"round_": 1}, ["1.1.0", "1.1.1", "1.1.2", "2.1.0", "2.1.1"]),
        ({"round_": 1, "limit": 2}, ["2.1.0", "2.1.1"]),
        ({"node": address(1)}, ["1.1.0", "1.2.0", "1.3.0", "2.1.0"]),
        ({"node": address(1).lower()}, ["1.1.0", "1.2.0", "1.3.0", "2.1.0"]),
        ({"node": address(1), "limit": 2}, ["1.3.0", "2.1.0"]),
        ({"node": address(2), "job": 1}, ["1.1.1", "1.2.1", "1.3.1"]),
        ({"node": address(2), "round_": 3}, ["1.3.1"]),
        ({"node": address(2), "job": 1, "round_": 2}, ["1.2.1"]),
        ({"node": address(2), "job": 2}, []),
        ({"kind": Kind.UPDATE, "limit": 1}, ["2.1.1"]),
        ({"kind": "update", "job": 2}, ["2.1.0", "2.1.1"]),
        ({"kind": Kind.HOP}, []),
        ({"kind": "stage", "node": address(1), "job": 1, "round_": 1}, []),
        ({"node": "nobody"}, []),
    ],
)
def test_filters(rows: LedgerRows, filters: dict[str, Any], expected: list[str]) -> None:
    assert ids(rows, **filters) == expected


def test_an_unknown_kind_is_refused(rows: LedgerRows) -> None:
    with pytest.raises(UsageError, match="kind of contribution"):
        rows.contributions(kind="updates")


def test_a_contribution_in_json(rows: LedgerRows) -> None:
    row = rows.contribution("1.2.0")
    assert row is not None
    found = json.loads(json.dumps(row.to_json()))
    assert list(found) == CONTRIBUTION_FIELDS
    assert found == {
        "id": "1.2.0",
        "node": address(1),
        "job": 1,
        "round": 2,
        "kind": "update",
        "cid": str(cid("update 1.2.1")),
        "parent": str(cid("model 1.1")),
        "samples": 640,
        "score": pytest.approx(3e-9),
        "reward_wei": str(BUDGET_WEI * 3 // 4),
        "accepted": True,
        "why": "",
        "tx": row.tx,
        "block": row.block,
    }
    unscored = rows.contribution("1.3.0")
    assert unscored is not None
    assert (unscored.score, unscored.reward_wei, unscored.accepted, unscored.why) == (None, None, None, None)


def test_contributions_that_are_none(rows: LedgerRows) -> None:
    assert rows.contribution("1.9.0") is None
    for wrong in ("", "1.1", "1.1.0.0", "1.1.x", "-1.1.0", "1.1.0 ", "1.1.٣", "9" * 30 + ".1.0", "'; --"):
        with pytest.raises(UsageError, match=r"JOB\.ROUND\.INDEX"):
            rows.contribution(wrong)


def test_jobs(rows: LedgerRows) -> None:
    assert [(j.job, j.phase, j.rounds) for j in rows.jobs()] == [(1, "aggregate", ()), (2, "aggregate", ())]
    assert rows.open_jobs() == (1, 2)
    assert rows.job(7) is None
    job = rows.job(1)
    assert job is not None
    assert (job.mode, job.completed, job.contributions, job.settled_wei) == ("sync", 3, 9, 2 * BUDGET_WEI)
    found = json.loads(json.dumps(job.to_json()))
    assert (found["round_budget_wei"], found["settled_wei"]) == (str(BUDGET_WEI), str(2 * BUDGET_WEI))
    assert [(r["round"], r["state"], r["paid_wei"]) for r in found["rounds"]] == [
        (1, "settled", str(BUDGET_WEI)),
        (2, "settled", str(BUDGET_WEI)),
        (3, "published", None),
    ]


def test_what_a_settler_asks(ledger: Ledger, rows: LedgerRows) -> None:
    assert rows.unsettled_rounds(1) == (3,)
    assert rows.models(1, 2) == (cid("model 1.1"), cid("model 1.2"))
    with pytest.raises(UsageError, match="no model"):
        rows.models(2, 1)
    (first, first_cid), (second, second_cid) = ledger.evidence
    assert rows.settled_before(1, 1) is None
    assert rows.settled_before(1, 2) == first.settlement(first_cid)
    assert rows.settled_before(1, 9) == second.settlement(second_cid)


def test_the_models_a_round_may_build_on_are_its_parent_and_those_before(
    ledger: Ledger, rows: LedgerRows
) -> None:
    first = cid("model 0")
    models = [rows.models(1, round_)[1] for round_ in (1, 2, 3)]
    assert rows.lineage(1, 1) == (first,)
    assert rows.lineage(1, 3) == (models[1], models[0], first)
    assert rows.lineage(1, 3, 2) == (models[1], models[0])
    assert rows.lineage(1, 4) == (), "not known to have opened"
    ledger.story.open_round()
    ledger.chain.mine(("RoundVoided", {"job": 1, "round": 4, "phase": 2}))
    ledger.story.open_round()
    ledger.step()
    assert rows.lineage(1, 5) == (models[2], models[1], models[0], first), "a void round adds no model"


def test_what_a_node_delivered_is_in_rounds_that_have_a_model(ledger: Ledger, rows: LedgerRows) -> None:
    mine = [row.cid for row in rows.contributions(node=address(1), job=1)]
    assert [str(piece) for piece in rows.delivered(1, address(1), 9)] == mine[::-1]
    assert len(rows.delivered(1, address(1), 2)) == 2
    assert rows.contributions(node=address(1), job=2)
    assert rows.delivered(2, address(1), 9) == (), "its round is still under way"


def test_a_piece_was_delivered_in_the_first_round_with_a_model_that_had_it(
    ledger: Ledger, rows: LedgerRows
) -> None:
    first = Cid.parse(rows.revealed(1, 1)[0].cid)
    assert rows.delivered_in(1, first, before=1) is None
    assert rows.delivered_in(1, first, before=3) == 1
    assert rows.delivered_in(2, first, before=3) is None, "another job"
    under_way = Cid.parse(rows.contributions(job=2)[0].cid)
    assert rows.delivered_in(2, under_way, before=9) is None


def test_settlements_are_a_proof_on_paper(ledger: Ledger, rows: LedgerRows) -> None:
    found = json.loads(json.dumps(rows.settlements(1)))
    settlement = ledger.evidence[1][0].settlement(ledger.evidence[1][1])
    assert found[1]["root"] == "0x" + settlement.root.hex()
    assert found[1]["total_wei"] == str(settlement.total_wei)
    assert sum(int(leaf["cumulative_wei"]) for leaf in found[1]["leaves"]) == settlement.total_wei


def test_one_claim_pays_for_every_round(ledger: Ledger, rows: LedgerRows) -> None:
    share = BUDGET_WEI * 3 // 4
    settlements = {found.round: found.settlement(at) for found, at in ledger.evidence}
    assert rows.claimable(address(1), now=999) == ()
    for now, round_, amount_wei in ((1000, 1, share), (2000, 2, 2 * share)):
        (claim,) = rows.claimable(address(1), now)
        assert (claim.job, claim.round, claim.amount_wei) == (1, round_, amount_wei)
        leaves = len(ledger.evidence[round_ - 1][0].leaves)
        assert verify(
            claim.leaf, claim.proof, Top(settlements[round_].root, settlements[round_].total_wei, leaves)
        )
    assert rows.claimable(address(3), now=2000) == ()  # refused each time: nothing to pay


def test_earnings(ledger: Ledger, rows: LedgerRows) -> None:
    share = BUDGET_WEI * 3 // 4
    before = rows.earnings(address(1))
    assert (before.earned_wei, before.claimed_wei) == (2 * share, 0)
    assert [claim.amount_wei for claim in before.claimable] == [2 * share]
    ledger.story.claim(1, share, round_=1)
    ledger.step()
    after = rows.earnings(address(1).lower())
    assert (after.earned_wei, after.claimed_wei) == (2 * share, share)
    assert [claim.amount_wei for claim in after.claimable] == [share]
    assert [(c.round, c.amount_wei) for c in rows.claims(address(1))] == [(1, share)]
    found = json.loads(json.dumps(after.to_json()))
    assert (found["earned_wei"], found["claimable"][0]["amount_wei"]) == (str(2 * share), str(share))
    assert found["claimable"][0]["leaf"]["cumulative_wei"] == str(2 * share)
    ledger.story.claim(1, share, round_=2)
    ledger.step()
    assert rows.earnings(address(1)).claimable == ()
    nobody = rows.earnings(address(50))
    assert (nobody.earned_wei, nobody.claimed_wei, nobody.claimable) == (0, 0, ())


def test_nodes_and_the_state_of_the_index(ledger: Ledger, rows: LedgerRows) -> None:
    (node,) = rows.nodes()
    assert node.to_json()["peer_key"] == hex32("key 1")
    state = rows.index_state()
    assert (state.chain_id, state.indexed_block, state.missing_evidence) == (31337, ledger.chain.head(), 0)
    assert rows.indexed_block() == ledger.chain.head()


def test_a_reader_sees_what_the_writer_adds(ledger: Ledger, rows: LedgerRows) -> None:
    ledger.story.open_round()
    ledger.story.contribute()
    assert ids(rows, job=1, round_=4) == []
    ledger.step()
    assert ids(rows, job=1, round_=4) == ["1.4.0", "1.4.1", "1.4.2"]


def test_it_reads_after_the_node_has_gone(ledger: Ledger) -> None:
    ledger.indexer.close()
    with open_ledger(ledger.path) as rows:
        assert len(rows.jobs()) == 2


def test_it_reads_where_nothing_can_be_written(ledger: Ledger) -> None:
    """SQLite wants a file beside a WAL database; a copy on a read-only medium has no room for one."""
    ledger.indexer.close()
    folder = ledger.path.parent
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere")
        with open_ledger(ledger.path) as rows:
            assert len(rows.jobs()) == 2
    finally:
        folder.chmod(0o700)


def test_a_reader_cannot_write(rows: LedgerRows) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        rows._db.execute("DELETE FROM jobs")


def test_no_ledger_yet(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(NodeNotRunning, match="no ledger") as missing:
        open_ledger(path)
    assert missing.value.help_command.startswith("dfl-node start")
    assert not path.exists()
    path.touch()
    with pytest.raises(NodeNotRunning, match="empty"):
        open_ledger(path)


def test_what_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(os.urandom(8192))
    with pytest.raises(UsageError, match="cannot be opened"):
        open_ledger(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE others (x)")
        db.commit()
    with pytest.raises(UsageError, match="not a ledger"):
        open_ledger(path)
