"""The twin's own promises: virtual time, lost workers, progress that stories can be told with."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.stage import StageLost
from tests.conformance.stages import CUTS, MICRO_BATCHES, MODEL, World


@pytest.mark.parametrize("cuts", [CUTS[:count] for count in range(len(CUTS) + 1)], ids=len)
def test_every_step_makes_the_model_better(cuts: tuple[str, ...]) -> None:
    async def main() -> None:
        world = await World.of(MemoryTrainer())
        stages = await world.open(cuts)
        losses = []
        for _ in range(20):
            await world.run(stages, 1)
            model = await world.restack(cuts, await world.snapshots(stages))
            losses.append((await world.trainer.evaluate(MODEL, model, world.validation)).loss)
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0] / 4

    trio.run(main)


def test_calls_take_the_time_they_are_told() -> None:
    async def main() -> None:
        world = await World.of(MemoryTrainer(stage_s=0.5))
        began = trio.current_time()
        stages = await world.open()
        assert trio.current_time() - began == 2 * 0.5
        await world.run(stages, 1)
        # A micro-batch is fed, goes through two stages and comes back through one; then both step.
        assert trio.current_time() - began == (2 + 4 * MICRO_BATCHES + 2) * 0.5

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_lost_worker_loses_every_stage_at_once() -> None:
    async def main() -> None:
        trainer = MemoryTrainer(stage_s=1.0)
        world = await World.of(trainer)
        stages = await world.open()
        await world.run(stages, 2)
        snapshots = await world.snapshots(stages)
        expected = await world.run(stages, 1), await world.snapshots(stages)

        async def in_the_middle() -> None:
            with pytest.raises(StageLost, match="is lost after step 3"):
                await stages[0].snapshot()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_the_middle)
            await trio.testing.wait_all_tasks_blocked()
            trainer.lose_stages()
        with pytest.raises(StageLost):
            await stages[1].step()
        again = await world.open(snapshots=snapshots)
        assert (await world.run(again, 1), await world.snapshots(again)) == expected

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
