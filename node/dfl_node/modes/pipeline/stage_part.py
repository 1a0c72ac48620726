"""One stage of the model on this node, under one plan: what comes in is computed and sent on, 1F1B."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import trio

from dfl_ledger.errors import DflError, PeerUnreachable, UpdateRefused, VerificationFailed
from dfl_node.modes.pipeline import frames
from dfl_node.modes.pipeline.files import StageFile, StageHeader
from dfl_node.modes.pipeline.frames import End, Frame, Loss, Tensor
from dfl_node.modes.pipeline.groups import unwrapped
from dfl_node.modes.pipeline.lines import Line, close
from dfl_node.modes.pipeline.messages import FAILED, FEED, MISBEHAVED, SEVERED, Kept
from dfl_node.modes.pipeline.plan import Forward, Plan, one_forward_one_backward
from dfl_node.modes.pipeline.setting import Setting
from dfl_node.train.stage import Array, Stage

log = structlog.get_logger(__name__)

T = TypeVar("T")

ABOVE, LABELS = "above", "labels"  # ports that others call


class PartFailed(Exception):
    """A stage cannot go on, and whose fault that is as far as it can tell."""

    def __init__(self, blames: int, kind: str, why: str) -> None:
        super().__init__(why)
        self.blames, self.kind, self.why = blames, kind, why


class Port:
    """Frames to and from one neighbour. What arrives waits here, so that two neighbours never wait for each
    other's sends."""

    def __init__(self, neighbour: int, buffered: int) -> None:
        self._neighbour = neighbour
        self._into, self._frames = trio.open_memory_channel[Frame | PartFailed](buffered)
        self._line: Line | None = None
        self._plugged, self._done = trio.Event(), trio.Event()

    @property
    def plugged(self) -> bool:
        return self._line is not None

    async def serve(self, line: Line) -> None:
        """Read the line until it breaks or the port is closed."""
        if self._line is not None:
            raise VerificationFailed("a second call to the same port", why=f"of stage {self._neighbour}")
        self._line = line
        self._plugged.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, line)
                await self._done.wait()
                nursery.cancel_scope.cancel()
        finally:
            await close(line)

    async def wait_plugged(self) -> None:
        await self._plugged.wait()

    async def next(self) -> Frame:
        """Raises PartFailed."""
        item = await self._frames.receive()
        if isinstance(item, PartFailed):
            self._into.send_nowait(item)  # it stays broken
            raise item
        return item

    async def tensor(self, step: int, micro: int) -> Array:
        """The next frame, which must be this micro-batch's. Raises PartFailed."""
        frame = await self.next()
        if not isinstance(frame, Tensor) or (frame.step, frame.micro) != (step, micro):
            raise self.misbehaved(f"sends {_name(frame)} instead of micro-batch {micro} of step {step}")
        return frame.array

    async def put(self, frame: Frame) -> None:
        """Raises PartFailed."""
        await self.wait_plugged()
        if self._line is None:
            raise PartFailed(self._neighbour, SEVERED, "no line")
        try:
            await self._line.send(frames.encode(frame))
        except DflError as gone:
            raise PartFailed(self._neighbour, SEVERED, str(gone)) from gone

    def misbehaved(self, why: str) -> PartFailed:
        return PartFailed(self._neighbour, MISBEHAVED, why)

    def close(self) -> None:
        self._done.set()

    async def _read(self, line: Line) -> None:
        try:
            while True:
                await self._into.send(frames.decode(await line.receive()))
        except VerificationFailed as bad:
            await self._into.send(PartFailed(self._neighbour, MISBEHAVED, str(bad)))
        except DflError as gone:
            await self._into.send(PartFailed(self._neighbour, SEVERED, str(gone)))


