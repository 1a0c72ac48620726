"""Conducting a run: who holds which stage, what happens when one is lost, and when it is over.

A round's conductor is the first of its members in an order drawn from the parent model; it also feeds the
run with its rows. Recovery is a roll-back: after any failure there is a new plan of a later epoch, every
stage restores its file of the last recovery point, and the same micro-batches follow in the same order. So
what comes out is what an undisturbed run gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog
import trio

from dfl_ledger.errors import DflError, TimedOut
from dfl_ledger.records import Address, Cid
from dfl_node.modes.pipeline.crew import Crew, Fed, Heard, Joined, Lost, Overruled, SteppedDown
from dfl_node.modes.pipeline.feeding import Feeding, Progress
from dfl_node.modes.pipeline.groups import unwrapped
from dfl_node.modes.pipeline.member import Member
from dfl_node.modes.pipeline.messages import (
    FAILED,
    FEED,
    MISBEHAVED,
    RESTORING,
    SEVERED,
    Go,
    Kept,
    Reached,
    Ready,
    Trouble,
)
from dfl_node.modes.pipeline.placement import DoesNotFit
from dfl_node.modes.pipeline.plan import STRIKES, Docket, Finish, Plan, Point, Turn
from dfl_node.modes.pipeline.seating import Seating
from dfl_node.modes.pipeline.setting import Setting
from dfl_node.modes.pipeline.stage_part import PartFailed
from dfl_node.modes.pipeline.wrapping import Wrapping
from dfl_node.train.stage import Feed

log = structlog.get_logger(__name__)

LOOK_S = 0.5
LOST, STALLED = "lost", "stalled"
SLOW_STEPS = 3  # a step may take so many times as long as the ones before it


@dataclass
class Broken(Exception):
    """A plan cannot go on."""

    accuser: Address
    blamed: Address | None  # None: nobody in particular
    stage: int  # the accuser's, or the blamed one's
    kind: str
    why: str


class Conductor:
    """One term as a conductor. Ends with the run, or with SteppedDown when another has the better claim."""

    def __init__(self, setting: Setting, member: Member, seating: Seating) -> None:
        self.waiting_for = "the members' answers"  # for those who watch
        self.plan: Plan | None = None
        self.progress = Progress()
        self.turns = list(member.turns)
        self.points = [member.point] if member.point is not None else []
        self._setting, self._seating = setting, seating
        self._crew = Crew(setting)
        self._crew.epoch = member.seat.epoch + 1 if member.seat is not None else 1
        self._docket = Docket()
        self._resting: Address | None = None  # whom the last failure was about: others are asked first
        self._moved_at = trio.current_time()  # when there was progress last
        self._broke = self._inherited(member)  # why, and since when, until training goes on
        self._failures: set[tuple[int, int, Address]] = set()  # (stage, from step, node)
        self._stalls = 0  # with nobody to blame
        self._refusing: set[Address] = set()  # who obeys another conductor, as it says
        self._offered = member.finish  # how the run has ended, as somebody says

    @staticmethod
    def _inherited(member: Member) -> tuple[str, float] | None:
        """What a successor has to recover from: its predecessor's end."""
        if member.seat is None or member.plan is None:
            return None
        return f"conductor {member.seat.conductor} lost", member.lost_at

    async def run(self) -> Finish:
        """How the run ended, once the pieces of all others are on chain. Raises SteppedDown, DflError."""
        with unwrapped(SteppedDown, DflError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._crew.run)
                finish = await self._conduct()
                nursery.cancel_scope.cancel()
        return finish

    async def _conduct(self) -> Finish:
        setting, parts = self._setting, self._setting.context.parts
        wrapping = Wrapping(setting, self._crew, self._hear)
        await self._gather()
        feed = await parts.trainer.open_feed(
            parts.data[setting.context.spec.app],
            setting.context.model,
            setting.context.training,
            micro_batches=setting.pipeline.micro_batches,
            seed=setting.feed_seed(),
        )
        try:
            finish: Finish | None = None
            while finish is None:
                if self._offered is not None:
                    finish = await self._adopted(self._offered, wrapping)
                    self._offered = None
                    continue
                point = await self._one_attempt(feed)
                if point is not None and await self._is_sound(point, wrapping):
                    finish = await wrapping.finish(point, lambda: self._offered is not None)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await feed.aclose()
        return await wrapping.see_committed(finish)

    async def _adopted(self, offered: Finish, wrapping: Wrapping) -> Finish | None:
        """An end that another conductor has told, if it is one."""
        behind = bool(self.points) and offered.point.step < self.points[-1].step
        return None if behind or await wrapping.check(offered.point) is not None else offered

    async def _is_sound(self, point: Point, wrapping: Wrapping) -> bool:
        """Whether every stage's last file is; if not, back to the point before, without who made it."""
        bad = await wrapping.check(point)
        if bad is None:
            return True
        stage, why = bad
        self.points = [known for known in self.points if known != point]
        self._exclude(point.holders[stage])
        self._broke = (f"stage {stage}'s file of step {point.step}: {why}", trio.current_time())
        return False

    async def _gather(self) -> None:
        """Every connected member's answer, or what came in `gather_s`; longer if that is too few."""
        patience, crew = self._setting.patience, self._crew
        with trio.move_on_after(patience.gather_s):
            while not crew.asked_all:
                self._hear(*await crew.inbox.receive())
        with trio.move_on_after(patience.silence_s):
            while len(crew.hands) < self._setting.pipeline.stages:
                self._hear(*await crew.inbox.receive())
        while not crew.hands:  # not even our own
            self._hear(*await crew.inbox.receive())

    def _hear(self, node: Address, heard: Heard) -> None:
        """What matters at any time. Raises SteppedDown."""
        match heard:
            case Joined() if node in self._crew.hands:
                offer = self._crew.hands[node].offer
                self._crew.epoch = max(self._crew.epoch, offer.epoch)
                if offer.point is not None and all(offer.point.step > known.step for known in self.points):
                    self.points.append(offer.point)
                    self.turns = max(self.turns, list(offer.turns), key=len)
                self._offered = offer.finish or self._offered
                self._refusing.discard(node)
            case Overruled(epoch, alive):
                if alive:
                    self._refusing.add(node)
                else:
                    self._crew.epoch = max(self._crew.epoch, epoch + 1)
                # One member may lie. A better conductor calls our own member, which ends this term.
                if len(self._refusing) >= len(self._crew.hands):
                    raise SteppedDown(f"{len(self._refusing)} members obey a conductor of epoch {epoch}")
            case Lost(why) if node == self._setting.me:
                raise SteppedDown(why)
            case _:
                pass

    # -- one plan after another -----------------------------------------------------------------------
    async def _one_attempt(self, feed: Feed) -> Point | None:
        """The run's last point if this attempt came to its end. Raises SteppedDown, DflError."""
        setting, newest = self._setting, self.points[-1] if self.points else None
        if setting.left_s() < setting.patience.wrap_up_s:
            if newest is None:
                raise TimedOut("the pipeline made no step in time", why=self._said())
            return newest
        if newest is not None and newest.step >= setting.context.spec.training.local_steps:
            return newest
        try:
            cuts, holders = self._seating.seat(
                {node: hand.offer for node, hand in self._crew.hands.items()},
                newest,
                self.plan,
                excluded=self._docket.excluded,
                resting=self._resting,
            )
        except DoesNotFit as no:
            if self.waiting_for != str(no):
                log.warning("no placement yet", job=setting.run.job, why=str(no))
            self.waiting_for = str(no)
            with trio.move_on_after(LOOK_S):
                self._hear(*await self._crew.inbox.receive())
            return None
        self._crew.epoch += 1
        plan = Plan(
            epoch=self._crew.epoch,
            conductor=setting.me,
            cuts=cuts,
            holders=holders,
            step=newest.step if newest else 0,
            snapshots=newest.snapshots if newest else (),
            goal=setting.context.spec.training.local_steps,
        )
        try:
            with unwrapped(Broken, SteppedDown, DflError):
                return await self._execute(plan, feed)
        except Broken as broken:
            await self._judge(plan, broken)
            return None

    async def _execute(self, plan: Plan, feed: Feed) -> Point:
        """Raises Broken, SteppedDown."""
        setting, crew = self._setting, self._crew
        self.plan, self.waiting_for = plan, "every stage to be ready"
        why = self._broke[0] if self._broke else "the run begins"
        self.turns.append(Turn(plan.epoch, setting.me, plan.holders, plan.step, why[:300], 0.0))
        log.info("pipeline planned", job=setting.run.job, epoch=plan.epoch, step=plan.step, why=why)
        ready, kept = set[int](), dict[int, dict[int, Cid]]()
        feeding = Feeding(setting, plan, feed, self.progress, lambda _: crew.report(Fed()))
        quiet_until = trio.current_time() + setting.patience.open_s
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crew.tell_all, plan)
            while True:
                heard: Heard | None = None
                with trio.move_on_at(quiet_until):
                    node, heard = await crew.inbox.receive()
                if heard is None:
                    raise self._stalled(plan, ready)
                self._hear(node, heard)
                match heard:
                    case Joined():
                        nursery.start_soon(crew.tell, node, plan)
                    case Lost(why) if node in plan.holders:
                        raise Broken(setting.me, node, plan.holders.index(node), LOST, why)
                    case Ready(plan.epoch, stage) if self._holds(plan, node, stage) and stage not in ready:
                        ready.add(stage)
                        if len(ready) == len(plan.holders):
                            await crew.tell_all(Go(plan.epoch))
                            self.waiting_for = "losses"
                            nursery.start_soon(self._feed, feeding, plan)
                    case Kept(plan.epoch, stage, step, cid) if (
                        self._holds(plan, node, stage) and plan.step < step <= plan.goal
                    ):
                        kept.setdefault(step, {})[stage] = cid
                        if len(kept[step]) == len(plan.holders):
                            point = await self._reached(plan, step, kept[step])
                            if step == feeding.end:
                                nursery.cancel_scope.cancel()
                                return point
                    case Fed():
                        self._recovered()
                    case Trouble(plan.epoch, stage) if stage == FEED or self._holds(plan, node, stage):
                        raise self._broken_by(plan, node, heard)
                    case _:
                        continue
                stall_s = max(setting.patience.stall_s, SLOW_STEPS * self.progress.step_s)
                quiet_until = trio.current_time() + stall_s

    async def _feed(self, feeding: Feeding, plan: Plan) -> None:
        try:
            await feeding.run()
        except PartFailed as failure:
            self._crew.report(Trouble(plan.epoch, FEED, failure.blames, failure.kind, failure.why))

    @staticmethod
    def _holds(plan: Plan, node: Address, stage: int) -> bool:
        return stage < len(plan.holders) and plan.holders[stage] == node

    async def _reached(self, plan: Plan, step: int, files: dict[int, Cid]) -> Point:
        """Every stage's file of this step is there: from here on, nothing before it can be lost."""
        point = Point(
            epoch=plan.epoch,
            conductor=plan.conductor,
            step=step,
            cuts=plan.cuts,
            holders=plan.holders,
            snapshots=tuple(cid for _, cid in sorted(files.items())),
            losses=self.losses(step),
        )
        self.points.append(point)
        self._failures.clear()
        await self._crew.tell_all(Reached(point, tuple(self.turns)))
        return point

    def losses(self, steps: int) -> tuple[float, ...]:
        """The mean loss of each of the first steps, 0.0 for one that nobody remembers."""
        known = dict(enumerate(self.points[-1].losses)) if self.points else {}
        known |= self.progress.losses
        return tuple(known.get(step, 0.0) for step in range(steps))

    def _recovered(self) -> None:
        """Training goes on: what the last failure cost is known now."""
        self._moved_at = trio.current_time()
        self.waiting_for, self._crew.step = "losses", max(self.progress.losses, default=-1) + 1
        if self._broke is not None:
            took_s = trio.current_time() - self._broke[1]
            self.turns[-1] = replace(self.turns[-1], took_s=round(took_s, 3))
            log.info("pipeline recovered", job=self._setting.run.job, why=self._broke[0], took_s=took_s)
            self._broke = None

    # -- whose fault ----------------------------------------------------------------------------------
    def _broken_by(self, plan: Plan, node: Address, trouble: Trouble) -> Broken:
        blamed: Address | None = plan.holders[trouble.blames] if trouble.blames < len(plan.holders) else None
        if trouble.blames == FEED:
            blamed = plan.conductor
        return Broken(node, blamed, trouble.stage, trouble.kind, trouble.why)

    def _stalled(self, plan: Plan, ready: set[int]) -> Broken:
        """Nobody says anything is wrong, and nothing moves: whoever does not wait for another holds it up."""
        everybody = range(len(plan.holders))
        if len(ready) < len(plan.holders):
            suspects: Sequence[int] = [stage for stage in everybody if stage not in ready]
        else:
            hands = self._crew.hands
            suspects = [s for s in everybody if plan.holders[s] in hands and not hands[plan.holders[s]].waits]
        if not suspects:  # or one of them lies: each rests once
            self._stalls += 1
            suspects = [self._stalls % len(plan.holders)]
        stage = suspects[0]
        return Broken(self._setting.me, plan.holders[stage], stage, STALLED, "no progress")

    async def _judge(self, plan: Plan, broken: Broken) -> None:
        """What follows for the next plan. Raises DflError when no other plan can help."""
        me, blamed = self._setting.me, broken.blamed
        log.warning(
            "pipeline broken",
            job=self._setting.run.job,
            epoch=plan.epoch,
            stage=broken.stage,
            blamed=blamed,
            kind=broken.kind,
            why=broken.why,
        )
        at = self._broke[1] if self._broke else self._moved_at
        whose = f"stage {plan.holders.index(blamed)} " if blamed in plan.holders else ""
        self._broke = (f"{whose}{broken.kind}: {broken.why}", at)
        self._resting = blamed
        if broken.kind == SEVERED:  # a node that died breaks its neighbours' lines first
            with trio.move_on_after(LOOK_S):
                while True:
                    self._hear(*await self._crew.inbox.receive())
        if blamed is None or blamed not in self._crew.hands:
            return
        match broken.kind:
            case kind if kind == RESTORING and self.points and self.points[-1].step == plan.step:
                self._resting = maker = self.points.pop().holders[broken.stage]
                if maker != broken.accuser:
                    self._docket = self._docket.accused(broken.accuser, maker)
            case kind if kind == MISBEHAVED and broken.accuser == me:
                self._exclude(blamed)
            case kind if kind == MISBEHAVED and broken.accuser != blamed:
                if blamed == me and blamed not in plan.holders:
                    raise DflError("this node's rows cannot be used", why=broken.why)
                self._docket = self._docket.accused(broken.accuser, blamed)
            case kind if kind == SEVERED and broken.accuser != me:  # a line has two ends
                self._docket = self._docket.failed(blamed).failed(broken.accuser)
            case kind if kind != LOST:
                self._docket = self._docket.failed(blamed)
        if broken.kind == FAILED:
            self._failures.add((broken.stage, plan.step, blamed))
            if len({node for stage, _, node in self._failures if stage == broken.stage}) > 1:
                raise DflError(f"stage {broken.stage} fails on every node", why=broken.why)

    def _exclude(self, node: Address) -> None:
        """What we saw ourselves needs no second witness."""
        for _ in range(STRIKES):
            self._docket = self._docket.failed(node)

    def _said(self) -> str:
        return self._broke[0] if self._broke else self.waiting_for
