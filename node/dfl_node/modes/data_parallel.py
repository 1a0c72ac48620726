"""Data parallel, synchronous: everyone trains H local steps on its own rows, and the updates are averaged.

This file acts; `dfl_node.round` decides. One `DataParallelJob` runs for each job this node takes part in (or
requested, or merely watches), from the moment it is known until it has ended and nothing is left to settle or
refund. The way of an update can be read here from `_train` to `_settle`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import structlog
import trio

from dfl_ledger.errors import ChainUnreachable, DflError, Reverted
from dfl_ledger.records import Address, Cid, Contribution, JobId, JobState, Kind, Phase
from dfl_node import round as rounds
from dfl_node.jobspec import JobSpec
from dfl_node.modes.settlement import Settler
from dfl_node.parts import Parts
from dfl_node.round import ChainMoved, Mine, Work
from dfl_node.train.trainer import Assignment, ModelConfig, TrainingConfig

log = structlog.get_logger(__name__)
T = TypeVar("T")

RPC_RETRY_S = 1.0
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
    }
)


class DataParallelJob:
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
        self._settler = Settler(job, spec, parts)
        self._meter = _RoundMeter(job, parts, bytes_sent, clock)
        me = parts.ledger.address
        self._state = rounds.State(
            me=me, trains=may_join and parts.trains and spec.app in parts.data, rank=_seed(me, job) % 4
        )
        self._report, self._events = trio.open_memory_channel[rounds.Event](math.inf)
        self._news = trio.Event()
        self._trainings: dict[int, trio.CancelScope] = {}  # by round; at most two overlap, while one ends
        self._rows_ended = False  # the ledger's rows have heard of the job's end
        self._nursery: trio.Nursery

    @property
    def state(self) -> rounds.State:
        """For those who watch: where the job stands and what is under way."""
        return self._state

    def notify(self) -> None:
        """The chain has something new about this job."""
        self._news.set()

    # -- the loop -------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until the job has ended and nothing is left for us to do."""
        work = await trio.to_thread.run_sync(self._parts.journal.work, self.job)
        self._state = replace(self._state, work=work)
        self._news.set()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._follow_chain)
            while not self._over():
                event = await self._next_event()
                self._state, actions = rounds.step(self._state, event, self._clock())
                for action in actions:
                    self._start(action)
            nursery.cancel_scope.cancel()
        await self._let_go()
        self.closed.set()

    async def _let_go(self) -> None:
        """Unpin what an ended job needs no longer: our updates, and every model but the last.

        They stay, for whoever checks a payment, until the store wants the room.
        """
        rows, me = self._parts.rows, self._parts.ledger.address

        def finished() -> set[str]:
            job = rows.job(self.job)
            models = {r.model for r in job.rounds if r.model and r.model != job.model} if job else set()
            return models | {row.cid for row in rows.contributions(node=me, job=self.job, limit=None)}

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
        owed_to_us = chain.job.requester == self._state.me and (chain.refundable_wei or chain.unsettled)
        ours_to_settle = any(u.settle_until > self._clock() for u in chain.unsettled)
        return not owed_to_us and not ours_to_settle

    async def _next_event(self) -> rounds.Event:
        wake = rounds.wake_at(self._state, self._clock())
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
        job = ledger.job(self.job)
        if job is None:  # a reorganisation took the job away; its next block brings it back
            raise ChainUnreachable(
                f"job {self.job} is not on the chain", why="it may return with a later block"
            )
        active = ledger.active_round(self.job, me)
        committed = (
            job.phase in (Phase.COMMIT, Phase.REVEAL, Phase.AGGREGATE)
            and active >= job.round
            and ledger.committed(self.job, job.round, me)
        )
        revealed = committed and active > job.round
        turn = ledger.may_aggregate_at(self.job, me) if revealed and job.phase is Phase.AGGREGATE else None
        unsettled = self._settler.unsettled(job)
        self._meter.see(job)
        self._rows_ended = job.phase.terminal and self.job not in self._parts.rows.open_jobs()
        refundable = ledger.refundable_wei(self.job) if job.phase.terminal and job.requester == me else 0
        return ChainMoved(job, Mine(active, committed, revealed, turn), unsettled, refundable)

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
                await in_thread(ledger.join, self.job)
                log.info("joined", job=self.job, from_round=round_)
            case rounds.Train():
                await self._train(action)
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
            case rounds.Settle(round_):
                await self._settler.settle(round_)
            case rounds.Refund():
                await in_thread(ledger.refund, self.job)
                log.info("refunded", job=self.job)

    async def _train(self, action: rounds.Train) -> None:
        """parent -> H local steps -> update -> blob -> journal. The commitment is the next action."""
        spec, me = self.spec.training, self._parts.ledger.address
        with self._trainings[action.round] as abandoned:
            parent = await self._parts.store.get(action.parent, max_bytes=spec.max_update_bytes)
            update = await self._parts.trainer.train(
                Assignment(
                    job=self.job,
                    round=action.round,
                    parent=parent,
                    model=model_config(self.spec),
                    training=training_config(self.spec),
                    data=self._parts.data[self.spec.app],
                    node_seed=_seed(me, self.job),
                )
            )
            cid = await self._parts.store.put(update.delta)
            made = Work(action.round, action.parent, cid, update.samples, os.urandom(32))
            work = await trio.to_thread.run_sync(
                lambda: self._parts.journal.record(self.job, made, loss=update.loss, train_s=update.train_s)
            )
            log.info(
                "trained",
                job=self.job,
                round=action.round,
                samples=update.samples,
                loss=round(update.loss, 4),
                train_s=round(update.train_s, 3),
            )
            self._report.send_nowait(rounds.Trained(work))
        if abandoned.cancelled_caught:
            log.info("round went on without us: training stopped", job=self.job, round=action.round)

    async def _aggregate(self, action: rounds.Aggregate) -> None:
        """Updates in the order of their reveal -> one model -> blob -> chain."""
        cid = await self._settler.aggregate(action.round, action.parent, action.reveals)
        await self._share(action.round, cid)
        await trio.to_thread.run_sync(self._parts.ledger.publish_model, self.job, action.round, cid)
        log.info("published", job=self.job, round=action.round, model=str(cid))

    async def _share(self, round_: int, model: Cid) -> None:
        """See to it that another member has the model, and one has the update that we alone hold: ours."""
        rows = await trio.to_thread.run_sync(self._parts.rows.revealed, self.job, round_)
        others = [Address(row.node) for row in rows if row.node != self._parts.ledger.address]
        ask, work = self._parts.holders.ask, self._state.work
        if work is not None and work.round == round_:
            self._nursery.start_soon(ask, self._nursery, self.job, [work.cid], others[:1])
        kept = await ask(self._nursery, self.job, [model], others)
        if others and not kept:
            log.warning("nobody else holds the model yet", job=self.job, round=round_, model=str(model))

    # -- small things ---------------------------------------------------------------------------------
    def _contribution(self, work: Work) -> Contribution:
        return Contribution(
            job=self.job,
            round=work.round,
            node=self._parts.ledger.address,
            kind=Kind.UPDATE,
            cid=work.cid,
            parent=work.parent,
            samples=work.samples,
        )