class StagePart:
    """Runs from the moment every stage of the plan is ready to the plan's end."""

    def __init__(
        self,
        setting: Setting,
        plan: Plan,
        index: int,
        stage: Stage,
        tell: Callable[[Kept], Awaitable[None]],
    ) -> None:
        self.step = plan.step
        self.waiting_for = "the others"  # for those who watch
        self.busy = False  # at its own work, not waiting for a neighbour
        self._setting, self._plan, self._index, self._stage, self._tell = setting, plan, index, stage, tell
        self._micro_batches = setting.pipeline.micro_batches
        self._last = index == len(plan.holders) - 1
        room = 2 * self._micro_batches + 2  # more than a neighbour that keeps to 1F1B can be ahead
        self._above = Port(index - 1 if index else FEED, room)
        self._labels = Port(FEED, room)
        self._below = Port(index + 1, room)
        self._files, self._to_keep = trio.open_memory_channel[tuple[int, bytes] | None](1)

    async def plug(self, port: str, line: Line) -> None:
        """A neighbour has called; returns when the plan ends. Raises VerificationFailed."""
        if port == LABELS and not self._last:
            raise VerificationFailed("labels for a stage in the middle", why=f"stage {self._index}")
        await (self._labels if port == LABELS else self._above).serve(line)

    async def run(self) -> None:
        """Raises PartFailed."""
        ports = (self._above, self._labels, self._below)
        try:
            with unwrapped(PartFailed):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_files)
                    if not self._last:
                        nursery.start_soon(self._below.serve, await self._call_below())
                    await self._train()
                    await self._files.send(None)  # after the last file the keeper is done
                    for port in ports:
                        port.close()
        finally:
            for port in ports:
                port.close()

    async def _call_below(self) -> Line:
        below = self._index + 1
        opening = self._setting.call(self._plan.epoch, below, ABOVE)
        try:
            return await self._setting.open(self._plan.holders[below], opening)
        except DflError as gone:
            raise PartFailed(below, SEVERED, str(gone)) from gone

    # -- the steps ------------------------------------------------------------------------------------
    async def _train(self) -> None:
        taken = -1
        while True:
            head = await self._next_above()
            if isinstance(head, End):
                break
            await self._one_step(head)
            self.step = await self._own(self._stage.step)
            if self.step % self._setting.pipeline.snapshot_steps == 0:
                taken = self.step
                await self._take_snapshot()
        if head.step != self.step:
            raise self._above.misbehaved(f"ends at step {head.step}, not {self.step}")
        if not self._last:
            await self._below.put(head)
        if taken != self.step:
            await self._take_snapshot()
        self.waiting_for = "the end of the round"

    async def _next_above(self) -> Frame:
        self.waiting_for = "the feed" if self._index == 0 else f"stage {self._index - 1}"
        return await self._above.next()

    async def _one_step(self, head: Frame) -> None:
        """Every micro-batch forward and backward; the first one's input is `head`."""
        sent: dict[int, tuple[int, ...]] = {}  # shapes of what went down, which gradients must have
        for task in one_forward_one_backward(self._index, len(self._plan.holders), self._micro_batches):
            if isinstance(task, Forward):
                frame = head if task.micro == 0 else await self._next_above()
                if not isinstance(frame, Tensor) or (frame.step, frame.micro) != (self.step, task.micro):
                    raise self._above.misbehaved(
                        f"sends {_name(frame)} instead of micro-batch {task.micro} of step {self.step}"
                    )
                if self._last:
                    await self._last_stage(task.micro, frame.array)
                else:
                    x = frame.array
                    y = await self._computing(self._above, self._stage.forward, task.micro, x)
                    sent[task.micro] = y.shape
                    await self._below.put(Tensor(self.step, task.micro, y))
            elif not self._last:
                self.waiting_for = f"stage {self._index + 1}"
                gradient = await self._below.tensor(self.step, task.micro)
                if gradient.shape != sent[task.micro]:
                    raise self._below.misbehaved(f"a gradient of shape {list(gradient.shape)}")
                back = await self._computing(self._below, self._stage.backward, task.micro, gradient)
                await self._send_back(task.micro, back)

    async def _last_stage(self, micro: int, x: Array) -> None:
        """Forward, loss and backward in one."""
        self.waiting_for = "labels"
        labels = await self._labels.tensor(self.step, micro)
        loss, back = await self._computing(self._above, self._stage.last, micro, x, labels)
        if not math.isfinite(loss):
            raise PartFailed(self._index, FAILED, f"loss {loss} in step {self.step}")
        await self._labels.put(Loss(self.step, micro, loss))
        await self._send_back(micro, back)

    async def _send_back(self, micro: int, gradient: Array | None) -> None:
        if self._index and gradient is not None:
            await self._above.put(Tensor(self.step, micro, gradient))

    async def _computing(self, giver: Port, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """A call of the stage with what a neighbour sent. Raises PartFailed."""
        try:
            return await self._own(call, *args)
        except UpdateRefused as bad:
            raise giver.misbehaved(str(bad)) from bad

    async def _own(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """A call of the stage, whose failures are ours. Raises PartFailed, UpdateRefused."""
        self.busy = True
        try:
            return await call(*args)
        except UpdateRefused:
            raise
        except DflError as failure:
            raise PartFailed(self._index, FAILED, str(failure)) from failure
        finally:
            self.busy = False

    # -- snapshots ------------------------------------------------------------------------------------
    async def _take_snapshot(self) -> None:
        """Taken at once, kept while training goes on; a store that is slow holds the next one up."""
        await self._files.send((self.step, await self._own(self._stage.snapshot)))

    async def _keep_files(self) -> None:
        plan, run = self._plan, self._setting.run
        while (item := await self._to_keep.receive()) is not None:
            step, snapshot = item
            header = StageHeader(
                run.job,
                run.round,
                run.parent,
                plan.epoch,
                plan.conductor,
                plan.cuts,
                self._index,
                step,
            )
            try:
                cid = await self._setting.keep(StageFile(header, snapshot).encode())
                await self._tell(Kept(plan.epoch, self._index, step, cid))
            except PeerUnreachable:
                return  # the conductor is gone: so is this plan
            except DflError as failure:  # a full disk, say: another node can go on
                raise PartFailed(self._index, FAILED, str(failure)) from failure


def _name(frame: Frame) -> str:
    match frame:
        case Tensor(step, micro, _):
            return f"micro-batch {micro} of step {step}"
        case Loss(step, micro, _):
            return f"a loss of step {step}"
        case End(step):
            return f"the end at step {step}"
