"""The chain's RPC endpoint is away, slow, or forgets to answer; the disk is full: none of it is final."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

import pytest
import trio

from dfl_ledger.errors import StoreUnavailable, TimedOut
from dfl_ledger.records import JobId, Phase
from dfl_node.rounds import machine as rounds
from dfl_node.rounds.vocabulary import Work
from tests.node.modes.world import POLL_S, When, World, play

OUTAGE_S = 20.0
# After its deadline a phase waits for the last in the queue of those who advance it; each may have to try
# again once, after its own pause, and after the endpoint's.
GRACE_S = rounds.ADVANCE_GRACE_S + 3 * rounds.ADVANCE_SPREAD_S + 2 * rounds.RETRY_S + 4 * POLL_S


def check_deadlines(world: World, grace_s: float) -> None:
    """No phase of the job outlived its deadline by more than the grace."""
    changes = [
        (world.mined_at(event), int(str(event.args["deadline"])))
        for event in world.job_events("PhaseChanged")
    ]
    ends = [at for at, _ in changes[1:]] + [world.mined_at(world.job_events("JobEnded")[0])]
    for (_, deadline), ended in zip(changes, ends, strict=True):
        assert ended <= deadline + grace_s


@pytest.mark.parametrize(
    "phase", [Phase.OPEN, Phase.COMMIT, Phase.REVEAL, Phase.AGGREGATE], ids=lambda phase: phase.name
)
def test_a_job_survives_an_rpc_that_is_down_for_twenty_seconds_in_any_phase(
    phase: Phase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {
        Phase.OPEN: "join",
        Phase.COMMIT: "commit",
        Phase.REVEAL: "reveal",
        Phase.AGGREGATE: "publish_model",
    }[phase]

    async def story(world: World) -> None:
        def go_down(_: object) -> None:
            world.rpc_down_until = world.now() + OUTAGE_S

        trap = world.trap(call, When.BEFORE, go_down, round=1 if phase is Phase.OPEN else 2)
        await world.submit()
        state = await world.until_over()
        assert trap.sprung
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        check_deadlines(world, GRACE_S + OUTAGE_S)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_an_rpc_that_is_down_for_longer_than_every_window_ends_the_job_in_a_named_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit()
        await world.until_round(2, Phase.COMMIT)
        world.rpc_down_until = world.now() + 1000
        state = await world.until_over()
        assert state.phase in (Phase.COMPLETED, Phase.FAILED)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_every_phase_ends_within_the_grace_of_its_deadline_when_a_node_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.machines["c"].blocked |= {"commit", "advance"}
        await world.submit()
        state = await world.until_over()
        assert state.phase is Phase.COMPLETED
        check_deadlines(world, GRACE_S)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "call", ["join", "commit", "reveal", "publish_model", "advance", "settle", "refund", "claim"]
)
def test_a_transaction_whose_answer_is_lost_is_neither_repeated_nor_forgotten(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Counter[str]()

    def lose_first(name: str) -> bool:
        lost[name] += name == call
        return name == call and lost[name] <= 2

    async def story(world: World) -> None:
        world.lose_answer = lose_first
        if call == "advance":
            world.machines["c"].blocked.add("commit")
        await world.submit()
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        if call == "claim":
            for node in (world.running["a"], world.running["b"]):
                with pytest.raises(Exception, match="answer was lost"):
                    await node.operator.claim(None)
        assert lost[call]
        world.lose_answer = lambda name: False
        if call != "claim":
            await world.check_end()
        else:
            await world.claim_all()
            world.check_money()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("failure", [TimedOut("the RPC is slow"), StoreUnavailable("the disk is full")])
def test_a_job_is_not_given_up_because_one_look_at_the_chain_failed(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit()
        await world.until_round(2, Phase.COMMIT)
        fails = 3

        def fail_thrice(*_: object) -> Phase:
            nonlocal fails
            if fails:
                fails -= 1
                raise failure
            return kept(*_)

        rows = world.running["a"].parts.rows
        kept = rows.unsettled_rounds
        monkeypatch.setattr(rows, "unsettled_rounds", fail_thrice)
        state = await world.until_over()
        assert fails == 0
        assert world.contributions("a") == [1, 2, 3]
        assert state.phase is Phase.COMPLETED
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_job_that_begins_while_the_disk_is_full_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        journal, fails = world.running["a"].parts.journal, 3
        kept = journal.work

        def fail_thrice(job: JobId) -> Work | None:
            nonlocal fails
            if fails:
                fails -= 1
                raise StoreUnavailable("the disk is full")
            return kept(job)

        monkeypatch.setattr(journal, "work", fail_thrice)
        await world.submit()
        state = await world.until_over()
        assert fails == 0
        assert world.contributions("a") == [1, 2, 3]
        assert state.phase is Phase.COMPLETED
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_full_disks_cost_time_and_no_node_and_no_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No journal can be written for a while: nothing is committed meanwhile, and all go on afterwards."""

    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def story(world: World) -> None:
        await world.submit()
        await world.until_round(2, Phase.COMMIT)
        with monkeypatch.context() as full:
            full.setattr(sqlite3, "connect", refuse)
            await trio.sleep(8)
            committed = [e for e in world.job_events("ContributionCommitted") if e.args["round"] == 2]
            assert not committed
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert [world.contributions(name) for name in "abc"] == [[1, 2, 3]] * 3
        await world.check_end()

    play(story, tmp_path, monkeypatch)
