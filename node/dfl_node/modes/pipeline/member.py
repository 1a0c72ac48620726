"""One member's side of a run: it obeys a conductor and holds the stages that the plan gives it."""

from __future__ import annotations

from contextlib import suppress

import structlog
import trio

from dfl_ledger.errors import BlobNotFound, DflError, TimedOut, UpdateRefused, VerificationFailed
from dfl_ledger.records import Address, Cid
from dfl_node.modes.pipeline.files import StageFile
from dfl_node.modes.pipeline.lines import Line, close
from dfl_node.modes.pipeline.messages import (
    FAILED,
    RESTORING,
    Ask,
    Beat,
    Call,
    Go,
    Kept,
    Message,
    Offer,
    Reached,
    Ready,
    Refusal,
    Trouble,
    pack,
    unpack,
)
from dfl_node.modes.pipeline.plan import Finish, Plan, Point, Seat, Turn
from dfl_node.modes.pipeline.setting import Setting
from dfl_node.modes.pipeline.stage_part import PartFailed, StagePart
from dfl_node.train.stage import Stage

log = structlog.get_logger(__name__)

MAX_EPOCHS_AHEAD = 1000  # a conductor whom we have not heard for a while may have made so many plans
POINTS_KEPT = 2  # our files of older recovery points need not stay


