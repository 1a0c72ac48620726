"""One node's part in one round's run: a member always, the conductor when it is its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
import trio

from dfl_ledger.errors import DflError
from dfl_ledger.records import Address, Kind
from dfl_node.modes.mode import Context
from dfl_node.modes.pipeline.conductor import Conductor
from dfl_node.modes.pipeline.crew import SteppedDown
from dfl_node.modes.pipeline.files import Record, StageFile
from dfl_node.modes.pipeline.member import Member
from dfl_node.modes.pipeline.plan import Finish, Patience, RunId
from dfl_node.modes.pipeline.seating import Seating
from dfl_node.modes.pipeline.setting import Setting
from dfl_node.train.stage import SegmentCost

log = structlog.get_logger(__name__)

LOOK_S = 0.25
RETRY_S = 1.0
MAX_POINTS_TOLD = 32  # of the recovery points, in the record


@dataclass(frozen=True, slots=True)
class Piece:
    """What this node has to commit."""

    kind: Kind
    data: bytes
    steps: int
    loss: float  # of the last step


class PipelineRun:
    """Takes part from `run` on until this node has a piece to commit, or is cancelled."""

    def __init__(
        self,
        context: Context,
        run: RunId,
        order: Sequence[Address],
        costs: Sequence[SegmentCost],
        speed: float,  # FLOP/s of this node, 0 = not measured
    ) -> None:
        self._context, self._run, self._order = context, run, tuple(order)
        self._costs, self._speed = costs, speed
        self._member: Member | None = None
        self._conductor: Conductor | None = None
        self._why_not = ""  # the last attempt to conduct failed
        self._piece: Piece | None = None
        self._ended = trio.Event()
        self._deadline = 0.0

    async def run(self, deadline: float) -> Piece:
        """`deadline`: Unix seconds, the commit window's end."""
        self._deadline = deadline
        async with trio.open_nursery() as nursery:
            setting = Setting(
                context=self._context,
                run=self._run,
                order=self._order,
                deadline=deadline,
                patience=Patience.within(self._context.spec.round.commit_s),
                speed=self._speed,
                nursery=nursery,
            )
            member = Member(setting)
            setting.attendant = self._member = member
            with setting.lines.attend(self._run, member):
                nursery.start_soon(self._conduct_in_turn, setting, member)
                nursery.start_soon(self._see_the_end, setting, member)
                await self._ended.wait()
                nursery.cancel_scope.cancel()
        if self._piece is None:
            raise DflError("a pipeline ended without a piece")
        return self._piece

    # -- as a member ----------------------------------------------------------------------------------
    async def _see_the_end(self, setting: Setting, member: Member) -> None:
        """Once the run has ended: the piece that is ours to commit."""
        while True:
            finish = member.finish
            if finish is not None and self._conductor is None and setting.me in finish.committers:
                setting.lines.remember(self._run, finish)
                await self._end(setting, finish)
            with trio.move_on_after(RETRY_S):
                await member.changed()

    async def _end(self, setting: Setting, finish: Finish, record: Record | None = None) -> None:
        point = finish.point
        loss = point.losses[-1] if point.losses else 0.0
        if record is not None:
            self._piece = Piece(Kind.FEED, record.encode(), point.step, loss)
        else:
            try:
                stage = finish.committers.index(setting.me)
                file = await setting.fetch(point.snapshots[stage])
                StageFile.decode(file)
            except DflError as failure:
                log.warning("our stage's file is not here", job=self._run.job, why=str(failure))
                return
            self._piece = Piece(Kind.STAGE, file, point.step, loss)
        self._ended.set()

    # -- as the conductor -----------------------------------------------------------------------------
    async def _conduct_in_turn(self, setting: Setting, member: Member) -> None:
        """Conduct whenever everybody before us in the order has had time to, and nobody does."""
        seating = Seating(setting, self._costs)
        while True:
            await self._our_turn(setting, member)
            self._conductor = conductor = Conductor(setting, member, seating)
            try:
                finish = await conductor.run()
                await self._end_as_conductor(setting, conductor, finish)
            except SteppedDown as other:
                log.info("another conducts", job=self._run.job, why=str(other))
            except DflError as failure:
                self._why_not = str(failure)
                log.warning("conducting failed", job=self._run.job, why=str(failure))
            self._conductor = None
            await trio.sleep(RETRY_S)

    async def _our_turn(self, setting: Setting, member: Member) -> None:
        while True:
            lost = member.seat.conductor if member.seat is not None else None
            connected = setting.lines.connected()
            before = [
                node
                for node in self._order[: self._order.index(setting.me)]
                if node in connected and node != lost
            ]
            at = member.lost_at + len(before) * setting.patience.takeover_s
            if not member.led and trio.current_time() >= at:
                return
            with trio.move_on_after(LOOK_S):
                await member.changed()

    async def _end_as_conductor(self, setting: Setting, conductor: Conductor, finish: Finish) -> None:
        if setting.me in finish.committers:
            await self._end(setting, finish)
        elif finish.point.conductor == setting.me and self._context.spec.target > setting.pipeline.stages:
            points = [replace(point, losses=()) for point in conductor.points[-MAX_POINTS_TOLD:]]
            record = Record(
                job=self._run.job,
                round=self._run.round,
                parent=self._run.parent,
                finish=replace(finish, point=replace(finish.point, losses=())),
                points=tuple(points),
                turns=tuple(conductor.turns),
                losses=conductor.losses(finish.point.step),
            )
            await self._end(setting, finish, record)
        await trio.sleep_forever()  # a round that needs no piece of ours goes on without us

    # -- for those who watch --------------------------------------------------------------------------
    def activity(self) -> dict[str, Any]:
        """Role, step of steps, who holds which stage, loss, who is waited for and until when: plain JSON."""
        member, conductor = self._member, self._conductor
        told: dict[str, Any] = {
            "role": "spare",
            "step": 0,
            "of": self._context.spec.training.local_steps,
            "until": self._deadline,
        }
        if member is None:
            return told
        told["step"] = member.step
        told["waits_for"] = "a stage to take over" if member.led else "a conductor"
        if member.plan is not None:
            told["stages"] = list(member.plan.holders)
        if member.seat is not None:
            told["conductor"], told["epoch"] = member.seat.conductor, member.seat.epoch
        if member.point is not None and member.point.losses:
            told["loss"] = member.point.losses[-1]
        if member.parts:
            told["role"], told["holds"] = "stage", sorted(member.parts)
            waiting = [part.waiting_for for _, part in sorted(member.parts.items()) if not part.busy]
            told["waits_for"] = "; ".join(waiting)
        if conductor is not None:
            losses = conductor.progress.losses
            told["role"] = "feed and stage" if member.parts else "feed"
            told["step"] = max(losses, default=-1) + 1
            told["waits_for"] = conductor.waiting_for
            told["recovered"] = [{"why": turn.why, "took_s": turn.took_s} for turn in conductor.turns[1:]]
            if losses:
                told["loss"] = losses[max(losses)]
        if self._why_not:
            told["problem"] = self._why_not
        return told
