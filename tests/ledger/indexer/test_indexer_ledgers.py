"""The indexer over the twin and over a real chain: what it derives is what the contracts say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dfl_ledger.evidence import Evidence
from dfl_ledger.indexer import Indexer
from dfl_ledger.ledger import Ledger
from dfl_ledger.query import LedgerRows, open_ledger
from dfl_ledger.records import AssetKind, JobId, Opening
from tests.conformance.ledger_bench import (
    BOND,
    MILLI,
    SCORED,
    alike,
    bench,
    judge,
    open_job,
    opening_of,
    play,
    score,
    settlement_of,
    show,
    words,
)
from tests.conformance.ledger_money import mint
from tests.conformance.ledger_story import BUDGET, ETHER, STAKE, World, cid, member, state
from tests.conformance.ledger_story import whole_life_of_a_job as live
from tests.ledger.conftest import ChainWorld, MemoryWorld


def evidence_of(rows: LedgerRows, job: JobId, round_: int) -> Evidence:
    """As a settler makes it from the ledger's rows alone."""
    before = rows.settled_before(job, round_)
    previous = () if before is None else rows.leaves(job, before.round)
    return Evidence.of(rows.round_facts(job, round_), previous, validation=None, method="shapley")


class Following:
    """An indexer on a ledger, and what it has written."""

    def __init__(self, ledger: Ledger, path: Path, start_block: int, **options: int) -> None:
        self._indexer = Indexer(path, ledger, deployment_key="test", start_block=start_block, **options)
        self.rows = open_ledger(path)

    def catch_up(self) -> None:
        while self._indexer.lag():
            self._indexer.step()

    def settle(self, settler: Ledger, job: JobId, round_: int) -> Evidence:
        """Settle what is scored, and add its evidence."""
        self.catch_up()
        found = evidence_of(self.rows, job, round_)
        at = cid(f"evidence {job}.{round_}")
        settler.settle(found.settlement(at))
        assert not self._indexer.add_evidence(found, at)
        self.catch_up()
        assert self._indexer.missing_evidence() == []
        return found

    def close(self) -> None:
        self.rows.close()
        self._indexer.close()


