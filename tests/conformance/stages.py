"""What every `StageTrainer` does: stages train as the whole would, and go on from a snapshot."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from dfl_ledger.errors import DflError, SpecInvalid, UpdateRefused, UsageError
from dfl_node.train import models
from dfl_node.train.stage import Array, Feed, Stage, StageConfig, StageLost
from dfl_node.train.trainer import DataConfig, ModelConfig, Trainer, TrainingConfig
from tests.conformance.trainer import HOSTILE, join, split

MODEL = ModelConfig("cnn", {"width": 2, "hidden": 8})
TRAINING = TrainingConfig(
    local_steps=6, batch_size=32, lr=0.05, momentum=0.9, optimizer="sgd", seed=1, max_update_bytes=1 << 20
)
ADAMW = replace(TRAINING, lr=0.002, optimizer="adamw")
DATA = DataConfig("digits", None, (1, 1, 12), None)
MICRO_BATCHES = 4
ROWS = TRAINING.batch_size // MICRO_BATCHES
SEED = (3, 1, 4)
IN_ORDER = tuple(range(MICRO_BATCHES))
CUTS = models.cuts(MODEL)


@dataclass(frozen=True)
class World:
    """A trainer, a round's parent, and what the stages train on."""

    trainer: Trainer
    parent: bytes
    feed: Feed
    validation: bytes

    @classmethod
    async def of(cls, trainer: Trainer) -> World:
        parent = await trainer.init_model(MODEL, 1)
        feed = await trainer.open_feed(DATA, MODEL, TRAINING, micro_batches=MICRO_BATCHES, seed=SEED)
        return cls(trainer, parent, feed, await trainer.validation_rows("digits"))

    async def open(
        self,
        cuts: Sequence[str] = CUTS[:1],
        training: TrainingConfig = TRAINING,
        snapshots: Sequence[bytes] = (),
    ) -> list[Stage]:
        """All stages, from the parent or from their snapshots."""
        return [
            await self.trainer.open_stage(
                config(cuts, index, training), None if snapshots else self.parent, snapshot
            )
            for index, snapshot in enumerate(snapshots or [None] * (len(cuts) + 1))
        ]

    async def run(
        self, stages: Sequence[Stage], steps: int, order: Sequence[int] = IN_ORDER
    ) -> list[dict[int, float]]:
        """Train all the stages for some steps. The losses of each step by micro-batch."""
        losses = []
        for _ in range(steps):
            step = stages[0].steps
            losses.append({micro: await self.pass_(stages, step, micro) for micro in order})
            for stage in stages:
                assert await stage.step() == stage.steps == step + 1
        return losses

    async def pass_(self, stages: Sequence[Stage], step: int, micro: int) -> float:
        """One micro-batch, down and up again."""
        x, labels = await self.feed.batch(step, micro)
        for stage in stages[:-1]:
            x = await stage.forward(micro, x)
        loss, gradient = await stages[-1].last(micro, x, labels)
        for stage in reversed(stages[:-1]):
            assert gradient is not None
            gradient = await stage.backward(micro, gradient)
        assert gradient is None
        return loss

    async def snapshots(self, stages: Sequence[Stage]) -> list[bytes]:
        return [await stage.snapshot() for stage in stages]

    async def restack(self, cuts: Sequence[str], snapshots: Sequence[bytes]) -> bytes:
        limit = TRAINING.max_update_bytes
        return await self.trainer.restack(MODEL, cuts, snapshots, max_update_bytes=limit)


Check = Callable[[World], Awaitable[None]]


def config(cuts: Sequence[str], index: int, training: TrainingConfig = TRAINING) -> StageConfig:
    return StageConfig(MODEL, training, tuple(cuts), index, MICRO_BATCHES, ROWS)


async def close(stages: Sequence[Stage]) -> None:
    for stage in stages:
        await stage.aclose()


def floats(data: bytes) -> list[float]:
    """Of a file that holds nothing else."""
    return list(array("f", split(data)[1]))


def with_tensor(data: bytes, part: str, value: float) -> bytes:
    """The first number of the first tensor whose name begins so, replaced."""
    header, payload = split(data)
    name = next(name for name in sorted(header) if name.startswith(part))
    first, _ = header[name]["data_offsets"]  # type: ignore[misc]
    packed = struct.pack("<d" if header[name]["dtype"] == "F64" else "<f", value)
    return join(header, payload[:first] + packed + payload[first + len(packed) :])


