"""Pipelined rounds in a network of twins: who dies, freezes, lies or is cut off costs time and no step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from dfl_ledger.records import Cid, JobState, Kind, Phase
from dfl_node.net.channel import PeerId
from dfl_node.train.stage import WORKER_BYTES, Array
from tests.node.modes.machines import Machine, peer_id_of_machine
from tests.node.modes.pipelines import activity, conductor, holder, pieces, record, submit, until_step
from tests.node.modes.world import World, play

STEPS = 20
Disturb = Callable[[World], Awaitable[None]]


@dataclass(frozen=True)
class Outcome:
    model: Cid
    losses: tuple[float, ...]


@pytest.fixture(scope="module")
def undisturbed() -> Outcome:
    """One round of four nodes where nothing happens."""
    found: list[Outcome] = []

    async def story(world: World) -> None:
        await submit(world)
        state = await world.until_over()
        found.append(Outcome(state.model, record(world).losses))

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        play(story, Path(folder), patch, trainers=4)
    return found[0]


async def complete(world: World, disturb: Disturb, *, nodes: int = 4, commit_s: int = 60) -> JobState:
    """A job of one round, disturbed in the middle; it must come to its model all the same."""
    await submit(world, nodes=nodes, commit_s=commit_s)
    await until_step(world, 6)
    await disturb(world)
    state = await world.until_over()
    assert (state.phase, state.completed) == (Phase.COMPLETED, 1)
    assert not world.job_events("RoundVoided")
    await world.check_end()
    return state


def check_same(world: World, state: JobState, expected: Outcome) -> None:
    """The same steps on the same rows gave the same losses and the same model, to the last bit."""
    assert record(world).losses == expected.losses
    assert state.model == expected.model


# -- without faults -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("stages", "nodes"), [(1, 2), (2, 3), (2, 4), (3, 4)])
def test_an_undisturbed_run_trains_a_model_in_stages(
    stages: int, nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await submit(world, rounds=2, stages=stages, nodes=nodes)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 2)
        assert not world.job_events("RoundVoided")
        for round_ in (1, 2):
            assert len(pieces(world, round_, Kind.STAGE)) == stages
            told = record(world, round_)
            assert len(told.turns) == 1
            assert len(told.losses) == STEPS
            assert told.losses[-1] < told.losses[0] / 2
            assert [point.step for point in told.points] == [4, 8, 12, 16, 20]
            entries = world.evidence(round_).entries
            assert {entry.score for entry in entries} == {
                STEPS * 4
            }  # a stage like another, and like the feed
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=nodes)


def test_with_as_many_nodes_as_stages_who_feeds_holds_a_stage_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await submit(world, nodes=2)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 1)
        assert len(pieces(world, 1, Kind.STAGE)) == 2
        assert not pieces(world, 1, Kind.FEED)
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=2)


def test_a_slow_node_is_measured_and_gets_no_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        for name in "ab":
            world.kill(name)
            world.machines[name].stage_s *= 20
            await world.start(name)
        await submit(world, nodes=5)
        await world.until_over()
        (turn,) = record(world).turns
        slow = {world.machines[name].address for name in "ab"}
        assert not slow & set(turn.holders)

    play(story, tmp_path, monkeypatch, trainers=5)


# -- deaths -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_killed_in_mid_step_is_replaced_and_no_step_is_lost(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Outcome
) -> None:
    async def disturb(world: World) -> None:
        world.kill(holder(world, stage))

    async def story(world: World) -> None:
        state = await complete(world, disturb)
        first, second = record(world).turns
        assert (first.step, second.step) == (0, 4)
        assert second.took_s < 5
        assert "lost" in second.why
        check_same(world, state, undisturbed)

    play(story, tmp_path, monkeypatch, trainers=4)


def test_two_stages_killed_one_after_the_other_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def disturb(world: World) -> None:
        world.kill(holder(world, 0))
        await until_step(world, 11)
        world.kill(holder(world, 1))

    async def story(world: World) -> None:
        await complete(world, disturb, nodes=5)
        assert [turn.step for turn in record(world).turns] == [0, 4, 8]

    play(story, tmp_path, monkeypatch, trainers=5)


def test_without_a_spare_the_conductor_takes_the_stage_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await submit(world, nodes=3)
        await until_step(world, 6)
        world.kill(holder(world, 1))
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 1)
        assert len(pieces(world, 1, Kind.STAGE)) == 2
        assert not pieces(world, 1, Kind.FEED)
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=3)


def test_a_killed_conductor_is_followed_by_the_next_in_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def disturb(world: World) -> None:
        killed.append(conductor(world))
        world.kill(killed[0])

    async def story(world: World) -> None:
        await complete(world, disturb)
        turn = record(world).turns[-1]  # told by the successor, which fed from the last recovery point
        assert (turn.step, turn.why) == (4, f"conductor {world.machines[killed[0]].address} lost")
        for entry in world.evidence(1).entries:
            assert entry.node != world.machines[killed[0]].address

    killed: list[str] = []
    play(story, tmp_path, monkeypatch, trainers=4)


def test_a_killed_node_that_restarts_is_a_spare_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await submit(world, nodes=3)
        await until_step(world, 6)
        victim = holder(world, 0)
        world.kill(victim)
        world.kill(holder(world, 1))  # now only the feed is left, which holds both stages
        await trio.sleep(4)
        await world.start(victim)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 1)
        assert len(pieces(world, 1, Kind.STAGE)) == 2
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=3)


def test_fewer_nodes_than_stages_make_the_round_void_and_the_money_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await submit(world, nodes=3)
        await until_step(world, 6)
        for name in (holder(world, 0), holder(world, 1)):
            world.kill(name)
        state = await world.until_over()
        assert (state.phase, state.spent_wei) == (Phase.FAILED, 0)
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=3)


def test_a_lost_worker_costs_its_stage_and_not_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Outcome
) -> None:
    async def disturb(world: World) -> None:
        world.running[holder(world, 1)].parts.trainer.lose_stages()  # type: ignore[attr-defined]

    async def story(world: World) -> None:
        state = await complete(world, disturb)
        assert "failed" in record(world).turns[1].why
        check_same(world, state, undisturbed)

    play(story, tmp_path, monkeypatch, trainers=4)


# -- time and the network -----------------------------------------------------------------------------------
@pytest.mark.parametrize("who", ["stage 0", "stage 1", "conductor"])
def test_a_node_frozen_for_thirty_seconds_is_replaced_and_does_no_harm_when_it_wakes(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Outcome
) -> None:
    async def disturb(world: World) -> None:
        name = conductor(world) if who == "conductor" else holder(world, int(who[-1]))
        world.freeze(name)
        await trio.sleep(30)
        world.thaw(name)

    async def story(world: World) -> None:
        state = await complete(world, disturb, commit_s=120)
        if who != "conductor":
            check_same(world, state, undisturbed)

    play(story, tmp_path, monkeypatch, trainers=4)


@pytest.mark.parametrize("heal_after_s", [3.0, 25.0])
def test_a_partition_that_heals_costs_time_and_no_money(
    heal_after_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await submit(world, rounds=2, commit_s=90)
        await until_step(world, 6)
        cut_off = [PeerId(peer_id_of_machine(name)) for name in (conductor(world), holder(world, 0))]
        world.network.partition(cut_off)
        await trio.sleep(heal_after_s)
        world.network.heal()
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 2)
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=4)


def test_an_rpc_that_is_down_for_twenty_seconds_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Outcome
) -> None:
    async def disturb(world: World) -> None:
        world.rpc_down_until = world.now() + 20

    async def story(world: World) -> None:
        check_same(world, await complete(world, disturb), undisturbed)

    play(story, tmp_path, monkeypatch, trainers=4)


def test_a_run_that_is_short_of_time_ends_at_a_step_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        for machine in world.machines.values():
            machine.stage_s = 0.2
        for name in "abcd":
            world.kill(name)
            await world.start(name)
        await submit(world, commit_s=30, steps=1000)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 1)
        told = record(world)
        assert 0 < len(told.losses) == told.finish.point.step < 1000
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=4)


# -- lies ---------------------------------------------------------------------------------------------------
def with_nan(given: Array) -> Array:
    numbers = array("f", given.data)
    numbers[0] = math.nan
    return replace(given, data=numbers.tobytes())


def of_another_shape(given: Array) -> Array:
    return Array((1, *given.shape), given.dtype, given.data)


@pytest.mark.parametrize("forge", [with_nan, of_another_shape])
@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_that_sends_what_cannot_be_used_is_replaced(
    stage: int,
    forge: Callable[[Array], Array],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Outcome,
) -> None:
    async def disturb(world: World) -> None:
        liars.append(world.machines[holder(world, stage)])
        liars[0].forge_array = forge

    async def story(world: World) -> None:
        state = await complete(world, disturb)
        first, second = record(world).turns
        assert liars[0].address in first.holders
        assert liars[0].address not in second.holders
        assert "misbehaved" in second.why
        check_same(world, state, undisturbed)

    liars: list[Machine] = []
    play(story, tmp_path, monkeypatch, trainers=4)


def test_a_stage_whose_last_file_is_worthless_is_done_again_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Outcome
) -> None:
    async def disturb(world: World) -> None:
        liars.append(world.machines[holder(world, 0)])
        liars[0].forge_snapshot = lambda snapshot: snapshot[:-4] + array("f", [math.nan]).tobytes()

    async def story(world: World) -> None:
        state = await complete(world, disturb)
        assert liars[0].address not in record(world).finish.committers
        check_same(world, state, undisturbed)

    liars: list[Machine] = []
    play(story, tmp_path, monkeypatch, trainers=4)


# -- memory -------------------------------------------------------------------------------------------------
def test_nodes_too_small_for_any_stage_say_so_and_the_job_fails_with_its_money(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        for machine in world.machines.values():
            machine.memory_bytes = WORKER_BYTES + (1 << 20)
        for name in "abc":
            world.kill(name)
            await world.start(name)
        await submit(world, nodes=3)
        await world.until(lambda: "does not fit" in str(activity(world).get("waits_for")), "it is said")
        state = await world.until_over()
        assert (state.phase, state.spent_wei) == (Phase.FAILED, 0)
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=3)


def test_a_node_whose_owner_did_not_allow_it_takes_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipeline rows leave the node that feeds it."""

    async def story(world: World) -> None:
        world.kill("d")
        world.machines["d"].share_rows = False
        await world.start("d")
        await submit(world, nodes=3)
        state = await world.until_over()
        assert state.completed == 1
        joined = {event.args["node"] for event in world.job_events("NodeJoined")}
        assert joined == {world.machines[name].address for name in "abc"}

    play(story, tmp_path, monkeypatch, trainers=4)
