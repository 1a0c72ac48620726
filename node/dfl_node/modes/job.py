"""One node's part in one job, in whichever mode.

This file acts; `dfl_node.rounds` decides, and what differs between the modes is behind `ModePart`. One
`JobPart` runs for each job this node takes part in (or requested, or merely watches), from the moment it is
known until it has ended and nothing is left to settle or refund. The way of a piece of work can be read here
in `_do`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import structlog
import trio

from dfl_ledger.errors import ChainUnreachable, DflError, Reverted, UsageError
from dfl_ledger.records import (
    BANNED,
    Address,
    Cid,
    Contribution,
    JobId,
    JobState,
    Lease,
    Mode,
    Phase,
)
from dfl_node.jobspec import JobSpec
from dfl_node.modes import mode
from dfl_node.modes.audited import Audited
from dfl_node.modes.auditing import Auditor
from dfl_node.modes.challenging import Challenger
from dfl_node.modes.joining import Joiner
from dfl_node.modes.judging import Judge
from dfl_node.modes.measuring import Measurer
from dfl_node.modes.meter import RoundMeter
from dfl_node.modes.mode import job_seed
from dfl_node.modes.reporting import Reporter
from dfl_node.modes.sealed import Unsealer
from dfl_node.modes.settlement import Settler
from dfl_node.parts import Parts
from dfl_node.rounds import judging, machine
from dfl_node.rounds import vocabulary as rounds
from dfl_node.rounds.vocabulary import ChainMoved, History, Mine, Work

log = structlog.get_logger(__name__)
T = TypeVar("T")

RPC_RETRY_S = 1.0
VALIDATION_RETRY_S = 10.0
DECLINED = "it shows rows to other nodes, and this one was started without --share-rows"
DELIVERED = 8  # of our newest pieces: a node holds no more than two that wait
# What a contract says to whoever comes second, or a moment early or late: part of life, not an error.
RACES = frozenset(
    {
        "WrongPhase",
        "WrongRound",
        "DeadlineAhead",
        "DeadlinePassed",
        "AlreadyJoined",
        "RoundPassed",
        "NotYourTurn",
        "NotYourLease",
        "AlreadyDrawn",
        "DrawBlockAhead",
        "AlreadyDone",
        "StillScoring",
        "ShardNotDue",
        "AlreadyJudged",
        "SeatDeclined",
        "NothingWithheld",
        "NothingToDecide",
        "MayNotAppeal",
        "AlreadyDeclared",
        "NotSettled",
        "NotActive",
    }
)


class JobPart:
    """One node's part in one job."""

    def __init__(
        self,
        job: JobId,
        spec: JobSpec,
        parts: Parts,
        *,
        bytes_sent: Callable[[], int],
        clock: Callable[[], float],
        may_join: bool = True,  # False: the stake is too low for this job, so we only watch it
    ) -> None:
        self.job = job
        self.spec = spec
        self.closed = trio.Event()  # set when `run` has nothing left to do
        self._parts = parts
        self._clock = clock
        context = self._context = mode.Context(job, spec, parts, clock, lambda: self._state)
        self._mode = mode.open_mode(context)
        self._unsealer = Unsealer(job, spec, parts)
        self._measurer = Measurer(context, self._unsealer.watched if spec.reward.sealed else None)
        self._joiner = Joiner(job, spec, parts)
        self._settler = Settler(job, spec, parts, self._mode)
        self._judge = Judge(job, spec, parts, self._mode, clock, Auditor(context, clock))
        self._audited = Audited(context)
        self._challenger = Challenger(job, parts)
        self._reporter = Reporter(job, parts)
        self._meter = RoundMeter(job, parts, bytes_sent, clock)
        me = parts.ledger.address
        shows_rows = spec.mode is Mode.PIPELINE or spec.reward.audits > 0
        able = may_join and parts.trains and spec.app in parts.data
        trains = able and (parts.share_rows or not shows_rows)
        self.declined = DECLINED if able and not trains else ""  # why this node does not train, for people
        self._state = rounds.State(me=me, trains=trains, rank=job_seed(me, job) % 4)
        self._report, self._events = trio.open_memory_channel[rounds.Event](math.inf)
        self._news = trio.Event()
        self._trainings: dict[int, trio.CancelScope] = {}  # by round; at most two overlap, while one ends
        self._rows_ended = False  # the ledger's rows have heard of the job's end
        self._nursery: trio.Nursery

    @property
    def state(self) -> rounds.State:
        """For those who watch: where the job stands and what is under way."""
        return self._state

    def wants(self, job: JobState, node: Address) -> bool:
        """Whether the current round waits for a piece of this member. Blocks."""
        return self._mode.drawn(job, node)

    def activity(self) -> dict[str, Any]:
        """What the mode is busy with, as plain JSON values."""
        return {**self._measurer.activity(), **self._joiner.activity(), **self._mode.activity()}

    @property
    def left_out(self) -> Mapping[int, str]:
        """The data sets of ours that the job did not take, and why."""
        return self._joiner.left_out

    @property
    def max_piece_bytes(self) -> int:
        """Of a file that members may ask us to hold."""
        return self._mode.max_piece_bytes

    def notify(self) -> None:
        """The chain has something new about this job."""
        self._news.set()

    # -- the loop -------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until the job has ended and nothing is left for us to do."""
        await self._remember()
        self._news.set()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._follow_chain)
            nursery.start_soon(self._keep_validation)
            while not self._over():
                event = await self._next_event()
                self._state, actions = machine.step(self._state, event, self._clock())
                for action in actions:
                    self._start(action)
            nursery.cancel_scope.cancel()
        await self._let_go()
        self.closed.set()

    async def _remember(self) -> None:
        """What we have done already, as the journal has it; with a full disk it may take a while."""
        journal = self._parts.journal
        while True:
            try:
                work = await trio.to_thread.run_sync(journal.work, self.job)
                promised = await trio.to_thread.run_sync(journal.promised, self.job)
            except DflError as gone:
                log.warning("journal not read", job=self.job, why=str(gone), retry_in_s=RPC_RETRY_S)
                await trio.sleep(RPC_RETRY_S)
            else:
                self._state = replace(self._state, work=work, promised=promised)
                return

    async def _keep_validation(self) -> None:
        """Rows that only a requester has are gone with it, and who is drawn to judge must have them."""
        while self.spec.reward.evaluators:
            with suppress(DflError):
                await self._context.keep_validation()
                return
            await trio.sleep(VALIDATION_RETRY_S)

    async def _let_go(self) -> None:
        """Unpin what an ended job needs no longer: our updates, and every model but the last.

        They stay, for whoever checks a payment, until the store wants the room.
        """
        rows, me = self._parts.rows, self._parts.ledger.address

        def finished() -> set[str]:
            job = rows.job(self.job)
            models = {r.model for r in job.rounds if r.model and r.model != job.model} if job else set()
            own = {row.cid for row in rows.contributions(node=me, job=self.job, limit=None)}
            own |= {row.boxes for row in rows.audits(self.job) if row.boxes and row.node == me}
            return (models | own) - ({job.model} if job else set())  # a chained job ends with somebody's hop

        for cid in await trio.to_thread.run_sync(finished):
            with suppress(DflError):  # held by others, or never pinned here
                await self._parts.store.unpin(Cid.parse(cid))

    def _start(self, action: rounds.Action) -> None:
        match action:
            case rounds.Abandon(round_):  # at once: later it might hit the training that follows
                self._trainings[round_].cancel()
            case rounds.Train(round_):
                self._trainings[round_] = trio.CancelScope()
                self._nursery.start_soon(self._perform, action)
            case _:
                self._nursery.start_soon(self._perform, action)

    def _over(self) -> bool:
        chain = self._state.chain
        if chain is None or not chain.job.phase.terminal or self._state.under_way:
            return False
        if not self._rows_ended:  # a round that we published may be among those still missing there
            return False
        job = chain.job
        escrow_wei = job.terms.rounds * job.terms.round_budget_wei
        owed_to_us = job.requester == self._state.me and job.spent_wei + job.refunded_wei < escrow_wei
        ours_to_settle = any(u.settle_until > self._clock() for u in chain.unsettled)
        ours_to_judge = judging.pending(chain, self._clock())
        watched = chain.final_at > self._clock() or chain.charges or chain.errands
        sealed = chain.sealed is not None
        return not (owed_to_us or ours_to_settle or ours_to_judge or watched or sealed)

    async def _next_event(self) -> rounds.Event:
        wake = machine.wake_at(self._state, self._clock())
        patience_s = math.inf if wake is None else max(0.0, wake - self._clock())
        with trio.move_on_after(patience_s):
            return await self._events.receive()
        self._news.set()  # what is due by time alone, such as a refund, comes with no event of the chain
        return rounds.Tick()

    async def _follow_chain(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            try:
                self._report.send_nowait(await self._look())
            except DflError as gone:  # the RPC is silent or slow, or the disk is full: none is final
                log.warning("chain not read", job=self.job, why=str(gone), retry_in_s=RPC_RETRY_S)
                await trio.sleep(RPC_RETRY_S)
                self._news.set()

    async def _look(self) -> ChainMoved:
        """The job as the chain has it now, and our part in it."""
        return await trio.to_thread.run_sync(self._look_sync)

    def _look_sync(self) -> ChainMoved:
        ledger, me = self._parts.ledger, self._parts.ledger.address
        lease = self._lease(me)
        job = ledger.job(self.job)
        # These are not one look but two, and the hop that gave us the lease must be the candidate we see.
        if lease is not None and self._lease(me) != lease:
            lease = None  # there is news already
        if job is None:  # a reorganisation took the job away; its next block brings it back
            raise ChainUnreachable(
                f"job {self.job} is not on the chain", why="it may return with a later block"
            )
        mine = self._mine(job, me, lease)
        unsettled = self._settler.unsettled(job)
        self._meter.see(job)
        self._rows_ended = job.phase.terminal and self.job not in self._parts.rows.open_jobs()
        wrong, final_at = self._challenger.look(ledger.now())
        now = self._clock()
        refundable = ledger.refundable_wei(self.job) if job.phase.terminal and job.requester == me else 0
        return ChainMoved(
            job,
            mine,
            unsettled,
            refundable,
            self._history(job, me),
            seats=self._judge.seats(),
            sealed=self._unsealer.due(job),
            wrong=wrong,
            final_at=max(final_at, self._reporter.trials_until(job)),
            charges=self._reporter.charges(job, now),
            errands=self._audited.errands(now),
        )

    def _history(self, job: JobState, me: Address) -> History | None:
        """What decides, in an asynchronous job, which pieces a round may take."""
        if self.spec.buffer is None:
            return None
        rows, max_lag = self._parts.rows, self.spec.buffer.max_lag
        models = rows.lineage(self.job, job.round, max_lag + 1)
        if models[:1] != (job.model,):
            return None
        return History(models, max_lag, frozenset(rows.delivered(self.job, me, DELIVERED)))

    def _lease(self, me: Address) -> Lease | None:
        """What is lent to us of a chained job."""
        if self.spec.mode is not Mode.CHAINED:
            return None
        lease = self._parts.ledger.lease(self.job)
        return lease if lease is not None and lease.node == me else None

    def _mine(self, job: JobState, me: Address, lease: Lease | None) -> Mine:
        ledger, under_way = self._parts.ledger, (Phase.COMMIT, Phase.REVEAL, Phase.AGGREGATE)
        active = ledger.active_round(self.job, me)
        standing = job.terms.target > 0  # members stay members, whether they contribute or not
        member = 0 < active <= job.round if standing else active == job.round
        took_part = active > 0 if standing else active >= job.round
        committed = job.phase in under_way and took_part and ledger.committed(self.job, job.round, me)
        if standing:
            revealed = committed and ledger.revealed(self.job, job.round, me)
        else:
            revealed = committed and active > job.round
        if active == BANNED:  # in a round where it is, what it committed to may still be unrevealed
            revealed = committed and ledger.revealed(self.job, job.round, me)
        turn = ledger.may_aggregate_at(self.job, me) if revealed and job.phase is Phase.AGGREGATE else None
        return Mine(
            active_round=active,
            member=member,
            drawn=member and self._mode.drawn(job, me),
            committed=committed,
            revealed=revealed,
            may_aggregate_at=turn,
            lease_until=lease.until if lease is not None else None,
        )

    # -- the actions ----------------------------------------------------------------------------------
    async def _perform(self, action: rounds.Action) -> None:
        outcome: rounds.Event = rounds.Failed(action)
        try:
            await self._do(action)
            outcome = rounds.Finished(action)
        except Reverted as no:
            level = log.debug if no.error in RACES else log.warning
            level("refused by the contract", job=self.job, action=_name(action), why=str(no))
        except DflError as failure:
            log.warning("action failed", job=self.job, action=_name(action), why=str(failure))
        except Exception:
            # A bug in one action must not take the node, its other jobs and its stake with it.
            log.exception("bug in an action", job=self.job, action=_name(action))
        finally:
            self._report.send_nowait(outcome)
        self._news.set()

    async def _do(self, action: rounds.Action) -> None:
        ledger, in_thread = self._parts.ledger, trio.to_thread.run_sync
        match action:
            case rounds.Join(round_):
                datasets = await self._join()
                log.info("joined", job=self.job, from_round=round_, datasets=list(datasets))
            case rounds.Train():
                await self._train(action)
            case rounds.Hop():
                await self._mode.hop(action)
            case rounds.Watch(round_, model):
                await self._measurer.watch(round_, model)
            case rounds.Promise(work):
                fresh = replace(work, salt=os.urandom(32))  # its last one may be known, from a void round
                promised = await in_thread(self._parts.journal.promise, self.job, fresh)
                self._report.send_nowait(rounds.Promised(promised))
            case rounds.Commit(work):
                await in_thread(ledger.commit, self._contribution(work), work.salt)
                log.info("committed", job=self.job, round=work.round)
            case rounds.Reveal(work):
                await in_thread(ledger.reveal, self._contribution(work), work.salt)
                log.info("revealed", job=self.job, round=work.round, cid=str(work.cid))
            case rounds.Aggregate():
                await self._aggregate(action)
            case rounds.Advance(round_, phase):
                await in_thread(ledger.advance, self.job)
                log.info("advanced an overdue phase", job=self.job, round=round_, phase=phase.name)
            case rounds.Judge(round_, panel):
                await self._judge.judge(round_, panel)
            case rounds.Show(round_, panel):
                await self._judge.show(round_, panel)
            case rounds.DrawPanel():
                await self._audited.draw(action)
            case rounds.OpenShard():
                await self._audited.open(action)
            case rounds.Appeal():
                await self._audited.appeal(action)
            case rounds.Unseal(position):
                await self._unsealer.unseal(position)
            case rounds.Settle(round_):
                await self._settler.settle(round_)
            case rounds.Challenge(round_):
                await self._challenger.challenge(round_)
            case rounds.Report(offence):
                await in_thread(self._reporter.report, offence)
            case rounds.Refund():
                await in_thread(ledger.refund, self.job)
                log.info("refunded", job=self.job)

    async def _join(self) -> tuple[int, ...]:
        """Where it is audited, with a commitment to our rows; the chain takes one once. What was declared."""
        shard = await self._shard()
        return await trio.to_thread.run_sync(self._joiner.join, shard)

    async def _shard(self) -> bytes | None:
        """What to commit to where work is audited. Raises UsageError for rows that would pass no audit, and
        does not train any more: another start may bring the right ones."""
        try:
            return await self._audited.commitment()
        except UsageError as unfit:
            self.declined = str(unfit)
            self._state = replace(self._state, trains=False)
            raise

    async def _train(self, action: rounds.Train) -> None:
        """The mode's piece of work, journalled. Its commitment is the next action."""
        with self._trainings[action.round] as abandoned:
            await self._shard()
            work = await self._mode.train(action)
            self._report.send_nowait(rounds.Trained(work))
        if abandoned.cancelled_caught:
            log.info("round went on without us: training stopped", job=self.job, round=action.round)

    async def _aggregate(self, action: rounds.Aggregate) -> None:
        """Pieces in the order of their reveal -> one model -> blob -> chain."""
        cid = await self._settler.aggregate(action.round, action.parent, action.reveals)
        await self._share(action.round, cid)
        await trio.to_thread.run_sync(self._parts.ledger.publish_model, self.job, action.round, cid)
        log.info("published", job=self.job, round=action.round, model=str(cid))

    async def _share(self, round_: int, model: Cid) -> None:
        """See to it that another member has the model, and one has the update that we alone hold: ours."""
        rows = await trio.to_thread.run_sync(self._parts.rows.revealed, self.job, round_)
        others = [Address(row.node) for row in rows if row.node != self._parts.ledger.address]
        ask, held = self._parts.holders.ask, (self._state.work, self._state.promised)
        for cid in dict.fromkeys(work.cid for work in held if work is not None and work.round == round_):
            self._nursery.start_soon(ask, self._nursery, self.job, [cid], others[:1])
        kept = await ask(self._nursery, self.job, [model], others)
        if others and not kept:
            log.warning("nobody else holds the model yet", job=self.job, round=round_, model=str(model))

    # -- small things ---------------------------------------------------------------------------------
    def _contribution(self, work: Work) -> Contribution:
        return Contribution(
            job=self.job,
            round=work.round,
            node=self._parts.ledger.address,
            kind=work.kind,
            cid=work.cid,
            parent=work.parent,
            samples=work.samples,
        )


def _name(action: rounds.Action) -> str:
    return type(action).__name__.lower()