def first_weight(data: bytes) -> str:
    names = (name for name in sorted(split(data)[0]) if name not in ("__metadata__", "stage", "step"))
    return next(name for name in names if not name.startswith("optimizer."))


# -- promises -------------------------------------------------------------------------------------------
async def check_costs(world: World) -> None:
    """One a piece, in the order of the cuts; and as many bytes leave each stage as they say."""
    costs = await world.trainer.segment_costs(MODEL)
    assert [cost.name for cost in costs] == ["", *CUTS]
    assert all(min(cost.parameter_bytes, cost.activation_bytes, cost.flops) > 0 for cost in costs)
    stages = await world.open(CUTS)
    x, _ = await world.feed.batch(0, 0)
    for stage, cost in zip(stages[:-1], costs[:-1], strict=True):
        x = await stage.forward(0, x)
        assert len(x.data) == ROWS * cost.passes_bytes
    await close(stages)


async def check_stages_train_as_the_whole(world: World) -> None:
    """Whatever the number of stages: the same losses, which fall, and in the end the same model."""
    for training, ways in ((TRAINING, (CUTS,)), (ADAMW, (CUTS[:1], CUTS[::2]))):
        whole = await world.open((), training)
        expected = await world.run(whole, 8)
        model = await world.restack((), await world.snapshots(whole))
        assert sum(expected[-1].values()) < sum(expected[0].values())
        await close(whole)
        for cuts in ways:
            stages = await world.open(cuts, training)
            losses = await world.run(stages, 8)
            assert losses == [pytest.approx(step, abs=1e-6) for step in expected]
            stacked = await world.restack(cuts, await world.snapshots(stages))
            assert split(stacked)[0] == split(world.parent)[0]
            assert floats(stacked) == pytest.approx(floats(model), abs=1e-6)
            await close(stages)
        before = await world.trainer.evaluate(MODEL, world.parent, world.validation)
        assert (await world.trainer.evaluate(MODEL, model, world.validation)).loss < before.loss


async def check_parent_is_restacked_unchanged(world: World) -> None:
    stages = await world.open(CUTS)
    assert await world.restack(CUTS, await world.snapshots(stages)) == world.parent
    await close(stages)


async def check_order_of_arrival_does_not_matter(world: World) -> None:
    results = []
    for order in (IN_ORDER, IN_ORDER[::-1], (2, 0, 3, 1)):
        stages = await world.open()
        losses = await world.run(stages, 2, order)
        results.append((losses, await world.snapshots(stages)))
        await close(stages)
    assert results[0] == results[1] == results[2]


async def check_snapshots_go_on_exactly(world: World) -> None:
    for training in (TRAINING, ADAMW):
        stages = await world.open(CUTS[:1], training)
        await world.run(stages, 3)
        middle = await world.snapshots(stages)
        expected = await world.run(stages, 3), await world.snapshots(stages)
        await close(stages)
        stages = await world.open(CUTS[:1], training, middle)
        assert [stage.steps for stage in stages] == [3, 3]
        assert await world.snapshots(stages) == middle
        assert (await world.run(stages, 3), await world.snapshots(stages)) == expected
        await close(stages)


async def check_snapshots_know_no_micro_batch(world: World) -> None:
    """What is under way is not in a snapshot, and is not disturbed by it."""
    stages = await world.open()
    await world.run(stages, 1)
    between = await world.snapshots(stages)
    await world.pass_(stages, 1, 0)
    x, _ = await world.feed.batch(1, 1)
    await stages[0].forward(1, x)
    assert await world.snapshots(stages) == between
    await close(stages)


async def check_inspect(world: World) -> None:
    for training in (TRAINING, ADAMW):
        stages = await world.open(CUTS, training)
        await world.run(stages, 2)
        for index, snapshot in enumerate(await world.snapshots(stages)):
            assert await world.trainer.inspect_stage(MODEL, CUTS, snapshot) == (index, 2)
        await close(stages)


