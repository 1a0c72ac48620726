"""The end of a run: the last files are checked, their pieces get onto the chain, the conductor's own last."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from dfl_ledger.errors import DflError, TimedOut, VerificationFailed
from dfl_ledger.records import Address, Cid
from dfl_node.modes.pipeline.crew import Crew, Heard, Joined
from dfl_node.modes.pipeline.files import StageFile
from dfl_node.modes.pipeline.plan import Finish, Point, committers
from dfl_node.modes.pipeline.setting import Setting

log = structlog.get_logger(__name__)

LOOK_S = 0.5


class Wrapping:
    """What a conductor does when every stage has reached the last step."""

    def __init__(self, setting: Setting, crew: Crew, hear: Callable[[Address, Heard], None]) -> None:
        self._setting, self._crew, self._hear = setting, crew, hear

    # -- the files ------------------------------------------------------------------------------------
    async def check(self, point: Point) -> tuple[int, str] | None:
        """The first stage whose file cannot be had or is not sound, and why.

        A model with a hole is worth nothing, so it is better to know now, while there is time to go back.
        """
        setting, found = self._setting, dict[int, str]()

        async def check_one(stage: int, cid: Cid) -> None:
            try:
                file = StageFile.decode(await setting.fetch(cid))
                seen = await setting.context.parts.trainer.inspect_stage(
                    setting.context.model, point.cuts, file.snapshot
                )
                header = (file.header.run, file.header.cuts, file.header.stage, file.header.step)
                if seen != (stage, point.step) or header != (setting.run, point.cuts, *seen):
                    raise VerificationFailed("it is of another stage or step", why=str(seen))
            except DflError as bad:
                found[stage] = str(bad)

        with trio.move_on_after(max(1.0, setting.left_s() - setting.patience.wrap_up_s / 2)):
            async with trio.open_nursery() as nursery:
                for stage, cid in enumerate(point.snapshots):
                    nursery.start_soon(check_one, stage, cid)
        return min(found.items()) if found else None

    # -- the pieces -----------------------------------------------------------------------------------
    async def finish(self, point: Point, ended: Callable[[], bool]) -> Finish | None:
        """Who commits what, once as many nodes as stages are there; None if the run has ended without us.

        Raises TimedOut, SteppedDown.
        """
        while self._setting.left_s() > self._own_s:
            if ended():
                return None
            chosen = committers(point.holders, self._crew.hands, self._setting.me)
            if chosen is not None and await self._places_left(chosen):
                return Finish(self._crew.epoch, point, chosen)
            with trio.move_on_after(LOOK_S):
                self._hear(*await self._crew.inbox.receive())
        raise TimedOut(
            "the pieces of a pipeline could not be committed",
            why="fewer nodes than stages are left, or another attempt's pieces are on chain",
        )

    async def _places_left(self, chosen: tuple[Address, ...]) -> bool:
        """Whether all our stages can still be committed before COMMIT is full.

        After a partition another conductor may have finished first: a mixture of two attempts makes no model,
        so who comes second holds its pieces back.
        """
        ledger, run = self._setting.context.parts.ledger, self._setting.run

        def look() -> bool:
            job = ledger.job(run.job)
            ours = sum(ledger.committed(run.job, run.round, node) for node in chosen)
            return job is None or job.terms.target - (job.commits - ours) >= len(chosen)

        try:
            return await trio.to_thread.run_sync(look)
        except DflError as gone:
            log.debug("commits not seen", job=run.job, why=str(gone))
            return True

    async def see_committed(self, finish: Finish) -> Finish:
        """Tell everybody; returns when the pieces of all others are on chain, or time is up.

        The chain ends COMMIT at so many commits: with ours last, a stranger's worthless commit can take the
        place of the feed's record, but of no stage.
        """
        setting, crew = self._setting, self._crew
        told_at, assigned = trio.current_time(), set(finish.committers)
        setting.lines.remember(setting.run, finish)
        await crew.tell_all(finish)
        while setting.left_s() > self._own_s:
            missing = await self._missing(finish)
            if missing == []:
                break
            if missing is None:  # nobody can commit if the chain is away for all
                told_at = trio.current_time()
            elif trio.current_time() - told_at > setting.patience.commit_s:
                free = [n for n in crew.hands if n not in assigned and n != setting.me] or [
                    n for n in (setting.me,) if n not in assigned
                ]
                if free:
                    chosen = list(finish.committers)
                    chosen[missing[0]] = free[0]
                    finish = Finish(finish.epoch, finish.point, tuple(chosen))
                    log.warning("another node commits a stage", stage=missing[0], node=free[0])
                    assigned.add(free[0])
                    told_at = trio.current_time()
                    setting.lines.remember(setting.run, finish)
                    await crew.tell_all(finish)
            with trio.move_on_after(LOOK_S):
                while True:
                    node, heard = await crew.inbox.receive()
                    if isinstance(heard, Joined):
                        await crew.tell(node, finish)
        return finish

    async def _missing(self, finish: Finish) -> list[int] | None:
        """Stages of others whose pieces are not on chain yet; None if the chain does not answer."""
        ledger, run, me = self._setting.context.parts.ledger, self._setting.run, self._setting.me

        def look() -> list[int]:
            return [
                stage
                for stage, node in enumerate(finish.committers)
                if node != me and not ledger.committed(run.job, run.round, node)
            ]

        try:
            return await trio.to_thread.run_sync(look)
        except DflError as gone:
            log.debug("commits not seen", job=run.job, why=str(gone))
            return None

    @property
    def _own_s(self) -> float:
        """Kept back for our own commit."""
        return self._setting.patience.wrap_up_s / 3