class Member:
    """An `Attendant`."""

    def __init__(self, setting: Setting) -> None:
        self.seat: Seat | None = None  # whom we obey, or obeyed last
        self.led = False  # and whether that one is there
        self.lost_at = trio.current_time()  # since when nobody is
        self.plan: Plan | None = None
        self.point: Point | None = None  # the newest recovery point we know of
        self.turns: tuple[Turn, ...] = ()
        self.finish: Finish | None = setting.lines.ended(setting.run)
        self.parts: dict[int, StagePart] = {}  # the stages we hold
        self._setting = setting
        self._news = trio.Event()
        self._session = trio.CancelScope()
        self._holding = trio.CancelScope()
        self._hands = trio.Lock()  # the stages of one plan at a time
        self._go = trio.Event()
        self._heard_step, self._progress_at = 0, trio.current_time()
        self._deposed: set[Address] = set()  # conductors under whom nothing moved
        self._made: list[tuple[int, Cid]] = []  # our stage files and their steps
        self._line: Line | None = None
        self._pen = trio.Lock()

    async def changed(self) -> None:
        """Until a conductor comes or goes, or the run has ended."""
        await self._news.wait()

    @property
    def step(self) -> int:
        """How far the run is, as far as we know."""
        return max((part.step for part in self.parts.values()), default=self._heard_step)

    def rank(self, node: Address) -> int:
        return self._setting.order.index(node)

    # -- whom we obey ---------------------------------------------------------------------------------
    async def on_control(self, node: Address, ask: Ask, line: Line) -> None:
        """A conductor calls. We are its own until the line ends or a better claim comes."""
        try:
            if node not in self._setting.order or node in self._deposed:
                return
            latest = self.seat.epoch if self.seat else 0
            if ask.epoch > latest + MAX_EPOCHS_AHEAD:
                raise VerificationFailed(f"{node} claims epoch {ask.epoch}", why=f"the latest is {latest}")
            seat = Seat(ask.epoch, self.rank(node), node)
            own = self.seat is not None and self.seat.conductor == node and ask.epoch >= self.seat.epoch
            if not own and not seat.outranks(self.seat):
                await line.send(pack(Refusal(latest, self.led)))
                with trio.move_on_after(self._setting.patience.contact_s):
                    await line.receive()  # until it has read that
                return
            self._session.cancel()
            with trio.CancelScope() as self._session:
                await self._serve(seat, line)
        except DflError as gone:
            log.debug("a conductor's line ended", conductor=node, why=str(gone))
        finally:
            await close(line)

    async def _serve(self, seat: Seat, line: Line) -> None:
        self.seat, self.led, self._line = seat, True, line
        self._tell_news()
        try:
            await line.send(pack(self._offer()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat, line)
                await self._obey(seat.conductor, line, nursery)
        except* DflError as failures:
            say = log.info if self.finish is None else log.debug
            say("conductor lost", conductor=seat.conductor, why=str(failures.exceptions[0]))
        finally:
            if self._line is line:
                self.led, self.lost_at, self._line = False, trio.current_time(), None
            self._tell_news()

    async def _obey(self, conductor: Address, line: Line, nursery: trio.Nursery) -> None:
        patience = self._setting.patience
        silence_s = patience.silence_s
        self._progress_at = trio.current_time()
        while True:
            idle_s = trio.current_time() - self._progress_at
            if conductor != self._setting.me and idle_s > 2 * (patience.open_s + patience.stall_s):
                self._deposed.add(conductor)
                raise TimedOut("the conductor makes no progress", why="no plan and no step for too long")
            message = None
            with trio.move_on_after(silence_s):
                message = unpack(await line.receive())
            match message:
                case None:
                    raise TimedOut("the conductor is silent", why=f"for {silence_s:g} s")
                case Plan():
                    self._progress_at = trio.current_time()
                    self._take_up(message, nursery)
                case Go(epoch) if self.plan is not None and epoch == self.plan.epoch:
                    self._go.set()
                case Reached(point, turns):
                    self._progress_at = trio.current_time()
                    await self._reached(point, turns)
                case Finish():
                    message.point.check(self._setting.pipeline.stages)
                    self.finish, self.point = message, message.point
                    self._holding.cancel()
                    self._tell_news()
                case Beat(_, step):
                    if step > self._heard_step:
                        self._progress_at = trio.current_time()
                    self._heard_step = step
                case _:
                    continue

    async def _beat(self, line: Line) -> None:
        while True:
            await trio.sleep(self._setting.patience.beat_s)
            waits = not any(part.busy for part in self.parts.values())
            await self._tell(Beat(self.plan.epoch if self.plan else 0, self.step, waits))

    def _offer(self) -> Offer:
        setting = self._setting
        return Offer(
            epoch=self.seat.epoch if self.seat else 0,
            memory_bytes=setting.memory_bytes,
            speed=setting.speed,
            point=self.point,
            finish=self.finish,
            turns=self.turns,
        )

    async def _reached(self, point: Point, turns: tuple[Turn, ...]) -> None:
        """A recovery point to know, in case that we conduct next; files of older ones may go."""
        point.check(self._setting.pipeline.stages)
        self.point, self.turns = point, turns
        old = [(step, cid) for step, cid in self._made if step < point.step]
        for item in old[: -(POINTS_KEPT - 1)]:
            self._made.remove(item)
            with suppress(DflError):  # the room is wanted only when the disk is full
                await self._setting.context.parts.store.unpin(item[1])

    async def _tell(self, message: Message) -> None:
        """To the conductor. Raises DflError when there is none."""
        line = self._line
        if line is None:
            raise TimedOut("nobody conducts", why="the conductor is gone")
        async with self._pen:
            await line.send(pack(message))
        if isinstance(message, Kept):
            self._made.append((message.step, message.cid))

    def _tell_news(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # -- the stages we hold ---------------------------------------------------------------------------
    def _take_up(self, plan: Plan, nursery: trio.Nursery) -> None:
        """Put down what an older plan gave us, then open what this one does. Raises VerificationFailed."""
        setting = self._setting
        seat = self.seat
        if seat is None or plan.epoch < seat.epoch or (self.plan and plan.epoch <= self.plan.epoch):
            return
        plan.check(seat.conductor, setting.pipeline.stages, setting.order)
        self.seat = Seat(plan.epoch, seat.rank, seat.conductor)
        self.plan = plan
        self._go = trio.Event()
        self._holding.cancel()
        self._holding = trio.CancelScope()
        nursery.start_soon(self._hold, plan, self._holding, self._go)

    async def _hold(self, plan: Plan, scope: trio.CancelScope, go: trio.Event) -> None:
        with scope:
            async with self._hands, trio.open_nursery() as nursery:
                for index, node in enumerate(plan.holders):
                    if node == self._setting.me:
                        nursery.start_soon(self._hold_stage, plan, index, go)

    async def _hold_stage(self, plan: Plan, index: int, go: trio.Event) -> None:
        stage: Stage | None = None
        try:
            try:
                stage = await self._open_stage(plan, index)
            except (VerificationFailed, BlobNotFound) as failure:
                raise PartFailed(index, RESTORING, str(failure)) from failure
            except DflError as failure:
                raise PartFailed(index, FAILED, str(failure)) from failure
            part = StagePart(self._setting, plan, index, stage, self._tell)
            self.parts[index] = part
            await self._tell(Ready(plan.epoch, index))
            await go.wait()
            await part.run()
        except PartFailed as failure:
            log.info("stage stopped", stage=index, step=plan.step, why=failure.why)
            await self._tell(Trouble(plan.epoch, index, failure.blames, failure.kind, failure.why[:300]))
        finally:
            self.parts.pop(index, None)
            if stage is not None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                    await stage.aclose()

    async def _open_stage(self, plan: Plan, index: int) -> Stage:
        setting = self._setting
        trainer, config = setting.context.parts.trainer, setting.stage_config(plan.cuts, index)
        if not plan.step:
            parent = await setting.context.fetch_model(setting.run.parent)
            return await trainer.open_stage(config, parent=parent, snapshot=None)
        file = StageFile.decode(await setting.fetch(plan.snapshots[index]))
        found = (file.header.run, file.header.cuts, file.header.stage, file.header.step)
        if found != (setting.run, plan.cuts, index, plan.step):
            raise UpdateRefused("a stage's snapshot is of something else", why=str(found)[:200])
        stage = await trainer.open_stage(config, parent=None, snapshot=file.snapshot)
        if stage.steps != plan.step:
            await stage.aclose()
            why = f"{stage.steps}, not {plan.step}"
            raise UpdateRefused("a stage's snapshot is of another step", why=why)
        return stage

    async def on_data(self, node: Address, call: Call, line: Line) -> None:
        """A neighbour, or the feed, calls a port of a stage of ours. Raises VerificationFailed."""
        try:
            plan, part = self.plan, self.parts.get(call.stage)
            if plan is None or part is None or call.epoch != plan.epoch:
                return  # of another plan than ours: its caller is behind, or ahead and will call again
            expected = plan.conductor
            if call.port == "above" and call.stage > 0:
                expected = plan.holders[call.stage - 1]
            if node != expected:
                what = f"{node} is no neighbour of stage {call.stage}"
                raise VerificationFailed(what, why="it called its port")
            await part.plug(call.port, line)
        finally:
            await close(line)