async def check_hostile_snapshots(world: World) -> None:
    cuts = CUTS[:1]
    stages = await world.open(cuts, ADAMW)
    await world.run(stages, 1)
    first, second = await world.snapshots(stages)
    await world.run(stages, 1)
    later = await stages[1].snapshot()
    bad = [spoil(second) for spoil, _ in HOSTILE.values()]
    for tensor, values in (
        (first_weight(second), (math.nan, math.inf)),
        ("optimizer.", (math.nan, -math.inf)),
        ("step", (0.5, -1.0, 1e300, math.nan)),
        ("stage", (0.0, 2.0, math.inf)),
    ):
        bad += [with_tensor(second, tensor, value) for value in values]
    for data in bad:
        with pytest.raises(UpdateRefused):
            await world.trainer.inspect_stage(MODEL, cuts, data)
        with pytest.raises(UpdateRefused, match="the snapshot of stage 1 was refused"):
            await world.restack(cuts, [first, data])
        with pytest.raises(UpdateRefused):
            await world.trainer.open_stage(config(cuts, 1, ADAMW), None, data)
    for spoilt, stage in (([first, first], 1), ([second, second], 0), ([first, later], 1)):
        with pytest.raises(UpdateRefused, match=f"the snapshot of stage {stage} was refused"):
            await world.restack(cuts, spoilt)
    for data, training in (
        (first, ADAMW),  # another stage's
        (second, TRAINING),  # another optimizer's
        (with_tensor(second, "optimizer.second.", -1.0), ADAMW),  # its root is no number
        (world.parent, ADAMW),
    ):
        with pytest.raises(UpdateRefused):
            await world.trainer.open_stage(config(cuts, 1, training), None, data)
    with pytest.raises(UsageError):
        await world.restack(cuts, [first])
    with pytest.raises(UpdateRefused, match="more than the 64 allowed"):
        await world.trainer.restack(MODEL, cuts, [first, second], max_update_bytes=64)
    await close(stages)


async def check_hostile_parents(world: World) -> None:
    for name in ("empty", "NaN", "pickle", "wrong shape", "66 MB header", "truncated payload"):
        with pytest.raises(UpdateRefused):  # by the stage that holds the last tensor
            await world.trainer.open_stage(config(CUTS[:1], 1), HOSTILE[name][0](world.parent), None)
    with pytest.raises(UsageError):
        await world.trainer.open_stage(config((), 0), None, None)


async def check_hostile_arrays(world: World) -> None:
    """Refused without a trace: the stage then does what it would have done."""
    stages = await world.open()
    x, labels = await world.feed.batch(0, 0)
    y = await stages[0].forward(0, x)
    loss, gradient = await stages[1].last(0, y, labels)
    assert gradient is not None
    again = await world.open()
    for bad in spoilt_arrays(y):
        with pytest.raises(UpdateRefused):
            await again[1].last(0, bad, labels)
    for bad in spoilt_arrays(x):
        with pytest.raises(UpdateRefused):
            await again[0].forward(0, bad)
    for bad in spoilt_arrays(labels):
        with pytest.raises(UpdateRefused):
            await again[1].last(0, y, bad)
    assert await again[0].forward(0, x) == y
    for bad in spoilt_arrays(gradient):
        with pytest.raises(UpdateRefused):
            await again[0].backward(0, bad)
    assert await again[1].last(0, y, labels) == (loss, gradient)
    assert await again[0].backward(0, gradient) is None
    await close([*stages, *again])


def spoilt_arrays(good: Array) -> list[Array]:
    row = len(good.data) // good.shape[0]
    spoilt = [
        Array((good.shape[0] - 1, *good.shape[1:]), good.dtype, good.data[row:]),
        Array((1, *good.shape), good.dtype, good.data),
        Array((len(good.data),), "U8", good.data),
    ]
    if good.dtype == "F32":
        values = [struct.pack("<f", value) for value in (math.nan, math.inf)]
        spoilt += [Array(good.shape, good.dtype, value + good.data[4:]) for value in values]
    return spoilt


