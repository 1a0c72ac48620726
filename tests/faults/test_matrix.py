"""Every mode under every fault: the job completes, in time, and every wei is accounted for."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio

from dfl_ledger.records import Cid, Kind, Mode, Phase
from tests.faults.matrix import (
    CUT_S,
    DOWN_S,
    JOBS,
    STRUCK,
    Fault,
    begin,
    check_deadlines,
    end,
    entries,
    hopping,
    made_so_far,
    name_of,
    numbers,
    play,
    published,
    strike,
)
from tests.node.modes import pipelines
from tests.node.modes.machines import Running, When
from tests.node.modes.world import BUDGET_WEI, World

# What the evidence says of a liar's piece, or, in a pipeline, the run's record of why it was replaced.
WHY = {
    Fault.FLIPPED_BYTES: "wrong bytes from",
    Fault.WRONG_LAYOUT: "a header of [0-9]+ bytes",
    Fault.NAN: "NaN",
    Fault.REPLAYED: "is a piece of round [0-9]+ again",
}
WHY_OF_A_REPLAYED_HOP = "made the model worse|passes its parent on"


@pytest.fixture(scope="module")
def undisturbed() -> tuple[float, ...]:
    """The numbers of the model that a pipeline makes in the round in question when nothing happens."""
    found: list[tuple[float, ...]] = []
    job = JOBS[Mode.PIPELINE]

    async def story(world: World) -> None:
        await job.submit(world)
        await world.until_over()
        found.append(numbers(world, published(world, STRUCK)))

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        play(story, Path(folder), patch, trainers=job.trainers)
    return found[0]


def cells() -> list[Any]:
    """Every fault in every mode. Each fault in one mode, and each mode with several, in the fast suite."""
    return [
        pytest.param(
            mode,
            fault,
            id=f"{mode.name}-{fault.name}".lower(),
            marks=() if (row + column) % len(JOBS) == 0 else pytest.mark.long,
        )
        for row, mode in enumerate(JOBS)
        for column, fault in enumerate(Fault)
    ]


@pytest.mark.parametrize(("mode", "fault"), cells())
def test_a_job_survives(
    mode: Mode,
    fault: Fault,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: tuple[float, ...],
) -> None:
    job = JOBS[mode]

    async def story(world: World) -> None:
        await job.submit(world)
        victim = await job.at_work(world)
        struck_at, honest = world.now(), made_so_far(world, victim)
        await strike(world, mode, fault, victim)
        await world.until(lambda: world.state().phase.terminal, "the job ends")
        if fault is Fault.DISK_FULL_FOR_EVER:  # it cannot learn of the end, and has to be stopped
            world.kill(victim)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, job.rounds)
        check_deadlines(world, DOWN_S if fault is Fault.RPC_DOWN_FOR_ALL else 0.0)
        await world.check_end()
        if mode is Mode.PIPELINE:
            check_recovery(world, fault, victim, undisturbed)
        elif fault.is_a_lie:
            check_refusals(world, mode, fault, victim, struck_at, honest)

    play(story, tmp_path, monkeypatch, trainers=job.trainers)


def check_refusals(
    world: World, mode: Mode, fault: Fault, liar: str, struck_at: float, honest: frozenset[Cid]
) -> None:
    """The liar's pieces are refused for what is wrong with them, nobody else's are, and they earn nothing."""
    replayed_hop = mode is Mode.CHAINED and fault is Fault.REPLAYED
    why = WHY_OF_A_REPLAYED_HOP if replayed_hop else WHY[fault]
    if fault in (Fault.FLIPPED_BYTES, Fault.REPLAYED):  # what was sound when it was made, too
        honest = frozenset()
    refused = 0
    for entry in entries(world, since=struck_at):
        if entry.name != liar or entry.cid in honest:
            assert not entry.why
        else:
            assert re.search(why, entry.why), entry
            assert entry.reward_wei == 0
            refused += 1
    assert refused


def check_recovery(world: World, fault: Fault, victim: str, undisturbed: tuple[float, ...]) -> None:
    """A stage was lost and no data: the round's model is that of an undisturbed run."""
    if fault is Fault.REPLAYED:  # seen only when it is revealed: a model with a hole is none
        voided = {event.args["round"] for event in world.job_events("RoundVoided")}
        settled = {event.args["round"] for event in world.job_events("Settled")}
        assert STRUCK in voided
        assert not voided & settled
        return
    assert not world.job_events("RoundVoided")
    assert numbers(world, published(world, STRUCK)) == pytest.approx(undisturbed, abs=1e-5)
    record = pipelines.record(world, STRUCK)
    if fault.is_a_lie:
        assert any(re.search(WHY[fault], turn.why) for turn in record.turns)
        stages = pipelines.pieces(world, STRUCK, Kind.STAGE)
        assert victim not in {name_of(world, event.args["node"]) for event in stages}


def test_an_aggregator_that_is_cut_off_leaves_the_round_to_the_next_in_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own update is all it has: a model of that would take the budget of everybody's work."""
    cut_off: list[str] = []

    async def story(world: World) -> None:
        def cut_off_whoever_is_drawn(_: Running) -> None:
            revealed = [e for e in world.job_events("ContributionRevealed") if e.args["round"] == STRUCK]
            cut_off.append(name_of(world, revealed[world.state().draw].args["node"]))
            begin(world, Mode.SYNC, Fault.CUT_OFF, cut_off[0])

        world.trap("may_aggregate_at", When.AFTER, cut_off_whoever_is_drawn, round=STRUCK)
        await JOBS[Mode.SYNC].submit(world)
        await world.until(lambda: bool(cut_off), "an aggregator is drawn")
        await trio.sleep(CUT_S)
        await end(world, Fault.CUT_OFF, cut_off[0])
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, JOBS[Mode.SYNC].rounds)
        (by,) = (e for e in world.job_events("ModelPublished") if e.args["round"] == STRUCK)
        assert name_of(world, by.args["aggregator"]) != cut_off[0]
        # the model lacks its update, which may have come in time for those who judge
        whys = {entry.name: entry.why for entry in entries(world) if entry.round == STRUCK}
        late = whys.pop(cut_off[0])
        assert not late or "nobody delivered" in late
        assert list(whys.values()) == ["", ""]
        rewards = [entry.reward_wei for entry in entries(world) if entry.round == STRUCK]
        assert sum(rewards) <= BUDGET_WEI
        assert sorted(rewards)[1] > 0
        check_deadlines(world)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_lap_that_ends_with_a_hop_that_came_late_pays_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not among the pieces that were fetched, but there when the lap's models were measured."""

    async def story(world: World) -> None:
        await JOBS[Mode.CHAINED].submit(world)
        last = await hopping(world, position=2)
        begin(world, Mode.CHAINED, Fault.FLIPPED_BYTES, last)
        await world.until_round(STRUCK, Phase.AGGREGATE)
        await trio.sleep(2)  # by now it was asked once; who has lied is not asked again for this fetch
        await end(world, Fault.FLIPPED_BYTES, last)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, JOBS[Mode.CHAINED].rounds)
        (entry,) = (e for e in entries(world) if (e.round, e.name) == (STRUCK, last))
        assert entry.cid == published(world, STRUCK)
        assert not entry.why
        assert entry.reward_wei > 0
        await world.check_end()

    play(story, tmp_path, monkeypatch)