class _RoundMeter:
    """Keeps when each round opened and closed for this node, and what it sent meanwhile."""

    def __init__(
        self, job: JobId, parts: Parts, bytes_sent: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self._job, self._journal = job, parts.journal
        self._bytes_sent, self._clock = bytes_sent, clock
        self._round = 0
        self._bytes_at_open = 0

    def see(self, job: JobState) -> None:
        under_way = job.round if job.phase in (Phase.COMMIT, Phase.REVEAL, Phase.AGGREGATE) else 0
        if under_way == self._round:
            return
        now, sent = self._clock(), self._bytes_sent()
        if self._round:
            self._journal.round_closed(self._job, self._round, now, sent - self._bytes_at_open)
        if under_way:
            self._journal.round_opened(self._job, under_way, now)
        self._round, self._bytes_at_open = under_way, sent


def model_config(spec: JobSpec) -> ModelConfig:
    return ModelConfig(spec.model.name, spec.model.args)


def training_config(spec: JobSpec) -> TrainingConfig:
    return TrainingConfig(
        local_steps=spec.training.local_steps,
        batch_size=spec.training.batch_size,
        lr=spec.training.lr,
        momentum=spec.training.momentum,
        optimizer=spec.training.optimizer,
        seed=spec.training.seed,
        max_update_bytes=spec.training.max_update_bytes,
    )


def _seed(node: Address, job: JobId) -> int:
    """31 bits that differ per node and job: two nodes with the same rows must not do the same work."""
    return int.from_bytes(hashlib.sha256(f"{node}/{job}".encode()).digest()[:4], "big") >> 1


def _name(action: rounds.Action) -> str:
    return type(action).__name__.lower()