async def check_micro_batches_are_counted(world: World) -> None:
    stages = await world.open()
    await world.pass_(stages, 0, 0)
    x, labels = await world.feed.batch(0, 0)
    with pytest.raises(DflError, match="not complete"):
        await stages[0].step()
    for micro in (0, -1, MICRO_BATCHES):  # done already, or none at all
        with pytest.raises(DflError, match="no such micro-batch"):
            await stages[0].forward(micro, x)
    y = await stages[0].forward(1, x)
    with pytest.raises(DflError, match="no such micro-batch"):
        await stages[0].forward(1, x)
    with pytest.raises(DflError, match="no such micro-batch"):
        await stages[1].last(0, y, labels)
    _, gradient = await stages[1].last(1, y, labels)
    assert gradient is not None
    with pytest.raises(DflError, match="too early"):
        await stages[0].backward(2, gradient)
    await close(stages)


async def check_feed(world: World) -> None:
    """The same rows for the same arguments, other rows for any other."""
    seen = {}
    for step in (0, 1, 7):
        for micro in IN_ORDER:
            x, labels = await world.feed.batch(step, micro)
            assert x.shape[0] == labels.shape[0] == ROWS
            assert labels.dtype == "I64"
            seen[step, micro] = (x, labels)
    assert len({x.data for x, _ in seen.values()}) == len(seen)
    trainer = world.trainer
    again = await trainer.open_feed(DATA, MODEL, TRAINING, micro_batches=MICRO_BATCHES, seed=SEED)
    for (step, micro), batch in reversed(seen.items()):
        assert await again.batch(step, micro) == batch
    other = await trainer.open_feed(DATA, MODEL, TRAINING, micro_batches=MICRO_BATCHES, seed=(*SEED[:-1], 5))
    assert await other.batch(0, 0) != seen[0, 0]
    await again.aclose()
    with pytest.raises(SpecInvalid) as caught:
        await trainer.open_feed(DATA, MODEL, TRAINING, micro_batches=5, seed=SEED)
    assert caught.value.field == "pipeline.micro_batches"


async def check_impossible_splits(world: World) -> None:
    for impossible in (
        config(("nowhere",), 0),
        config(CUTS[1::-1], 0),  # out of order
        config((CUTS[0], CUTS[0]), 0),
        config(CUTS[:1], 2),
        config(CUTS[:1], -1),
    ):
        with pytest.raises(SpecInvalid) as caught:
            await world.trainer.open_stage(impossible, world.parent, None)
        assert caught.value.field == "pipeline.stages"
    personal = replace(config(CUTS[:1], 0), model=replace(MODEL, personal=("fc2.*",)))
    with pytest.raises(SpecInvalid) as caught:
        await world.trainer.open_stage(personal, world.parent, None)
    assert caught.value.field == "model.personal"
    with pytest.raises(SpecInvalid) as caught:
        await world.trainer.inspect_stage(MODEL, ("nowhere",), b"")
    assert caught.value.field == "pipeline.stages"
    magic = config((), 0, replace(TRAINING, optimizer="magic"))
    with pytest.raises(SpecInvalid) as caught:
        await world.trainer.open_stage(magic, world.parent, None)
    assert caught.value.field == "training.optimizer"


async def check_closed_stages(world: World) -> None:
    """Closing one of two leaves the other; closing twice is fine."""
    stages = await world.open()
    x, _ = await world.feed.batch(0, 0)
    await stages[1].aclose()
    await stages[1].aclose()
    with pytest.raises(StageLost):
        await stages[1].snapshot()
    await stages[0].forward(0, x)
    await stages[0].aclose()
    with pytest.raises(StageLost):
        await stages[0].forward(1, x)


async def check_closed(world: World) -> None:
    """The last of the checks: stages end with their trainer."""
    (stage,) = await world.open(())
    await world.trainer.aclose()
    with pytest.raises(StageLost):
        await stage.step()
    await stage.aclose()


CHECKS: tuple[Check, ...] = (
    check_costs,
    check_stages_train_as_the_whole,
    check_parent_is_restacked_unchanged,
    check_order_of_arrival_does_not_matter,
    check_snapshots_go_on_exactly,
    check_snapshots_know_no_micro_batch,
    check_inspect,
    check_hostile_snapshots,
    check_hostile_parents,
    check_hostile_arrays,
    check_micro_batches_are_counted,
    check_feed,
    check_impossible_splits,
    check_closed_stages,
    check_closed,
)
