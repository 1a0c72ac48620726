"""Stages in a real worker: how they are lost, what they take, and who else is in there."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise

import pytest
import structlog.testing
import trio
import trio.testing

from dfl_ledger.errors import DflError
from dfl_node.train import models, stage_process
from dfl_node.train.process import ProcessTrainer, open_trainer
from dfl_node.train.stage import WORKER_BYTES, StageConfig, StageLost, stage_memory_bytes
from dfl_node.train.trainer import Assignment, LoraConfig, ModelConfig
from tests.conformance import stages as suite
from tests.conformance.stages import ADAMW, DATA, MICRO_BATCHES, MODEL, ROWS, SEED, TRAINING, World

WITHIN_S = 300.0  # on a machine that may be busy
MIB = 1 << 20


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(WITHIN_S):
            await story()

    trio.run(bounded)


def kill(trainer: ProcessTrainer) -> None:
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGKILL)


def test_a_killed_worker_loses_its_stages_and_a_snapshot_brings_them_back() -> None:
    async def main() -> None:
        async with open_trainer() as trainer:
            world = await World.of(trainer)
            stages = await world.open()
            await world.run(stages, 2)
            snapshots = await world.snapshots(stages)
            expected = await world.run(stages, 2), await world.snapshots(stages)

            kill(trainer)
            x, _ = await world.feed.batch(4, 0)  # a feed starts another worker
            for stage in stages:
                with pytest.raises(StageLost, match="is lost after step 4"):
                    await stage.forward(0, x)
            stages = await world.open(snapshots=snapshots)
            assert (await world.run(stages, 2), await world.snapshots(stages)) == expected

            await suite.close(stages)

    run(main)


def test_a_worker_killed_within_a_request() -> None:
    async def main() -> None:
        async with open_trainer() as trainer:
            world = await World.of(trainer)
            (stage,) = await world.open(())
            x, labels = await world.feed.batch(0, 0)
            pid = trainer.pid
            assert pid is not None

            async def last() -> None:
                with pytest.raises(StageLost, match="killed by SIGKILL"):
                    await stage.last(0, x, labels)

            os.kill(pid, signal.SIGSTOP)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(last)
                await trio.testing.wait_all_tasks_blocked()
                os.kill(pid, signal.SIGKILL)
            await stage.aclose()

    run(main)


def test_a_cancelled_request_costs_no_stage() -> None:
    async def main() -> None:
        async with open_trainer() as trainer:
            world = await World.of(trainer)
            stages = await world.open()
            pid = trainer.pid
            x, _ = await world.feed.batch(0, 0)
            with trio.CancelScope() as scope:
                scope.cancel()
                await stages[0].forward(0, x)
            assert scope.cancelled_caught
            with trio.CancelScope() as scope:
                scope.cancel()
                await world.open()  # opened by nobody: closed again
            assert scope.cancelled_caught
            assert trainer.pid == pid
            with pytest.raises(DflError, match="micro-batch 0 of 4, for the second time"):
                await stages[0].forward(0, x)  # it went through
            for micro in range(1, MICRO_BATCHES):
                await world.pass_(stages, 0, micro)
            with trio.CancelScope() as scope:
                scope.cancel()
                await stages[0].snapshot()
            assert scope.cancelled_caught
            assert trainer.pid == pid
            await suite.close(stages)

    run(main)


def test_a_cancelled_step_is_counted() -> None:
    async def main() -> None:
        async with open_trainer() as trainer:
            world = await World.of(trainer)
            (stage,) = await world.open(())
            for micro in range(MICRO_BATCHES):
                await world.pass_([stage], 0, micro)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.step)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert stage.steps == 1
            assert await trainer.inspect_stage(MODEL, (), await stage.snapshot()) == (0, 1)

    run(main)


def test_a_worker_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_process, "GRACE_S", 0.3)

    async def main() -> None:
        async with open_trainer() as trainer:
            world = await World.of(trainer)
            (stage,) = await world.open(())
            pid = trainer.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            with trio.move_on_after(0.1) as scope:
                await stage.snapshot()
            assert scope.cancelled_caught
            assert trainer.pid is None
            with pytest.raises(StageLost):
                await stage.snapshot()

    run(main)


def test_a_stage_that_could_not_be_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is busy for longer than anybody waits: it is closed before the next one is opened."""
    monkeypatch.setattr(stage_process, "GRACE_S", 0.1)

    async def main() -> None:
        under_way = trio.Event()
        async with open_trainer(on_progress=lambda _: under_way.set()) as trainer:
            world = await World.of(trainer)
            (stage,) = await world.open(())
            busy = replace(TRAINING, local_steps=600)

            async def train() -> None:
                await trainer.train(Assignment(1, 1, world.parent, MODEL, busy, DATA, 1))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(train)
                await under_way.wait()
                await stage.aclose()
                assert trainer._stages_to_close
            await world.open(())
            assert not trainer._stages_to_close

    run(main)


