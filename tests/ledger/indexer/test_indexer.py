"""The indexer: complete, resumable, and clear about what it cannot read."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.errors import (
    ChainUnreachable,
    StoreUnavailable,
    UsageError,
    VerificationFailed,
    WrongChain,
)
from dfl_ledger.query import open_ledger
from tests.ledger.fake_chain import (
    BUDGET_WEI,
    FakeChain,
    JobStory,
    address,
    cid,
    hex32,
    register,
)
from tests.ledger.indexer.conftest import DERIVED, OpenIndexer, catch_up, dump, three_rounds


# -- completeness -----------------------------------------------------------------------------------------
def test_every_event_once_and_in_order(chain: FakeChain, path: Path, indexer_of: OpenIndexer) -> None:
    for node in (1, 2, 3):
        register(chain, node)
    three_rounds(chain).end()
    indexer = indexer_of(chain, span_blocks=4)
    assert catch_up(indexer) == chain.all_events()
    assert (indexer.indexed, indexer.lag()) == (chain.head(), 0)
    assert indexer.step() == []
    raw = dump(path, "events")["events"]
    assert [json.loads(row[7]) for row in raw] == [event.args for event in chain.all_events()]


def test_derived_rows(chain: FakeChain, path: Path, indexer_of: OpenIndexer) -> None:
    register(chain, 1, boot=("/ip4/127.0.0.1/tcp/4001",))
    story = JobStory(chain)
    story.create()
    story.open_round()
    chain.mine(("RoundVoided", {"job": 1, "round": 1, "phase": 2}))
    story.whole_round()
    chain.mine(("NodeUnbonding", {"node": address(1), "unbondAt": 77}))
    chain.mine(("JobCancelRequested", {"job": 1}))
    story.end(phase=7)
    chain.mine(("Refunded", {"job": 1, "to": address(0), "amount": 2 * BUDGET_WEI}))
    chain.mine(("Refunded", {"job": 1, "to": address(0), "amount": 5}))
    catch_up(indexer_of(chain))
    with open_ledger(path) as rows:
        job = rows.job(1)
        node = rows.nodes()[0]
        assert rows.open_jobs() == ()
    assert job is not None
    assert (job.phase, job.completed, job.round, job.contributions) == ("cancelled", 1, 2, 3)
    assert (job.model, job.cancel_requested) == (str(cid("model 1.2")), True)
    assert job.refunded_wei == 2 * BUDGET_WEI + 5
    assert [(r.round, r.state, r.expected, r.commits, r.contributions) for r in job.rounds] == [
        (1, "void", 3, 0, 0),
        (2, "published", 3, 3, 3),
    ]
    assert (job.rounds[1].parent, job.rounds[1].aggregator) == (str(cid("model 0")), address(1))
    assert (node.state, node.unbond_at, node.boot_addrs) == ("unbonding", 77, ("/ip4/127.0.0.1/tcp/4001",))


def test_numbers_as_large_as_solidity_has_them(chain: FakeChain, path: Path, indexer_of: OpenIndexer) -> None:
    story = JobStory(chain, nodes=(1,))
    story.create()
    story.open_round()
    huge = {"kind": 0, "index": 0, "update": hex32("u"), "parent": hex32("p"), "samples": 2**64 - 1}
    chain.mine(("ContributionRevealed", {"job": 1, "round": 1, "node": address(1)} | huge))
    register(chain, 1, stake_wei=2**128 - 1)
    paid = {"job": 1, "round": 1, "account": address(1), "asset": 2**256 - 1, "amount": 2**128 - 1}
    chain.mine(("Claimed", paid))
    catch_up(indexer_of(chain))
    with open_ledger(path) as rows:
        assert rows.revealed(1, 1)[0].samples == 2**64 - 1
        assert rows.nodes()[0].stake_wei == 2**128 - 1
        assert rows.claims(address(1))[0].asset == 2**256 - 1


def test_unknown_events_are_kept_raw(chain: FakeChain, path: Path, indexer_of: OpenIndexer) -> None:
    chain.mine(("Transfer", {"from": address(1), "to": address(2), "value": 2**200}))
    assert len(catch_up(indexer_of(chain))) == 1
    assert len(dump(path, "events")["events"]) == 1


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("ModelPublished", {"job": 1, "round": 1, "aggregator": address(1), "model": "0x1234"}),
        ("ModelPublished", {"job": 1, "round": 1, "aggregator": address(1)}),
        ("PhaseChanged", {"job": "1", "round": 1, "phase": 2, "deadline": 3}),
        ("JobEnded", {"job": 1, "phase": 99}),
        ("RoundOpened", {"job": 5, "round": 1, "parent": hex32("p"), "expected": 1, "deadline": 3}),
        ("NodeRegistered", {"node": address(1), "peerKey": "0x", "stake": 1, "bootAddrs": "x"}),
        ("Refunded", {"job": 9, "to": address(1), "amount": 1}),
    ],
)
def test_events_no_contract_of_ours_emits(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer, name: str, args: dict[str, Any]
) -> None:
    JobStory(chain).create()
    chain.mine((name, args))
    indexer = indexer_of(chain)
    with pytest.raises(VerificationFailed, match=f"{name} in block 2"):
        indexer.step()
    assert indexer.indexed == 0
    assert dump(path, "events", "jobs") == {"events": [], "jobs": []}


def test_events_outside_the_range_asked_for_are_refused(chain: FakeChain, indexer_of: OpenIndexer) -> None:
    JobStory(chain).create()
    chain.mine_empty(5)
    first = chain.all_events()[0]
    indexer = indexer_of(chain, span_blocks=2)
    chain.answer = [replace(first, block=9)]
    with pytest.raises(VerificationFailed, match="nobody asked for"):
        indexer.step()


# -- the endpoint's limits --------------------------------------------------------------------------------
def test_the_range_adapts_to_the_endpoint(chain: FakeChain, indexer_of: OpenIndexer) -> None:
    three_rounds(chain)
    chain.mine_empty(100)
    chain.max_range = 7
    indexer = indexer_of(chain, span_blocks=1000)
    assert catch_up(indexer) == chain.all_events()
    assert max(end - start + 1 for start, end in chain.requests) <= 7
    chain.max_range = 10**9
    chain.mine_empty(300)
    catch_up(indexer)
    assert max(end - start + 1 for start, end in chain.requests) > 7  # grown again


def test_a_dead_endpoint_is_not_taken_for_a_narrow_one(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    three_rounds(chain)
    indexer = indexer_of(chain)
    chain.down = True
    with pytest.raises(ChainUnreachable):
        indexer.step()
    chain.down, chain.max_range = False, 0
    with pytest.raises(ChainUnreachable):
        indexer.step()
    assert dump(path, "events")["events"] == []
    chain.max_range = 10**9
    assert catch_up(indexer) == chain.all_events()


# -- resuming ---------------------------------------------------------------------------------------------
def test_a_second_run_goes_on_where_the_first_ended(chain: FakeChain, indexer_of: OpenIndexer) -> None:
    story = three_rounds(chain)
    first = indexer_of(chain)
    catch_up(first)
    first.close()
    before = len(chain.all_events())
    story.end()
    again = indexer_of(chain)
    assert again.indexed == chain.head() - 1
    assert catch_up(again) == chain.all_events()[before:]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.ledger.fake_chain import FakeChain, JobStory
from dfl_ledger import projection
from dfl_ledger.indexer import Indexer

path, die_after = Path(sys.argv[1]), int(sys.argv[2])
chain = FakeChain()
for job in range(1, 6):
    story = JobStory(chain, job)
    story.create()
    for _ in range(3):
        story.whole_round()

record, done = projection.record, 0

def record_and_die(db, event):
    global done
    record(db, event)
    done += 1
    if done == die_after:
        os.kill(os.getpid(), signal.SIGKILL)

projection.record = record_and_die
indexer = Indexer(path, chain.ledger, deployment_key="test", start_block=1, span_blocks=5)
while indexer.lag():
    indexer.step()
"""


