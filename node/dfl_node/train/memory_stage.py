"""Mode pipeline in `MemoryTrainer`: toy stages in this process, with real files and the same refusals.

The toy's numbers are shared out among the stages. A row is (noise, loss so far); each stage adds the squared
distance of its own numbers to the target that the row sees, and passes gradients back as calculus has it: a
stage left out, a row used twice or a gradient of another micro-batch changes every number that follows. What
is kept between steps is float32, like a snapshot: who goes on from one does exactly the undisturbed run.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Mapping, Sequence

import trio

from dfl_ledger.errors import DflError, UpdateRefused, UsageError
from dfl_node.train import models, stage_files
from dfl_node.train.codec import Schema, TensorSpec, refusal
from dfl_node.train.stage import (
    ARRAY_DTYPE_BYTES,
    OPTIMIZER_SLOTS,
    Array,
    SegmentCost,
    StageConfig,
    StageLost,
    array_refusal,
    check_config,
    check_cuts,
    micro_batch_rows,
)
from dfl_node.train.stage_files import Snapshot, StageLayout
from dfl_node.train.trainer import DataConfig, ModelConfig, TrainingConfig

PARAMETER_BYTES, ACTIVATION_BYTES, FLOPS = 1 << 20, 1 << 12, 1_000_000  # of every segment, or so it says
_WIDTH = 2  # of a row: noise, loss so far
_STEP = 0.05  # of the way to the target, at each step
_MOMENTUM = 0.5
_SPREAD = 0.05  # how differently rows see the target

Numbers = list[float]


class MemoryStages:
    """The part of `MemoryTrainer` that is a `StageTrainer`. Each call of a stage or a feed takes `stage_s`
    seconds of trio's clock."""

    def __init__(self, schema: Schema, target: Numbers, stage_s: float) -> None:
        self._schema = schema
        self._target = target
        self.stage_s = stage_s
        self.toy_size = len(target)
        self.worker = object()  # that holds the stages

    def _check_open(self) -> None:
        raise NotImplementedError

    def lose_stages(self) -> None:
        """As if the worker was killed: every stage there is is lost."""
        self.worker = object()

    async def segment_costs(self, model: ModelConfig) -> tuple[SegmentCost, ...]:
        self._check_open()
        models.check(model)
        names = ("", *models.cuts(model))
        passes = ARRAY_DTYPE_BYTES["F32"] * _WIDTH
        return tuple(
            SegmentCost(name, PARAMETER_BYTES, ACTIVATION_BYTES, FLOPS, passes_bytes=passes) for name in names
        )

    async def open_stage(
        self, config: StageConfig, parent: bytes | None, snapshot: bytes | None
    ) -> MemoryStage:
        self._check_open()
        check_config(config)
        layouts = self._layouts(config.model, config.cuts)
        await trio.sleep(self.stage_s)
        if snapshot is not None:
            found = stage_files.read_snapshot(snapshot, layouts, config.index, config.training.optimizer)
            tensors, steps = _decode_all(found), found.steps
        elif parent is not None:
            whole = stage_files.cut(parent, self._schema, max_bytes=config.training.max_update_bytes)
            numbers = [number for name, tensor in whole.items() for number in _decode(name, tensor)]
            tensors, steps = {_name(config.index): self._part(numbers, config)}, 0
        else:
            raise UsageError("no stage was opened", why="it needs the round's parent or a snapshot")
        target = self._part(self._target, config)
        return MemoryStage(self, config, layouts[config.index], target, tensors, steps)

    async def open_feed(
        self,
        data: DataConfig,
        model: ModelConfig,
        training: TrainingConfig,
        *,
        micro_batches: int,
        seed: tuple[int, ...],
    ) -> MemoryFeed:
        self._check_open()
        models.check(model)
        rows = micro_batch_rows(training, micro_batches)
        return MemoryFeed(self, rows, f"{data.shard} {'/'.join(map(str, seed))}")

    async def inspect_stage(self, model: ModelConfig, cuts: Sequence[str], data: bytes) -> tuple[int, int]:
        self._check_open()
        found = stage_files.find_snapshot(data, self._layouts(model, cuts))
        _decode_all(found)
        return found.stage, found.steps

    async def restack(
        self, model: ModelConfig, cuts: Sequence[str], snapshots: Sequence[bytes], *, max_update_bytes: int
    ) -> bytes:
        self._check_open()
        layouts = self._layouts(model, cuts)
        if len(snapshots) != len(layouts):
            raise UsageError("nothing to restack", why=f"{len(snapshots)} snapshots of {len(layouts)} stages")
        numbers, steps = b"", []
        for index, data in enumerate(snapshots):
            try:
                found = stage_files.read_snapshot(data, layouts, index, stage_files.optimizer_of(data))
                _decode_all(found)
            except UpdateRefused as bad:
                raise stage_files.blame(index, bad) from bad
            numbers += bytes(found.tensors[_name(index)])
            steps.append(found.steps)
        tensors, start = {}, 0
        for tensor in self._schema.tensors:
            tensors[tensor.name] = numbers[start : start + tensor.size]
            start += tensor.size
        return stage_files.stack(self._schema, tensors, steps, max_update_bytes=max_update_bytes)

    def _part(self, numbers: Numbers, config: StageConfig) -> Numbers:
        first, end = _bounds(len(self._target), config.stages, config.index)
        return numbers[first:end]

    def _layouts(self, model: ModelConfig, cuts: Sequence[str]) -> tuple[StageLayout, ...]:
        models.check(model)
        check_cuts(cuts, models.cuts(model))
        layouts = []
        for index in range(len(cuts) + 1):
            first, end = _bounds(len(self._target), len(cuts) + 1, index)
            layouts.append(StageLayout((TensorSpec(_name(index), (end - first,), "F32"),)))
        return tuple(layouts)


