"""What the indexer derives of jobs with standing members and of laps: parents, members, who is awaited."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dfl_ledger.indexer import Indexer
from dfl_ledger.ledger import Ledger
from dfl_ledger.query import LedgerRows, open_ledger
from dfl_ledger.records import JobId, JobTerms
from tests.conformance.ledger_bench import Played, alike, bench, score
from tests.conformance.ledger_modes import ASYNC, CHAINED
from tests.conformance.ledger_story import (
    BUDGET,
    ETHER,
    TERMS,
    World,
    cid,
    commit_all,
    member,
    play_round,
    reveal_all,
    salt,
    state,
    turns,
    work,
)
from tests.ledger.conftest import ChainWorld, MemoryWorld
from tests.ledger.indexer.test_indexer_ledgers import check_job_rows, evidence_of

Check = Callable[[World, Path], None]
POT = BUDGET - BUDGET // 10_000  # the evaluators have one basis point


class Indexed:
    """A job of three members, and its rows up to the newest block whenever they are asked for."""

    def __init__(self, world: World, path: Path, terms: JobTerms, judges: list[Ledger]) -> None:
        self.judges = judges
        self.members = [member(world) for _ in range(3)]
        reader = self.members[0]
        self.indexer = Indexer(path, reader, deployment_key="test", start_block=reader.head())
        self._rows = open_ledger(path)
        self.job = reader.create_job(terms)
        for ledger in self.members:
            ledger.join(self.job)

    @property
    def rows(self) -> LedgerRows:
        while self.indexer.lag():
            self.indexer.step()
        return self._rows

    def publish(self, model: str) -> Ledger:
        publisher = turns(self.members, self.job)[0][1]
        publisher.publish_model(self.job, state(publisher, self.job).round, cid(model))
        return publisher

    def settle(self, publisher: Ledger, round_: int, scores: tuple[int, ...]) -> list[int | None]:
        """What each contribution earned, by the scores of everybody on the bench."""
        played = Played(self.job, round_, self.members, publisher)
        score(self.judges, played, alike(self.judges, (*scores, 1)))
        evidence = evidence_of(self.rows, self.job, round_)
        publisher.settle(evidence.settlement(cid(f"evidence {round_}")))
        assert self.rows.unsettled_rounds(self.job) == ()
        assert self.indexer.add_evidence(evidence, cid(f"evidence {round_}"))
        return [row.reward_wei for row in self.rows.revealed(self.job, round_)]

    def close(self) -> None:
        self._rows.close()
        self.indexer.close()


@contextmanager
def indexed(world: World, path: Path, terms: JobTerms) -> Iterator[Indexed]:
    scored = replace(terms, evaluators=3, evaluator_bps=1, bond_wei=ETHER, score_window_s=300)
    with bench(world, 20, 30, 50) as judges:
        found = Indexed(world, path, scored, judges)
        yield found
        found.close()


def check_updates_on_older_models_are_settled(world: World, path: Path) -> None:
    with indexed(world, path, ASYNC) as on:
        a, b, c = on.members
        older = replace(work(c, on.job), round=2)
        assert on.settle(play_round((a, b), on.job), 1, (1, 1)) == [POT // 2, POT // 2]
        newest = state(a, on.job).model
        c.commit(older, salt(c))
        commit_all((b,), on.job)
        c.reveal(older, salt(c))
        reveal_all((b,), on.job)
        publisher = on.publish("model 2")
        assert on.rows.models(on.job, 2) == (newest, cid("model 2"))
        assert [row.parent for row in on.rows.revealed(on.job, 2)] == [str(ASYNC.model), str(newest)]
        assert on.settle(publisher, 2, (1, 3)) == [POT // 4, POT * 3 // 4]


def check_members_stand(world: World, path: Path) -> None:
    with indexed(world, path, ASYNC) as on:
        a, b, c = on.members
        late = member(world)
        late.join(on.job)
        everybody = tuple(ledger.address for ledger in (a, b, c))
        assert on.rows.members(on.job, 1) == everybody
        assert on.rows.awaited(on.job) == tuple(sorted(everybody))
        play_round((a, b), on.job)
        commit_all((c,), on.job)
        assert on.rows.members(on.job, 2) == (*everybody, late.address)
        assert on.rows.awaited(on.job) == tuple(sorted((a.address, b.address, late.address)))
        assert on.rows.members(JobId(on.job + 1), 2) == ()


def check_a_lap_row_by_row(world: World, path: Path) -> None:
    with indexed(world, path, CHAINED) as on:
        reader = on.members[0]
        order = []
        for place, accept in enumerate((True, False, True)):
            lease = reader.lease(on.job)
            assert lease is not None
            assert on.rows.awaited(on.job) == (lease.node,)
            row = on.rows.job(on.job)
            assert row is not None
            assert (row.mode, row.deadline) == ("chained", lease.until)
            holder = next(ledger for ledger in on.members if ledger.address == lease.node)
            world.reach(reader.now() + 1)
            holder.hop(on.job, 1, accept, cid(f"hop {place}"), 64)
            order.append(holder.address)
            check_job_rows(reader, on.rows, on.job)
        assert on.rows.awaited(on.job) == ()
        hops = on.rows.contributions(job=on.job, kind="hop")
        assert [(hop.node, hop.cid) for hop in hops] == [
            (node, str(cid(f"hop {place}"))) for place, node in enumerate(order)
        ]
        # the second hop did not build on the first, the third built on the second
        assert [hop.parent for hop in hops] == [str(m) for m in (TERMS.model, TERMS.model, cid("hop 1"))]
        publisher = on.publish("hop 2")
        check_job_rows(reader, on.rows, on.job)
        assert on.settle(publisher, 1, (3, 0, 1)) == [POT * 3 // 4, 0, POT // 4]


CHECKS = (check_updates_on_older_models_are_settled, check_members_stand, check_a_lap_row_by_row)


@pytest.mark.parametrize("check", CHECKS)
def test_on_the_twin(tmp_path: Path, check: Check) -> None:
    check(MemoryWorld(), tmp_path / "ledger.sqlite")


@pytest.mark.parametrize("check", CHECKS)
def test_on_a_real_chain(world: ChainWorld, tmp_path: Path, check: Check) -> None:
    check(world, tmp_path / "ledger.sqlite")
