"""SIGKILL at any point of a round: the job goes on, nothing is paid twice, no work is lost or doubled."""

from __future__ import annotations

import random
from enum import Enum
from pathlib import Path

import pytest
import trio

from dfl_ledger.records import Phase
from dfl_node.net.memory import Fault as NetFault
from dfl_node.store.memory import Fault as StoreFault
from tests.node.modes.world import SCORE_S, Running, When, World, play
from tests.seeds import seeds


class KillPoint(Enum):
    """Where a node dies: before or after its own call of this name."""

    BEFORE_TRAINING = ("train", When.BEFORE)
    BEFORE_JOURNAL = ("record", When.BEFORE)
    AFTER_JOURNAL = ("record", When.AFTER)
    AFTER_COMMIT = ("commit", When.AFTER)
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
        await world.submit()
        state = await world.until_over()
        assert trap.sprung
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert not world.job_events("RoundVoided")
        assert {e.args["round"] for e in world.job_events("Settled")} == {1, 2, 3}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("point", KillPoint)
def test_a_killed_node_that_restarts_neither_loses_nor_doubles_its_contribution(
    point: KillPoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims: list[str] = []

    async def story(world: World) -> None:
        def kill(node: Running) -> None:
            victims.append(node.machine.name)
            world.kill(node.machine.name)

        world.trap(*point.value, kill, round=2)
        await world.submit()
        await world.until(lambda: bool(victims), f"somebody is killed {point.name}")
        await trio.sleep(3)
        victim = await world.start(victims[0])
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert world.contributions(victims[0]) == [1, 2, 3]
        wasted = point in (KillPoint.BEFORE_TRAINING, KillPoint.BEFORE_JOURNAL)
        assert victim.machine.trained == {1: 1, 2: 2 if wasted else 1, 3: 1}
        (entry,) = (e for e in world.evidence(2).entries if e.node == victim.machine.address)
        assert entry.accepted, entry.why
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_publisher_that_is_gone_is_replaced_after_half_the_settle_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.trap("publish_model", When.AFTER, lambda node: world.kill(node.machine.name))
        await world.submit(rounds=1, settle_s=600)
        await world.until_over()
        (published,), (settled,) = world.job_events("ModelPublished"), world.job_events("Settled")
        assert settled.args["settler"] != published.args["aggregator"]
        # the window opens when the dead publisher can no longer be waited for as an evaluator either
        assert 300 <= world.mined_at(settled) - world.mined_at(published) - 2 * SCORE_S < 310
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("seed", seeds(30, fast=10))
def test_any_schedule_of_kills_restarts_outages_and_faults_ends_with_the_money_in_its_place(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed fixes the schedule, the order of tasks, and who is drawn: it is all that a failure needs."""
    draw = random.Random(seed)  # noqa: S311

    async def story(world: World) -> None:
        world.lose_answer = lambda call: draw.random() < 0.03
        await world.submit(quorum=draw.choice((1, 2, 3)), settle_s=draw.choice((20, 60, 600)))
        for _ in range(draw.randrange(4, 16)):
            await trio.sleep(draw.expovariate(1 / 6))
            name = draw.choice("abcr")
            name = "requester" if name == "r" else name
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
        await world.check_end()

    play(story, tmp_path, monkeypatch, seed=seed)