class MemoryStage:
    """A `Stage` of the toy."""

    def __init__(
        self,
        trainer: MemoryStages,
        config: StageConfig,
        layout: StageLayout,
        target: Numbers,
        tensors: Mapping[str, Numbers],
        steps: int,
    ) -> None:
        self._trainer = trainer
        self._worker: object | None = trainer.worker
        self._config = config
        self._layout = layout
        self._target = target
        name = _name(config.index)
        self._numbers = tensors[name]
        self._slots = {
            slot: tensors.get(f"optimizer.{slot}.{name}", [0.0] * len(target))
            for slot in OPTIMIZER_SLOTS[config.training.optimizer]
        }
        self._steps = steps
        self._kept: dict[int, Numbers] = {}  # rows, by micro-batch
        self._gradients: dict[int, Numbers] = {}  # of `_numbers`, by micro-batch

    @property
    def steps(self) -> int:
        return self._steps

    async def forward(self, micro: int, x: Array) -> Array:
        await self._call()
        return self._forward(micro, x)

    async def backward(self, micro: int, gradient: Array) -> Array | None:
        await self._call()
        if micro not in self._kept:
            raise DflError("a gradient came too early", why=f"micro-batch {micro} did not go forward")
        return self._backward(micro, self._read(gradient, "the gradient"))

    async def last(self, micro: int, x: Array, labels: Array) -> tuple[float, Array | None]:
        await self._call()
        rows = self._config.rows
        if labels.dtype != "I64" or labels.shape != (rows,):
            raise array_refusal(f"the labels must be I64 [{rows}], not {labels.dtype} {list(labels.shape)}")
        losses = _decode_array(self._forward(micro, x))[1::_WIDTH]
        return math.fsum(losses) / rows, self._backward(micro, [0.0, 1 / rows] * rows)

    async def step(self) -> int:
        await self._call()
        due = self._config.micro_batches
        if len(self._gradients) != due:
            raise DflError(
                "the step is not complete", why=f"{len(self._gradients)} of {due} micro-batches are back"
            )
        total = [0.0] * len(self._numbers)
        for micro in range(due):
            total = [t + g for t, g in zip(total, self._gradients[micro], strict=True)]
        velocity, *others = self._slots.values()
        velocity = _rounded([_MOMENTUM * v + t / due for v, t in zip(velocity, total, strict=True)])
        self._slots = dict(zip(self._slots, [velocity, *others], strict=True))
        # Of a mean over all the toy's numbers: `scale` takes each of them _STEP of its way.
        scale = _STEP * self._trainer.toy_size / 2
        self._numbers = _rounded([n - scale * v for n, v in zip(self._numbers, velocity, strict=True)])
        self._gradients = {}
        self._steps += 1
        return self._steps

    async def snapshot(self) -> bytes:
        await self._call()
        name = _name(self._config.index)
        tensors = {f"optimizer.{slot}.{name}": numbers for slot, numbers in self._slots.items()}
        tensors[name] = self._numbers
        return stage_files.write_snapshot(
            self._layout,
            self._config.training.optimizer,
            self._config.index,
            self._steps,
            {name: array("f", numbers).tobytes() for name, numbers in tensors.items()},
        )

    async def aclose(self) -> None:
        self._worker = None

    async def _call(self) -> None:
        """A request to the worker, if it is still the one."""
        self._check_held()
        await trio.sleep(self._trainer.stage_s)
        self._check_held()

    def _check_held(self) -> None:
        if self._worker is not self._trainer.worker:
            raise self._lost("it is closed" if self._worker is None else "the trainer's worker was replaced")
        try:
            self._trainer._check_open()
        except DflError as closed:
            raise self._lost(closed.what) from closed

    def _lost(self, why: str) -> StageLost:
        return StageLost(f"stage {self._config.index} is lost after step {self._steps}", why=why)

    def _forward(self, micro: int, x: Array) -> Array:
        count = self._config.micro_batches
        if not 0 <= micro < count or micro in self._kept or micro in self._gradients:
            raise DflError("no such micro-batch is due", why=f"micro-batch {micro} of {count}")
        rows = self._read(x, "the rows")
        out = []
        for noise, loss in zip(rows[::_WIDTH], rows[1::_WIDTH], strict=True):
            out += [noise, loss + math.fsum(d * d for d in self._misses(noise)) / self._trainer.toy_size]
        self._kept[micro] = rows
        return _encode_array(out)

    def _backward(self, micro: int, gradient: Numbers) -> Array | None:
        """d loss / d number = 2 miss / size; d loss / d noise = -2 sum(miss) / size."""
        rows = self._kept.pop(micro)
        own, upstream = [0.0] * len(self._numbers), []
        for row, noise in enumerate(rows[::_WIDTH]):
            of_noise, of_loss = gradient[row * _WIDTH : (row + 1) * _WIDTH]
            slopes = [2 * of_loss * miss / self._trainer.toy_size for miss in self._misses(noise)]
            own = [total + slope for total, slope in zip(own, slopes, strict=True)]
            upstream += [of_noise - math.fsum(slopes), of_loss]
        self._gradients[micro] = own
        return _encode_array(upstream) if self._config.index > 0 else None

    def _misses(self, noise: float) -> Numbers:
        """How far each number is from the target as a row sees it."""
        return [number - target - noise for number, target in zip(self._numbers, self._target, strict=True)]

    def _read(self, given: Array, what: str) -> Numbers:
        shape = (self._config.rows, _WIDTH)
        if given.dtype != "F32" or given.shape != shape:
            raise array_refusal(f"{what} must be F32 {list(shape)}, not {given.dtype} {list(given.shape)}")
        numbers = _decode_array(given)
        if not all(map(math.isfinite, numbers)):
            raise array_refusal(f"{what} hold NaN or Inf")
        return numbers


