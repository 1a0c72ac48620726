"""SIGKILL at any point of an asynchronous round: no piece is lost, none is used twice."""

from __future__ import annotations

import random
from enum import Enum
from pathlib import Path

import pytest
import trio

from dfl_ledger.records import Phase
from dfl_node.net.memory import Fault as NetFault
from dfl_node.store.memory import Fault as StoreFault
from tests.node.modes import buffers
from tests.node.modes.machines import TRAIN_S
from tests.node.modes.world import Running, When, World, play
from tests.seeds import seeds


class KillPoint(Enum):
    """Where a node dies: before or after its own call of this name."""

    BEFORE_TRAINING = ("train", When.BEFORE)
    BEFORE_JOURNAL = ("record", When.BEFORE)
    AFTER_JOURNAL = ("record", When.AFTER)
    BEFORE_PROMISE = ("promise", When.BEFORE)
    AFTER_PROMISE = ("promise", When.AFTER)
    BEFORE_COMMIT = ("commit", When.BEFORE)
    AFTER_COMMIT = ("commit", When.AFTER)
    BEFORE_REVEAL = ("reveal", When.BEFORE)
    AFTER_REVEAL = ("reveal", When.AFTER)
    BEFORE_PUBLISHING = ("publish_model", When.BEFORE)  # the drawn aggregator
    AFTER_PUBLISHING = ("publish_model", When.AFTER)
    BEFORE_SETTLING = ("settle", When.BEFORE)
    AFTER_SETTLING = ("settle", When.AFTER)


@pytest.mark.parametrize("point", KillPoint)
def test_the_job_completes_without_a_node_that_is_killed_and_stays_away(
    point: KillPoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        trap = world.trap(*point.value, lambda node: world.kill(node.machine.name), round=2)
        await buffers.submit(world, rounds=4, quorum=1)
        state = await world.until_over()
        assert trap.sprung
        assert (state.phase, state.completed) == (Phase.COMPLETED, 4)
        assert not world.job_events("RoundVoided")
        assert {e.args["round"] for e in world.job_events("Settled")} == {1, 2, 3, 4}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("away_s", [1, pytest.param(12, marks=pytest.mark.long)])
@pytest.mark.parametrize("point", KillPoint)
def test_a_killed_node_that_restarts_neither_loses_nor_doubles_a_piece(
    point: KillPoint, away_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is back in the same round, or some rounds later, with what it had made by then."""
    victims: list[str] = []
    rounds = 6 if away_s == 1 else 12

    async def story(world: World) -> None:
        def kill(node: Running) -> None:
            victims.append(node.machine.name)
            world.kill(node.machine.name)

        world.trap(*point.value, kill, round=2)
        await buffers.submit(world, rounds=rounds, max_lag=20)
        await world.until(lambda: bool(victims), f"somebody is killed {point.name}")
        await trio.sleep(away_s)
        victim = await world.start(victims[0])
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, rounds)
        wasted = sum(times - 1 for times in victim.machine.trained.values())
        assert wasted <= 1, "at most what was in training when it died"
        found = buffers.deliveries(world, victims[0])
        assert [d for d in found if d.round > 2]
        for delivery in found:  # what it had revealed, but nobody else had, when it died is all that is lost
            assert delivery.accepted or (delivery.round <= 2 and "nobody delivered" in delivery.why)
        buffers.check_pieces(world)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("seed", seeds(30, fast=8))
def test_any_schedule_of_kills_restarts_outages_and_faults_ends_with_every_piece_used_once(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed fixes the schedule, the order of tasks, and who is drawn: it is all that a failure needs."""
    draw = random.Random(seed)  # noqa: S311

    async def story(world: World) -> None:
        world.kill("c")
        world.machines["c"].train_s = TRAIN_S * draw.choice((1, 3, 10))
        await world.start("c")
        world.lose_answer = lambda call: draw.random() < 0.03
        size = draw.choice((1, 2, 3))
        await buffers.submit(
            world,
            rounds=6,
            size=size,
            quorum=draw.randint(1, size),
            max_lag=draw.choice((0, 1, 4, 100)),
            settle_s=draw.choice((20, 60, 600)),
        )
        for _ in range(draw.randrange(4, 16)):
            await trio.sleep(draw.expovariate(1 / 3))
            name = draw.choice(["a", "b", "c", "requester"])
            match draw.randrange(6):
                case 0 | 1 if name in world.running:
                    world.kill(name)
                case 0 | 1:
                    await world.start(name)
                case 2:
                    world.rpc_down_until = world.now() + draw.uniform(0, 20)
                case 4:
                    machine = world.machines[name]
                    machine.fault = draw.choice([StoreFault.MISSING, None])
                    if name in world.running:
                        machine.store.fault = machine.fault
                case 5 if len(world.running) > 1:
                    one, other = draw.sample([n.parts.channel.peer_id for n in world.running.values()], 2)
                    world.network.inject(draw.choice([NetFault.DROP, NetFault.PARTITION]), one, other)
                case 3:
                    world.machines[name].blocked = set(
                        draw.sample(["commit", "reveal", "publish_model", "settle"], draw.randrange(3))
                    )
        world.lose_answer = lambda call: False
        await trio.sleep(max(0.0, world.rpc_down_until - world.now()))
        for name, machine in world.machines.items():
            machine.blocked.clear()
            machine.fault = None
            if name in world.running:
                machine.store.fault = None
            if name not in world.running:
                await world.start(name)
        state = await world.until_over()
        assert state.phase in (Phase.COMPLETED, Phase.FAILED)
        for name in world.machines:
            cids = [delivery.cid for delivery in buffers.deliveries(world, name)]
            assert len(cids) == len(set(cids))
        await world.check_end()

    play(story, tmp_path, monkeypatch, seed=seed)
