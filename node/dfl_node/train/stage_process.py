"""Mode pipeline in `ProcessTrainer`: stages and feeds in its worker. trio, and neither torch nor numpy.

A whole model need not fit into the worker: files are taken apart and put together here, and it gets its own
stage's tensors one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import trio

from dfl_ledger.errors import DflError, UpdateRefused, UsageError
from dfl_node.train import stage_files
from dfl_node.train.codec import Schema, TensorSpec
from dfl_node.train.frames import Frame, WorkerDied
from dfl_node.train.stage import Array, SegmentCost, StageConfig, StageLost, check_config, micro_batch_rows
from dfl_node.train.stage_files import Snapshot, StageLayout
from dfl_node.train.trainer import DataConfig, ModelConfig, TrainingConfig

# A request to a stage is brought to its end even if nobody wants the answer any more: to cancel it is to kill
# the worker, and every other stage in it. Beyond this, the worker hangs.
GRACE_S = 10.0


class StageRequests:
    """The part of `ProcessTrainer` that is a `StageTrainer`."""

    def __init__(self) -> None:
        self._stage_sessions = itertools.count(1)
        self._stages_to_close: set[int] = set()

    async def _ask(self, op: str, *payloads: bytes, **fields: Any) -> Frame:
        raise NotImplementedError

    async def segment_costs(self, model: ModelConfig) -> tuple[SegmentCost, ...]:
        answer = await self._ask("stage_costs", model=asdict(model))
        return tuple(SegmentCost(**cost) for cost in answer.header["costs"])

    async def open_stage(
        self, config: StageConfig, parent: bytes | None, snapshot: bytes | None
    ) -> ProcessStage:
        check_config(config)
        schema, layouts = await self._layouts(config.model, config.cuts, config.rows)
        layout, steps = layouts[config.index], 0
        tensors: Mapping[str, memoryview]
        if snapshot is not None:
            found = stage_files.read_snapshot(snapshot, layouts, config.index, config.training.optimizer)
            tensors, steps = found.tensors, found.steps
        elif parent is not None:
            whole = stage_files.cut(parent, schema, max_bytes=config.training.max_update_bytes)
            tensors = {tensor.name: whole[tensor.name] for tensor in layout.tensors}
        else:
            raise UsageError("no stage was opened", why="it needs the round's parent or a snapshot")
        await self.close_stages()  # whose memory this one may need
        stage = ProcessStage(self, next(self._stage_sessions), config, layout, steps)
        await stage.open(tensors)
        return stage

    async def open_feed(
        self,
        data: DataConfig,
        model: ModelConfig,
        training: TrainingConfig,
        *,
        micro_batches: int,
        seed: tuple[int, ...],
    ) -> ProcessFeed:
        rows = micro_batch_rows(training, micro_batches)
        feed = ProcessFeed(self, data, model, rows, micro_batches, seed)
        await feed.batch(0, 0)  # whoever has no rows is told so now
        return feed

    async def inspect_stage(self, model: ModelConfig, cuts: Sequence[str], data: bytes) -> tuple[int, int]:
        _, layouts = await self._layouts(model, cuts)
        found = stage_files.find_snapshot(data, layouts)
        await self._check_finite(found)
        return found.stage, found.steps

    async def restack(
        self, model: ModelConfig, cuts: Sequence[str], snapshots: Sequence[bytes], *, max_update_bytes: int
    ) -> bytes:
        schema, layouts = await self._layouts(model, cuts)
        if len(snapshots) != len(layouts):
            raise UsageError("nothing to restack", why=f"{len(snapshots)} snapshots of {len(layouts)} stages")
        tensors: dict[str, memoryview] = {}
        steps = []
        for index, data in enumerate(snapshots):
            try:
                found = stage_files.read_snapshot(data, layouts, index, stage_files.optimizer_of(data))
                await self._check_finite(found)
            except UpdateRefused as bad:
                raise stage_files.blame(index, bad) from bad
            tensors |= found.tensors
            steps.append(found.steps)
        return stage_files.stack(schema, tensors, steps, max_update_bytes=max_update_bytes)

    async def close_stages(self, *sessions: int) -> None:
        """These, and those that could not be closed in time."""
        self._stages_to_close.update(sessions)
        if closed := sorted(self._stages_to_close):
            await self._ask("stage_close", sessions=closed)
            self._stages_to_close.difference_update(closed)

    async def _layouts(
        self, model: ModelConfig, cuts: Sequence[str], rows: int = 1
    ) -> tuple[Schema, tuple[StageLayout, ...]]:
        answer = await self._ask("stage_layouts", model=asdict(model), cuts=list(cuts), rows=rows)
        shared = answer.header["shared"]
        specs = {name: TensorSpec(name, tuple(shape), dtype) for name, shape, dtype in shared}
        layouts = tuple(
            StageLayout(tuple(specs[name] for name in names if name in specs))
            for names in answer.header["stages"]
        )
        return Schema(tuple(specs.values())), layouts

    async def _check_finite(self, snapshot: Snapshot) -> None:
        for name, tensor in snapshot.tensors.items():
            await self._ask("stage_numbers", bytes(tensor), name=name)


class ProcessStage:
    """A `Stage` in the worker."""

    def __init__(
        self, trainer: StageRequests, session: int, config: StageConfig, layout: StageLayout, steps: int
    ) -> None:
        self._trainer = trainer
        self._session = session
        self._config = config
        self._layout = layout
        self._steps = steps
        self._steady = trio.Lock()  # no step while a snapshot is taken
        self._closed = False

    @property
    def steps(self) -> int:
        return self._steps

    async def open(self, tensors: Mapping[str, memoryview]) -> None:
        """Make it in the worker, filled."""
        config = self._config
        try:
            await self._ask(
                "stage_open",
                model=asdict(config.model),
                training=asdict(config.training),
                cuts=list(config.cuts),
                index=config.index,
                micro_batches=config.micro_batches,
                rows=config.rows,
                steps=self._steps,
            )
            for name, tensor in tensors.items():
                await self._ask("stage_fill", bytes(tensor), name=name)
        except BaseException:  # cancelled too: nobody else knows of it
            await self.aclose()
            raise

    async def forward(self, micro: int, x: Array) -> Array:
        answer = await self._ask("stage_forward", x.data, micro=micro, arrays=[(x.shape, x.dtype)])
        return _arrays(answer)[0]

    async def backward(self, micro: int, gradient: Array) -> Array | None:
        arrays = [(gradient.shape, gradient.dtype)]
        answer = await self._ask("stage_backward", gradient.data, micro=micro, arrays=arrays)
        return next(iter(_arrays(answer)), None)

    async def last(self, micro: int, x: Array, labels: Array) -> tuple[float, Array | None]:
        arrays = [(x.shape, x.dtype), (labels.shape, labels.dtype)]
        answer = await self._ask("stage_last", x.data, labels.data, micro=micro, arrays=arrays)
        return answer.header["loss"], next(iter(_arrays(answer)), None)

    async def step(self) -> int:
        async with self._steady:
            await self._ask("stage_step")
        return self._steps

    async def snapshot(self) -> bytes:
        optimizer = self._config.training.optimizer
        async with self._steady:
            tensors = {
                tensor.name: (await self._ask("stage_take", name=tensor.name)).payloads[0]
                for tensor in stage_files.snapshot_schema(self._layout, optimizer).tensors
                if tensor.name not in stage_files.NUMBERS
            }
            steps = self._steps
        return stage_files.write_snapshot(self._layout, optimizer, self._config.index, steps, tensors)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            with suppress(WorkerDied), trio.CancelScope(shield=True), trio.move_on_after(GRACE_S):
                await self._trainer.close_stages(self._session)

    async def _ask(self, op: str, *payloads: bytes, **fields: Any) -> Frame:
        if self._closed:
            raise StageLost(f"stage {self._config.index} is closed")

        async def request() -> Frame:
            answer = await self._trainer._ask(op, *payloads, session=self._session, **fields)
            self._steps = answer.header.get("steps", self._steps)  # also if nobody waits for it any more
            return answer

        try:
            answer = await _to_its_end(request)
        except WorkerDied as died:
            raise self._lost(died.why or died.what) from died
        if "lost" in answer.header:
            raise self._lost("the trainer's worker was replaced")
        return answer

    def _lost(self, why: str) -> StageLost:
        self._closed = True
        return StageLost(f"stage {self._config.index} is lost after step {self._steps}", why=why)


class ProcessFeed:
    """A `Feed`. The worker keeps nothing of it but the rows, which it can load again."""

    def __init__(
        self,
        trainer: StageRequests,
        data: DataConfig,
        model: ModelConfig,
        rows: int,
        micro_batches: int,
        seed: tuple[int, ...],
    ) -> None:
        self._trainer = trainer
        self._fields = {
            "data": asdict(data),
            "model": asdict(model),
            "rows": rows,
            "micro_batches": micro_batches,
            "seed": list(seed),
        }

    async def batch(self, step: int, micro: int) -> tuple[Array, Array]:
        async def request() -> Frame:
            return await self._trainer._ask("feed_batch", step=step, micro=micro, **self._fields)

        try:
            answer = await _to_its_end(request)
        except WorkerDied:  # whatever it died of: the next one has the same rows
            answer = await _to_its_end(request)
        x, y = _arrays(answer)
        return x, y

    async def aclose(self) -> None:
        """There is nothing to give back."""


async def _to_its_end(request: Callable[[], Awaitable[Frame]]) -> Frame:
    """A request that cancellation does not interrupt, but waits for, up to GRACE_S."""
    answer: Frame | None = None
    problem: DflError | None = None
    shield = trio.CancelScope(shield=True)

    async def hurry() -> None:
        try:
            await trio.sleep_forever()
        finally:
            shield.deadline = trio.current_time() + GRACE_S

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hurry)
        with shield:
            try:
                answer = await request()
            except DflError as failed:  # a nursery would make a group of it
                problem = failed
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
    if answer is None:  # which cancellation has told already
        raise WorkerDied("the trainer's worker was given up")
    return answer


def _arrays(answer: Frame) -> list[Array]:
    headers = answer.header["arrays"]
    return [
        Array(tuple(shape), dtype, data)
        for (shape, dtype), data in zip(headers, answer.payloads, strict=True)
    ]