class MemoryFeed:
    """A `Feed` of the toy."""

    def __init__(self, trainer: MemoryStages, rows: int, seed: str) -> None:
        self._trainer = trainer
        self._rows = rows
        self._seed = seed

    async def batch(self, step: int, micro: int) -> tuple[Array, Array]:
        await trio.sleep(self._trainer.stage_s)
        source = random.Random(f"{self._seed} {step} {micro}")  # noqa: S311  a toy, not a secret
        rows = [number for _ in range(self._rows) for number in ((2 * source.random() - 1) * _SPREAD, 0.0)]
        return _encode_array(rows), Array((self._rows,), "I64", bytes(8 * self._rows))

    async def aclose(self) -> None:
        """There is nothing to give back."""


def _name(index: int) -> str:
    return f"numbers.{index}"


def _bounds(size: int, stages: int, index: int) -> tuple[int, int]:
    """Which of the toy's numbers a stage holds."""
    return index * size // stages, (index + 1) * size // stages


def _rounded(numbers: Numbers) -> Numbers:
    return list(array("f", numbers))


def _decode(name: str, data: memoryview) -> Numbers:
    numbers = list(array("f", bytes(data)))
    if any(map(math.isnan, numbers)):
        raise refusal(f"tensor {name!r} holds NaN")
    if any(map(math.isinf, numbers)):
        raise refusal(f"tensor {name!r} holds Inf")
    if name.startswith("optimizer.second.") and min(numbers) < 0:
        raise refusal(f"tensor {name!r} holds {min(numbers):g}: no mean of squares")
    return numbers


def _decode_all(snapshot: Snapshot) -> dict[str, Numbers]:
    return {name: _decode(name, tensor) for name, tensor in snapshot.tensors.items()}


def _encode_array(numbers: Numbers) -> Array:
    return Array((len(numbers) // _WIDTH, _WIDTH), "F32", array("f", numbers).tobytes())


def _decode_array(given: Array) -> Numbers:
    return list(array("f", given.data))
