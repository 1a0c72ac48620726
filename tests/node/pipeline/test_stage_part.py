"""A stage between two neighbours played by hand: what it takes, what it sends, and whom it blames."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from dfl_ledger.records import Address, Cid, JobId
from dfl_node.jobspec import PipelineSpec
from dfl_node.modes.pipeline import frames
from dfl_node.modes.pipeline.files import StageFile
from dfl_node.modes.pipeline.frames import End, Frame, Loss, Tensor
from dfl_node.modes.pipeline.lines import Line, local_pair
from dfl_node.modes.pipeline.messages import FAILED, FEED, MISBEHAVED, SEVERED, Call, Kept
from dfl_node.modes.pipeline.plan import Plan, RunId
from dfl_node.modes.pipeline.stage_part import ABOVE, LABELS, PartFailed, StagePart
from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.stage import Array, Stage, StageConfig
from dfl_node.train.trainer import ModelConfig, TrainingConfig

ME, OTHER, FEEDER = Address("me"), Address("other"), Address("feeder")
MODEL = ModelConfig("cnn", {})
TRAINING = TrainingConfig(10, 8, 0.1, 0.9, "sgd", 1, 4096)
MICRO_BATCHES, ROWS = 2, 4
PARENT = Cid.of(b"parent", 0x70)
ROWS_IN = Array((ROWS, 2), "F32", bytes(8 * ROWS))
LABELS_IN = Array((ROWS,), "I64", bytes(8 * ROWS))


class Bench:
    """One stage of two, with the test as its neighbours."""

    def __init__(self, nursery: trio.Nursery, index: int) -> None:
        self.kept: list[Kept] = []
        self.files: list[bytes] = []
        self.failure: PartFailed | None = None
        self.over = trio.Event()
        self._nursery, self._index = nursery, index
        self.below: Line | None = None

    async def start(self) -> Bench:
        trainer = MemoryTrainer()
        self.stage: Stage = await trainer.open_stage(
            StageConfig(MODEL, TRAINING, ("fc1",), self._index, MICRO_BATCHES, ROWS),
            parent=await trainer.init_model(MODEL, 1),
            snapshot=None,
        )
        holders = (ME, OTHER) if self._index == 0 else (OTHER, ME)
        plan = Plan(2, FEEDER, ("fc1",), holders, 0, (), 10)
        part = StagePart(self._setting(), plan, self._index, self.stage, self._tell)
        self.above = await self._plug(part, ABOVE)
        if self._index == 1:
            self.labels = await self._plug(part, LABELS)
        self._nursery.start_soon(self._run, part)
        await trio.testing.wait_all_tasks_blocked()
        return self

    async def _plug(self, part: StagePart, port: str) -> Line:
        ours, theirs = local_pair()
        self._nursery.start_soon(part.plug, port, theirs)
        return ours

    async def _run(self, part: StagePart) -> None:
        try:
            await part.run()
        except PartFailed as failure:
            self.failure = failure
        self.over.set()

    async def _tell(self, kept: Kept) -> None:
        self.kept.append(kept)

    def _setting(self) -> Any:
        async def open_(node: Address, call: Call) -> Line:
            assert (node, call.stage, call.port) == (OTHER, 1, ABOVE)
            self.below, theirs = local_pair()
            return theirs

        async def keep(file: bytes) -> Cid:
            self.files.append(file)
            return Cid.of(file, 0x70)

        run = RunId(JobId(1), 1, PARENT)
        return SimpleNamespace(
            pipeline=PipelineSpec(2, MICRO_BATCHES, 1),
            run=run,
            open=open_,
            keep=keep,
            call=lambda epoch, stage, port: Call(1, 1, PARENT, epoch, stage, port),
        )


async def send(line: Line | None, frame: Frame) -> None:
    assert line is not None
    await line.send(frames.encode(frame))


async def receive(line: Line | None) -> Frame:
    assert line is not None
    return frames.decode(await line.receive())


def play(index: int, story: Callable[[Bench], Awaitable[None]]) -> Bench:
    """In virtual time, with one stage of two."""
    benches: list[Bench] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            benches.append(await Bench(nursery, index).start())
            with trio.fail_after(60):
                await story(benches[0])
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return benches[0]


def test_a_first_stage_keeps_two_in_flight_and_hands_the_end_on() -> None:
    async def story(bench: Bench) -> None:
        for micro in range(MICRO_BATCHES):
            await send(bench.above, Tensor(0, micro, ROWS_IN))
        sent = [await receive(bench.below) for _ in range(MICRO_BATCHES)]
        assert [(f.step, f.micro) for f in sent if isinstance(f, Tensor)] == [(0, 0), (0, 1)]
        for micro in range(MICRO_BATCHES):
            await send(bench.below, Tensor(0, micro, ROWS_IN))
        await send(bench.above, End(1))
        assert await receive(bench.below) == End(1)
        await bench.over.wait()
        assert bench.failure is None
        (kept,), (file,) = bench.kept, bench.files
        assert (kept.epoch, kept.stage, kept.step) == (2, 0, 1)
        assert StageFile.decode(file).header.cuts == ("fc1",)

    play(0, story)


def test_a_last_stage_sends_losses_to_the_feed_and_gradients_up() -> None:
    async def story(bench: Bench) -> None:
        for micro in range(MICRO_BATCHES):
            await send(bench.above, Tensor(0, micro, ROWS_IN))
            await send(bench.labels, Tensor(0, micro, LABELS_IN))
        for micro in range(MICRO_BATCHES):
            loss, gradient = await receive(bench.labels), await receive(bench.above)
            assert isinstance(loss, Loss)
            assert isinstance(gradient, Tensor)
            assert (loss.micro, gradient.micro) == (micro, micro)

    play(1, story)


Wrong = Callable[[Bench], Awaitable[None]]


async def garbage(bench: Bench) -> None:
    await bench.above.send(b"garbage")


async def wrong_step(bench: Bench) -> None:
    await send(bench.above, Tensor(7, 0, ROWS_IN))


async def wrong_micro(bench: Bench) -> None:
    await send(bench.above, Tensor(0, 1, ROWS_IN))


async def a_loss(bench: Bench) -> None:
    await send(bench.above, Loss(0, 0, 1.0))


async def the_end_of_another_step(bench: Bench) -> None:
    await send(bench.above, End(5))


async def not_a_number(bench: Bench) -> None:
    await send(bench.above, Tensor(0, 0, Array((ROWS, 2), "F32", b"\xff" * 8 * ROWS)))


async def another_shape(bench: Bench) -> None:
    await send(bench.above, Tensor(0, 0, Array((1, 2), "F32", bytes(8))))


async def nothing_more(bench: Bench) -> None:
    await bench.above.aclose()


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (garbage, MISBEHAVED),
        (wrong_step, MISBEHAVED),
        (wrong_micro, MISBEHAVED),
        (a_loss, MISBEHAVED),
        (the_end_of_another_step, MISBEHAVED),
        (not_a_number, MISBEHAVED),
        (another_shape, MISBEHAVED),
        (nothing_more, SEVERED),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_whoever_sends_something_else_is_blamed(index: int, wrong: Wrong, kind: str) -> None:
    async def story(bench: Bench) -> None:
        await wrong(bench)
        if index == 1 and wrong in (not_a_number, another_shape):
            await send(bench.labels, Tensor(0, 0, LABELS_IN))
        await bench.over.wait()

    failure = play(index, story).failure
    assert failure is not None
    assert (failure.blames, failure.kind) == (FEED if index == 0 else 0, kind)


def test_a_gradient_of_another_shape_is_the_fault_of_the_stage_below() -> None:
    async def story(bench: Bench) -> None:
        for micro in range(MICRO_BATCHES):
            await send(bench.above, Tensor(0, micro, ROWS_IN))
        await send(bench.below, Tensor(0, 0, Array((1, 2), "F32", bytes(8))))
        await bench.over.wait()
        assert bench.failure is not None
        assert (bench.failure.blames, bench.failure.kind) == (1, MISBEHAVED)

    play(0, story)


def test_a_lost_worker_is_a_stage_own_fault() -> None:
    async def story(bench: Bench) -> None:
        await bench.stage.aclose()
        await send(bench.above, Tensor(0, 0, ROWS_IN))
        await bench.over.wait()
        assert bench.failure is not None
        assert (bench.failure.blames, bench.failure.kind) == (0, FAILED)

    play(0, story)