def check_rounds_are_settled_and_claimed(world: World, path: Path) -> None:
    with bench(world, 20, 30, 50) as judges:
        a, b = member(world), member(world)
        start = a.head()
        data = mint(a, AssetKind.DATASET)
        job = a.create_job(replace(SCORED, rounds=2, data_bps=1000, evaluator_bps=500))
        on = Following(a, path, start)
        a.join(job, [data])
        b.join(job)
        compute_wei, data_wei, seat_wei = BUDGET * 85 // 100, BUDGET // 10, BUDGET * 5 // 100 // 3
        claimable_at = 0
        for round_, worths in ((1, (3 * MILLI, MILLI, 7)), (2, (0, 5 * MILLI, 7))):
            played = play(job, (a, b), (data,))
            on.catch_up()
            assert on.rows.unsettled_rounds(job) == (round_,)
            shown = score(judges, played, alike(judges, (*worths, 1)))
            found = on.settle(judges[0], job, round_)
            facts = on.rows.round_facts(job, round_)
            assert facts.medians == worths
            assert [ballot.vector for ballot in facts.ballots] == [shown[seat] for seat in sorted(shown)]
            settled = a.settlement(job, round_)
            assert settled is not None
            assert settled.payees == len(facts.payees) == a.payee_count(job)
            assert on.rows.settled_before(job, round_ + 1) == found.settlement(
                cid(f"evidence {job}.{round_}")
            )
            assert on.rows.opening(job, round_) == Opening(
                found.score_tree.root, found.score_tree.total, judges[0].address
            )
            claimable_at = settled.claimable_at
            assert all(due.round < round_ for due in on.rows.claimable(a.address, claimable_at - 1))

        world.reach(claimable_at)
        work = compute_wei * 3 // 4
        for ledger, earned in (
            (a, {0: work, data: 2 * data_wei}),
            (b, {0: compute_wei // 4 + compute_wei}),
            *((judge_, {0: 2 * seat_wei}) for judge_ in judges),
        ):
            due = on.rows.claimable(ledger.address, claimable_at)
            assert {claim.leaf.asset: claim.amount_wei for claim in due} == earned
            before_wei = ledger.balance_wei(ledger.address)
            for claim in due:
                ledger.claim(claim.job, claim.round, claim.leaf, claim.proof)
            assert ledger.balance_wei(ledger.address) - before_wei == sum(earned.values())
            on.catch_up()
            paid = on.rows.earnings(ledger.address)
            assert (paid.earned_wei, paid.claimed_wei, paid.claimable) == (*(sum(earned.values()),) * 2, ())
        check_job_rows(a, on.rows, job)
        on.close()


def check_what_was_judged(world: World, path: Path) -> None:
    """Seats, audits, bans, offences, slashes, and a settlement that was overturned."""
    start = world.wallet().head()
    with bench(world, 20, 30, 50) as judges:
        requester, job, nodes = open_job(world, replace(SCORED, audits=1), 3)
        on = Following(requester, path, start)
        played = play(job, nodes)
        silent = judges[0]
        shown = judge(judges, played, alike(judges[1:], (90 * MILLI, MILLI, 2 * MILLI, -1, 1)))
        world.reach(requester.panel(job, 1).commit_until)
        show(judges, played, shown)
        seats = requester.seats(job, 1)
        seat = next(at for at, own in enumerate(seats) if own.evaluator == silent.address)
        requester.punish_seat(job, 1, 0, seat)
        guilty = nodes[requester.audited_index(job, 1, 0)]
        guilty.open_shard(job, 1, 0, cid("boxes"))
        requester.accuse(job, 1, 0, guilty.address, words(played, shown, 3))
        on.catch_up()
        rows = on.rows
        panel = rows.panel(job, 1)
        assert panel is not None
        assert [(own.evaluator, own.weight_wei) for own in panel.seats] == [
            (own.evaluator, own.weight) for own in seats
        ]
        assert [own.vector for own in panel.seats] == [shown.get(at) for at in range(3)]
        assert [at for at, own in enumerate(panel.seats) if own.withheld_tx] == [seat]
        assert (panel.subjects, rows.panel(job, 1, 1), rows.seats_of(silent.address)) == (
            5,
            None,
            ((job, 1, 0, seat),),
        )
        (audit,) = rows.audits(job)
        assert (audit.node, audit.boxes, audit.upheld, audit.appealed) == (
            *(guilty.address, str(cid("boxes"))),
            *(None, False),
        )
        assert rows.bans(job) == {guilty.address}
        assert guilty.address not in rows.members(job, 1)
        assert set(rows.shards(job)) == {node.address for node in nodes}

        facts = rows.round_facts(job, 1)
        assert facts.medians == (90 * MILLI, MILLI, 2 * MILLI)
        assert facts.ballots[seat].vector is None
        assert facts.judges == {ledger.address for ledger in judges[1:]}
        found = evidence_of(rows, job, 1)
        lie = [replace(found.leaves[0], score=7), *found.leaves[1:]]
        settlement, tree = settlement_of(played, lie, found.score_tree)
        judges[1].settle(settlement)
        on.catch_up()
        assert rows.unsettled_rounds(job) == ()
        assert rows.opening(job, 1) == opening_of(settlement, judges[1])
        scores = found.score_tree
        requester.challenge_reward(
            job,
            1,
            opening_of(settlement, judges[1]),
            0,
            *(tree.leaves[0], tree.proof(0), scores.leaves[0], scores.proof(0)),
        )
        world.reach(audit.appeal_until or 0)
        requester.decide(job, 1, 0, [])
        on.catch_up()
        assert rows.unsettled_rounds(job) == (1,)
        assert rows.opening(job, 1) is None
        (fallen,) = rows.overturned(job)
        assert (fallen.settler, fallen.challenger, fallen.why, fallen.root) == (
            *(judges[1].address, requester.address),
            *("reward", settlement.root),
        )
        assert [(own.kind, own.node) for own in rows.offences(job)] == [
            ("scores withheld", silent.address),
            ("wrong settlement", judges[1].address),
            ("audit failed", guilty.address),
        ]
        assert [(own.node, own.slashed_wei, own.reward_wei) for own in rows.slashes()] == [
            (node.address, BOND, BOND // 10) for node in (silent, judges[1], guilty)
        ]
        stakes = {node.node: node.stake_wei for node in rows.nodes()}
        assert (stakes[silent.address], stakes[guilty.address]) == (20 * ETHER - BOND, STAKE - BOND)
        (audit,) = rows.audits(job, 1)
        assert audit.upheld is True
        on.settle(judges[2], job, 1)
        assert rows.opening(job, 1) is not None
        on.close()


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


def check_job_rows(ledger: Ledger, rows: LedgerRows, job: JobId) -> None:
    """The row of a job says what the contract says."""
    row, now = rows.job(job), state(ledger, job)
    assert row is not None
    assert (row.phase, row.completed, row.round) == (now.phase.name.lower(), now.completed, now.round)
    assert (row.model, row.spec) == (str(now.model), str(now.terms.spec))
    assert (row.settled_wei, row.refunded_wei) == (now.spent_wei, now.refunded_wei)
    assert (row.requester, row.target_rounds) == (now.requester, now.terms.rounds)


CHECKS = (check_rounds_are_settled_and_claimed, check_what_was_judged, check_a_whole_life)


@pytest.mark.parametrize("check", CHECKS)
def test_on_the_twin(tmp_path: Path, check: Callable[[World, Path], None]) -> None:
    check(MemoryWorld(), tmp_path / "ledger.sqlite")


@pytest.mark.parametrize("check", CHECKS)
def test_on_a_real_chain(world: ChainWorld, tmp_path: Path, check: Callable[[World, Path], None]) -> None:
    check(world, tmp_path / "ledger.sqlite")