@pytest.mark.parametrize("die_after", [1, 37, 151])
def test_killed_in_the_middle_of_a_step(path: Path, indexer_of: OpenIndexer, die_after: int) -> None:
    chain = FakeChain()
    for job in range(1, 6):
        three_rounds(chain, job)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(die_after)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "ledger")))},
        timeout=30,
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    indexer = indexer_of(chain, span_blocks=5)
    assert indexer.indexed < chain.head()
    before = len(dump(path, "events")["events"])
    assert catch_up(indexer) == chain.all_events()[before:]
    whole = path.with_name("whole.sqlite")
    catch_up(indexer_of(chain, whole))
    assert dump(path, "events", *DERIVED) == dump(whole, "events", *DERIVED)


def test_a_second_writer_neither_doubles_nor_skips(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    three_rounds(chain)
    one, two = indexer_of(chain, span_blocks=3), indexer_of(chain, span_blocks=3)
    for _ in range(20):
        one.step()
        two.step()
    assert one.lag() == two.lag() == 0
    assert len(dump(path, "events")["events"]) == len(chain.all_events())


# -- the file ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [{"chain_id": 1}, {"deployment_key": "else"}, {"start_block": 2}],
    ids=lambda change: next(iter(change)),
)
def test_the_ledger_of_another_chain_is_refused(
    chain: FakeChain, indexer_of: OpenIndexer, change: dict[str, Any]
) -> None:
    indexer_of(chain).close()
    chain.chain_id = change.pop("chain_id", chain.chain_id)
    with pytest.raises(WrongChain, match="ledger at"):
        indexer_of(chain, **change)


def test_a_file_that_is_no_ledger_is_refused(path: Path, chain: FakeChain, indexer_of: OpenIndexer) -> None:
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(UsageError, match="cannot be opened"):
        indexer_of(chain)
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE others (x)")
        db.commit()
    with pytest.raises(UsageError, match="not a ledger"):
        indexer_of(chain)
    path.unlink()
    indexer_of(chain).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UsageError, match="another version"):
        indexer_of(chain)


def test_a_full_disk_is_said_plainly(path: Path, chain: FakeChain, indexer_of: OpenIndexer) -> None:
    indexer = indexer_of(chain)
    indexer._db.execute("PRAGMA max_page_count = 1")
    for job in range(1, 60):
        JobStory(chain, job).create()
    with pytest.raises(StoreUnavailable, match="full"):
        catch_up(indexer)
    indexer._db.execute("PRAGMA max_page_count = 100000")
    assert catch_up(indexer) == chain.all_events()


@pytest.mark.parametrize("wrong", [{"span_blocks": 0}, {"finality_blocks": 0}, {"start_block": -1}])
def test_impossible_settings(chain: FakeChain, indexer_of: OpenIndexer, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        indexer_of(chain, **wrong)
