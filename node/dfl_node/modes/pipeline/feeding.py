"""The feed of a plan: micro-batches to the first stage, their labels to the last, losses back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from dfl_ledger.errors import DflError, VerificationFailed
from dfl_node.modes.pipeline import frames
from dfl_node.modes.pipeline.frames import End, Loss, Tensor
from dfl_node.modes.pipeline.groups import unwrapped
from dfl_node.modes.pipeline.lines import Line, close
from dfl_node.modes.pipeline.messages import FEED, MISBEHAVED, SEVERED
from dfl_node.modes.pipeline.plan import Plan
from dfl_node.modes.pipeline.setting import Setting
from dfl_node.modes.pipeline.stage_part import ABOVE, LABELS, PartFailed
from dfl_node.train.stage import Feed

STEPS_AHEAD = 2  # steps that are fed before the losses of the first are back: no stage waits for the feed
SLACK = 1.5  # a step is begun only if so many times its usual length is left


@dataclass(slots=True)
class Progress:
    """What the feed has heard of the run."""

    losses: dict[int, float] = field(default_factory=dict)  # step -> mean loss of its micro-batches
    step_s: float = 0.0  # seconds between the ends of two steps, a moving average
    micro_batches: int = 0  # back in all


class Feeding:
    """Feeds one plan from its first step to its goal, or to the last step that there is time for."""

    def __init__(
        self, setting: Setting, plan: Plan, feed: Feed, progress: Progress, tell: Callable[[str], None]
    ) -> None:
        self.end: int | None = None  # the step at which it ended the run
        self._setting, self._plan, self._feed = setting, plan, feed
        self._progress, self._tell = progress, tell
        self._done = plan.step  # steps whose losses are all here
        self._news = trio.Event()

    async def run(self) -> None:
        """Until cancelled. `tell` is called at every loss, and when all is fed. Raises PartFailed."""
        last = len(self._plan.holders) - 1
        inputs = await self._call(0, ABOVE)
        try:
            labels = await self._call(last, LABELS)
            try:
                with unwrapped(PartFailed):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._listen, labels, last)
                        await self._send_all(inputs, labels)
                        while self._done < (self.end or 0):
                            await self._news.wait()
                        nursery.cancel_scope.cancel()
                await trio.sleep_forever()  # the lines stay until the plan is over
            finally:
                await close(labels)
        finally:
            await close(inputs)

    async def _call(self, stage: int, port: str) -> Line:
        opening = self._setting.call(self._plan.epoch, stage, port)
        try:
            return await self._setting.open(self._plan.holders[stage], opening)
        except DflError as gone:
            raise PartFailed(stage, SEVERED, str(gone)) from gone

    async def _send_all(self, inputs: Line, labels: Line) -> None:
        plan, last = self._plan, len(self._plan.holders) - 1
        step = plan.step
        while step < plan.goal:
            while step - self._done >= STEPS_AHEAD:
                await self._news.wait()
            if not self._time_for_another(step):
                break
            for micro in range(self._setting.pipeline.micro_batches):
                try:
                    x, y = await self._feed.batch(step, micro)
                except DflError as failure:
                    raise PartFailed(FEED, MISBEHAVED, str(failure)) from failure
                await self._send(inputs, 0, Tensor(step, micro, x))
                await self._send(labels, last, Tensor(step, micro, y))
            step += 1
        self.end = step
        await self._send(inputs, 0, End(step))
        self._tell("the end is fed")

    async def _send(self, line: Line, stage: int, frame: Tensor | End) -> None:
        try:
            await line.send(frames.encode(frame))
        except DflError as gone:
            raise PartFailed(stage, SEVERED, str(gone)) from gone

    def _time_for_another(self, step: int) -> bool:
        """Whether this step, and those under way before it, end in time for the commits."""
        pending = step - self._done + 1
        needed_s = self._progress.step_s * pending * SLACK + self._setting.patience.wrap_up_s
        return self._setting.left_s() > needed_s

    async def _listen(self, labels: Line, last: int) -> None:
        """Losses, in order."""
        micro_batches, step = self._setting.pipeline.micro_batches, self._plan.step
        began = trio.current_time()
        while True:
            losses = []
            for micro in range(micro_batches):
                losses.append(await self._next_loss(labels, last, step, micro))
                self._progress.micro_batches += 1
                self._tell("a loss")
            now = trio.current_time()
            taken_s, began = now - began, now
            before_s = self._progress.step_s
            self._progress.step_s = taken_s if not before_s else (before_s + taken_s) / 2
            self._progress.losses[step] = sum(losses) / micro_batches
            step += 1
            self._done = step
            self._news.set()
            self._news = trio.Event()

    async def _next_loss(self, labels: Line, last: int, step: int, micro: int) -> float:
        try:
            frame = frames.decode(await labels.receive())
        except VerificationFailed as bad:
            raise PartFailed(last, MISBEHAVED, str(bad)) from bad
        except DflError as gone:
            raise PartFailed(last, SEVERED, str(gone)) from gone
        if not isinstance(frame, Loss) or (frame.step, frame.micro) != (step, micro):
            raise PartFailed(last, MISBEHAVED, f"no loss of micro-batch {micro} of step {step}")
        return frame.loss