def test_stages_and_other_requests_share_the_worker() -> None:
    async def main() -> None:
        async with open_trainer() as trainer:
            world = await World.of(trainer)
            stages = await world.open()
            expected = await world.run(stages, 4)
            evaluation = await trainer.evaluate(MODEL, world.parent, world.validation)
            again = await world.open()  # beside the others
            results = []

            async def train() -> None:
                results.append(await world.run(again, 4))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(train)
                for _ in range(5):
                    assert await trainer.evaluate(MODEL, world.parent, world.validation) == evaluation
            assert results == [expected]
            await suite.close([*stages, *again])

    run(main)


def test_adapters_are_trained_over_a_base() -> None:
    """Only adapters are in snapshots and in the model; the base's tensors are in their stages."""

    async def main() -> None:
        async with open_trainer() as trainer:
            full = await trainer.init_model(MODEL, 1)
            await trainer.keep_base("a base", full)
            model = replace(MODEL, base="a base", lora=LoraConfig(2, 4.0, ("fc*",)))
            parent = await trainer.init_model(model, 1)
            feed = await trainer.open_feed(DATA, model, ADAMW, micro_batches=MICRO_BATCHES, seed=SEED)
            world = World(trainer, parent, feed, await trainer.validation_rows("digits"))
            stages = [
                await trainer.open_stage(
                    StageConfig(model, ADAMW, ("fc1",), index, MICRO_BATCHES, ROWS), parent, None
                )
                for index in range(2)
            ]
            await world.run(stages, 8)
            snapshots = await world.snapshots(stages)
            assert [snapshot.count(b"lora_a") > 0 for snapshot in snapshots] == [False, True]
            assert not any(b"fc1.weight" in snapshot for snapshot in snapshots)
            for index, snapshot in enumerate(snapshots):
                assert await trainer.inspect_stage(model, ("fc1",), snapshot) == (index, 8)
            result = await trainer.restack(model, ("fc1",), snapshots, max_update_bytes=MIB)
            assert suite.split(result)[0] == suite.split(parent)[0]
            before = await trainer.evaluate(model, parent, world.validation)
            assert (await trainer.evaluate(model, result, world.validation)).loss < before.loss

    run(main)


DEEP = ModelConfig("mlp", {"hidden": 1024, "layers": 8})  # 33 MB of weights
DEEP_CUTS = ("5", "9", "13")


def test_a_model_is_trained_that_fits_into_no_worker() -> None:
    """Each stage in a worker that may take what placement counts with; there the whole model fails."""

    async def main() -> None:
        training = replace(ADAMW, lr=0.001, max_update_bytes=64 * MIB)
        async with AsyncExitStack() as stack:
            big = await stack.enter_async_context(open_trainer(max_memory_bytes=None))
            parent = await big.init_model(DEEP, 1)
            costs = await big.segment_costs(DEEP)
            feed = await big.open_feed(DATA, DEEP, training, micro_batches=MICRO_BATCHES, seed=SEED)
            configs = [
                StageConfig(DEEP, training, DEEP_CUTS, index, MICRO_BATCHES, ROWS) for index in range(4)
            ]
            starts = [0, *(1 + models.cuts(DEEP).index(name) for name in DEEP_CUTS), len(costs)]
            pieces = [costs[first:end] for first, end in pairwise(starts)]
            limit = WORKER_BYTES + max(map(stage_memory_bytes, pieces, configs))
            small = [await stack.enter_async_context(open_trainer(max_memory_bytes=limit)) for _ in range(4)]
            stages = [
                await trainer.open_stage(config, parent, None)
                for trainer, config in zip(small, configs, strict=True)
            ]
            world = World(small[0], parent, feed, b"")
            losses = await world.run(stages, 6)
            assert sum(losses[-1].values()) < sum(losses[0].values())
            snapshots = await world.snapshots(stages)
            await suite.close(stages)
            stage = await small[3].open_stage(configs[3], None, snapshots[3])
            assert await stage.snapshot() == snapshots[3]
            await stage.aclose()
            model = await small[0].restack(DEEP, DEEP_CUTS, snapshots, max_update_bytes=64 * MIB)
            assert suite.split(model)[0] == suite.split(parent)[0]

            whole = StageConfig(DEEP, training, (), 0, MICRO_BATCHES, ROWS)
            assert WORKER_BYTES + stage_memory_bytes(costs, whole) > limit + 64 * MIB
            with (
                structlog.testing.capture_logs(),
                pytest.raises(DflError, match="the trainer ran out of memory"),
            ):
                await world.run([await small[1].open_stage(whole, parent, None)], 1)
            assert await small[1].inspect_stage(DEEP, DEEP_CUTS, snapshots[1]) == (1, 6)

    run(main)
