"""The indexer over the twin and over a real chain: what it derives is what the contracts say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dfl_ledger.evidence import Evidence, EvidenceEntry, split
from dfl_ledger.indexer import Indexer
from dfl_ledger.ledger import Ledger
from dfl_ledger.query import LedgerRows, open_ledger
from dfl_ledger.records import Address, Cid, JobId
from tests.conformance.ledger import BUDGET, TERMS, World, cid, member, play_round, state
from tests.conformance.ledger import whole_life_of_a_job as live
from tests.ledger.conftest import ChainWorld, MemoryWorld


def evidence_of(rows: LedgerRows, job: JobId, round_: int, scores: Sequence[int]) -> Evidence:
    """As a settler makes it from the ledger's rows alone."""
    parent, model = rows.models(job, round_)
    entries = tuple(
        EvidenceEntry(Address(row.node), place, Cid.parse(row.cid), row.samples, True, "", score)
        for place, (row, score) in enumerate(zip(rows.revealed(job, round_), scores, strict=True))
    )
    previous = rows.settlements(job)
    before = () if not previous else rows.leaves(job, previous[-1]["round"])
    return Evidence(
        job=job,
        round=round_,
        parent=parent,
        model=model,
        validation=None,
        method="shapley",
        round_budget_wei=BUDGET,
        entries=entries,
        leaves=split(BUDGET, entries, before),
    )


def check_rounds_are_settled_and_claimed(world: World, path: Path) -> None:
    a, b = member(world), member(world)
    start = a.head()
    job = a.create_job(replace(TERMS, rounds=2))
    indexer = Indexer(path, a, deployment_key="test", start_block=start)
    rows = open_ledger(path)

    def catch_up() -> None:
        while indexer.lag():
            indexer.step()

    for ledger in (a, b):
        ledger.join(job)
    claimable_at = 0
    for round_, scores in ((1, (3, 1)), (2, (0, 5))):
        publisher = play_round((a, b), job)
        catch_up()
        assert rows.unsettled_rounds(job) == (round_,)
        evidence = evidence_of(rows, job, round_, scores)
        publisher.settle(evidence.settlement(cid(f"evidence {round_}")))
        assert not indexer.add_evidence(evidence, cid(f"evidence {round_}"))
        catch_up()
        assert indexer.missing_evidence() == []
        settled = a.settlement(job, round_)
        assert settled is not None
        assert rows.settled_before(job, round_ + 1) == settled[0]
        claimable_at = settled[1]
        too_early = rows.claimable(a.address, claimable_at - 1)
        assert all(due.round < round_ for due in too_early)

    world.reach(claimable_at)
    for ledger, earned_wei in ((a, BUDGET * 3 // 4), (b, BUDGET // 4 + BUDGET)):
        (due,) = rows.claimable(ledger.address, claimable_at)
        assert (due.round, due.amount_wei) == (2, earned_wei)
        before_wei = ledger.balance_wei(ledger.address)
        ledger.claim(due.job, due.round, due.leaf, due.proof)
        assert ledger.balance_wei(ledger.address) - before_wei == earned_wei
        catch_up()
        found = rows.earnings(ledger.address)
        assert (found.earned_wei, found.claimed_wei, found.claimable) == (earned_wei, earned_wei, ())
    check_job_rows(a, rows, job)
    rows.close()
    indexer.close()


def check_job_rows(ledger: Ledger, rows: LedgerRows, job: JobId) -> None:
    """The row of a job says what the contract says."""
    row, now = rows.job(job), state(ledger, job)
    assert row is not None
    assert (row.phase, row.completed, row.round) == (now.phase.name.lower(), now.completed, now.round)
    assert (row.model, row.spec) == (str(now.model), str(now.terms.spec))
    assert (row.settled_wei, row.refunded_wei) == (now.spent_wei, now.refunded_wei)
    assert (row.requester, row.target_rounds) == (now.requester, now.terms.rounds)


def check_a_whole_life(world: World, path: Path) -> None:
    reader = world.wallet()
    start = reader.head()
    job, _ = live(world)
    indexer = Indexer(path, reader, deployment_key="test", start_block=start, span_blocks=7)
    indexed = []
    while indexer.lag():
        indexed += indexer.step()
    assert indexed == reader.events(start, reader.head())
    with open_ledger(path) as rows:
        check_job_rows(reader, rows, job)
        found = rows.job(job)
        assert found is not None
        assert [(r.round, r.state, r.contributions) for r in found.rounds] == [
            (1, "settled", 2),
            (2, "void", 0),
            (3, "settled", 2),
        ]
        for node in rows.nodes():
            assert reader.node(node.node) is not None
    indexer.close()


def test_on_the_twin(tmp_path: Path) -> None:
    check_rounds_are_settled_and_claimed(MemoryWorld(), tmp_path / "rounds.sqlite")
    check_a_whole_life(MemoryWorld(), tmp_path / "life.sqlite")


@pytest.mark.parametrize("check", [check_rounds_are_settled_and_claimed, check_a_whole_life])
def test_on_a_real_chain(world: ChainWorld, tmp_path: Path, check: object) -> None:
    assert callable(check)
    check(world, tmp_path / "ledger.sqlite")
