"""Any schedule of deaths, freezes, partitions, outages and lies leaves the money in its place."""

from __future__ import annotations

import math
import random
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from dfl_ledger.records import Phase
from dfl_node.net.channel import PeerId
from dfl_node.train.stage import Array
from tests.node.modes.machines import peer_id_of_machine
from tests.node.modes.pipelines import submit
from tests.node.modes.test_outages import GRACE_S, check_deadlines
from tests.node.modes.world import World, play
from tests.seeds import seeds

LONGEST_OUTAGE_S = 20.0


def with_nan(given: Array) -> Array:
    return replace(given, data=array("f", [math.nan] * (len(given.data) // 4)).tobytes())


async def meet(world: World) -> None:
    """Everybody finds everybody again, as the discovery of real nodes sees to."""
    channels = [node.parts.channel for node in world.running.values()]
    for one in channels:
        for other in channels:
            if one is not other:
                await one.connect(other.multiaddrs[0])


@pytest.mark.parametrize("seed", seeds(20, fast=6))
def test_any_schedule_of_faults_ends_with_the_money_in_its_place(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed fixes the schedule and the order of tasks: it is all that a failure needs."""
    draw = random.Random(seed)  # noqa: S311

    def disturb(world: World) -> None:
        name = draw.choice("abcde")
        machine = world.machines[name]
        match draw.randrange(8):
            case 0 | 1 if name in world.running:
                world.kill(name)
            case 2:
                world.freeze(name)
            case 3:
                world.thaw(name)
            case 4:
                world.rpc_down_until = world.now() + draw.uniform(0, LONGEST_OUTAGE_S)
            case 5:
                cut_off = draw.sample("abcde", draw.randint(1, 2))
                world.network.partition([PeerId(peer_id_of_machine(n)) for n in cut_off])
            case 6:
                world.network.heal()
            case 7 if name in world.running:
                machine.forge_array = draw.choice([with_nan, None])
                world.running[name].parts.trainer.lose_stages()  # type: ignore[attr-defined]

    async def story(world: World) -> None:
        await submit(world, rounds=2, nodes=draw.choice((2, 3, 4, 5)), steps=60, commit_s=60)
        for _ in range(draw.randrange(6, 16)):
            await trio.sleep(draw.expovariate(1 / 2))
            disturb(world)
            dead = [name for name in "abcde" if name not in world.running]
            if dead and draw.random() < 0.4:
                await world.start(dead[0])
        await trio.sleep(max(0.0, world.rpc_down_until - world.now()))
        world.network.heal()
        for name, machine in world.machines.items():
            machine.forge_array = None
            world.thaw(name)
            if name not in world.running:
                await world.start(name)
        await meet(world)
        state = await world.until_over()
        assert state.phase in (Phase.COMPLETED, Phase.FAILED)
        check_deadlines(world, GRACE_S + LONGEST_OUTAGE_S)
        await world.check_end()

    play(story, tmp_path, monkeypatch, seed=seed, trainers=5)
