"""Chained: the model goes from node to node, and each trains it a little further on its own rows.

A hop is a whole model. Whoever holds the lease judges the hop before its own on the requester's validation
rows, goes on from the better of the two models that the chain offers, and passes its own on. The lap's model
is the last that was not made worse (`laps.py`); a hop's worth is what it gained, corrected for its place
(`value/hops.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import structlog
import trio

from dfl_ledger.errors import BlobNotFound, DflError, TimedOut, UsageError, VerificationFailed
from dfl_ledger.query import ContributionRow
from dfl_ledger.records import Address, Cid, JobState, Kind
from dfl_node import holders
from dfl_node.modes import laps
from dfl_node.modes.laps import Link
from dfl_node.modes.measuring import Measured, Measurer
from dfl_node.modes.mode import Context, Uses, Worths, job_seed
from dfl_node.modes.pieces import Revealed
from dfl_node.rounds.vocabulary import Hop, Train, Work
from dfl_node.train.trainer import Assignment, Verdict, WeightedUpdate
from dfl_node.value import datasets, hops

log = structlog.get_logger(__name__)

# Shares of what is left of the lease at each step. What none of them takes is for the chain.
FETCH_SHARE = 0.3  # until a model counts as not to be had
TRAIN_SHARE = 0.5  # one batch is always done
HOLD_SHARE = 0.3  # until the hop goes to the chain although nobody else holds its model yet
KEEPERS = 3  # asked to hold a hop's model; one is enough
LATE_S = 5.0  # for a model of a finished lap that did not come with the others


class Chained:
    """A `ModePart`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._job, self._spec, self._parts = context.job, context.spec, context.parts
        self._measurer = Measurer(context)

    @property
    def max_piece_bytes(self) -> int:
        return self._spec.training.max_update_bytes

    def drawn(self, job: JobState, node: Address) -> bool:
        return True  # each in its turn

    def activity(self) -> dict[str, Any]:
        return {}

    async def train(self, action: Train) -> Work:
        raise UsageError("a chained job trains hop by hop", why=f"round {action.round} has no updates")

    # -- our hop --------------------------------------------------------------------------------------
    async def hop(self, action: Hop) -> None:
        """Judge, train, store, journal, have it held, tell the chain: within our lease, or not at all."""
        with trio.move_on_after(self._left_s(action)) as lease:
            await self._hop(action)
        if lease.cancelled_caught:
            raise TimedOut(
                f"the lease of job {self._job} round {action.round} has ended", why="our hop took longer"
            )

    async def _hop(self, action: Hop) -> None:
        accept, parent, start = await self._choose(action)
        work = await self._done_before(action.round, parent) or await self._train(action, parent, start)
        others = await trio.to_thread.run_sync(self._keepers, action.round)
        patience_s = min(holders.PATIENCE_S, HOLD_SHARE * self._left_s(action))
        async with trio.open_nursery() as nursery:
            ask = self._parts.holders.ask
            kept = await ask(nursery, self._job, [work.cid], others, patience_s=patience_s)
            nursery.cancel_scope.cancel()
        if others and not kept:
            log.warning("nobody else holds our hop yet", job=self._job, round=action.round)
        await trio.to_thread.run_sync(
            self._parts.ledger.hop, self._job, action.round, accept, work.cid, work.samples
        )
        log.info("hopped", job=self._job, round=action.round, accepted=accept, model=str(work.cid))

    async def _choose(self, action: Hop) -> tuple[bool, Cid, Cid]:
        """(do we accept the hop before ours, our parent on chain, the model to train).

        The last two differ only if neither model that the chain offers can be used: then we go on from the
        nearest sound one before them, so that one crook and his accomplice do not end the job.
        """
        patience_s = FETCH_SHARE * self._left_s(action)
        offered = [cid for cid in (action.model, action.candidate) if cid is not None]
        measured = await self._measure(offered, action.round, patience_s)
        if action.candidate is not None:
            if laps.accepts(measured[action.candidate], measured[action.model]):
                return True, action.candidate, action.candidate
            log.warning(
                "the hop before ours is no parent",
                job=self._job,
                round=action.round,
                model=str(action.candidate),
                why=measured[action.candidate].why or "it made the model worse",
            )
        if measured[action.model].sound:
            return False, action.model, action.model
        return False, action.model, await self._ancestor(action.model, patience_s)

    async def _ancestor(self, model: Cid, patience_s: float) -> Cid:
        """The nearest sound model that this one was made from."""
        rows = await trio.to_thread.run_sync(
            lambda: self._parts.rows.contributions(job=self._job, kind=Kind.HOP)
        )
        for row in reversed(rows):
            if row.cid == str(model) and row.parent != row.cid:
                model = Cid.parse(row.parent)
                if (await self._measurer.measure(model, patience_s=patience_s)).sound:
                    return model
        raise BlobNotFound(f"a model of job {self._job} to train", why=f"nor one before {model}")

    async def _done_before(self, round_: int, parent: Cid) -> Work | None:
        """What we made of this parent before we were killed."""
        work = await trio.to_thread.run_sync(self._parts.journal.work, self._job)
        if work is None or (work.round, work.parent, work.kind) != (round_, parent, Kind.HOP):
            return None
        return work

    async def _train(self, action: Hop, parent: Cid, start: Cid) -> Work:
        """As many local steps as the lease allows; the model that they make, stored and journalled."""
        context, training = self._context, self._spec.training
        before = await context.fetch_model(start)
        budget_s = TRAIN_SHARE * self._left_s(action)
        update = await self._parts.trainer.train(
            Assignment(
                job=self._job,
                round=action.round,
                parent=before,
                model=context.model,
                training=context.training,
                data=self._parts.data[self._spec.app],
                node_seed=job_seed(context.me, self._job),
                rule=context.rule,
                time_budget_s=min(budget_s, training.time_budget_s or math.inf),
                local=await context.local_state(),
            )
        )
        # A lap's aggregation has one update: the parent minus it, checked and rounded as any aggregate is.
        made = await self._parts.trainer.aggregate(
            context.model,
            before,
            [WeightedUpdate(update.delta, update.samples)],
            rule=context.rule,
            max_update_bytes=training.max_update_bytes,
        )
        if not made.verdicts[0].accepted:
            raise VerificationFailed("our own training gave no model", why=made.verdicts[0].why)
        await context.keep_local_state(update.local)
        return await context.keep(
            Train(action.round, parent),
            made.model,
            samples=update.samples,
            loss=update.loss,
            train_s=update.train_s,
            kind=Kind.HOP,
        )

    def _keepers(self, round_: int) -> list[Address]:
        """Whom to ask to hold our hop: those first who are still to come in this lap, and need it. Blocks."""
        rows, state = self._parts.rows, self._context.state().chain
        come = {row.node for row in rows.revealed(self._job, round_)}
        members = sorted(rows.members(self._job, round_), key=come.__contains__)
        requester = [] if state is None else [state.job.requester]
        here = {peer.address for peer in self._parts.channel.peers()}
        return [node for node in dict.fromkeys((*members, *requester)) if node in here][:KEEPERS]

    def _left_s(self, action: Hop) -> float:
        return max(0.0, action.until - self._context.clock())

    # -- everybody's hops -----------------------------------------------------------------------------
    def objection(self, round_: int, row: ContributionRow) -> str:
        limit = self._spec.training.local_steps * self._spec.training.batch_size
        if row.kind != Kind.HOP.name.lower():
            return f"is a {row.kind}, not a hop"
        if not 0 < row.samples <= limit:
            return f"declares {row.samples} samples; the job's steps process from 1 to {limit}"
        return ""

    async def combine(self, round_: int, parent: Cid, revealed: Revealed) -> tuple[Cid, tuple[Verdict, ...]]:
        """The lap's last model that is sound and not worse than its parent.

        `parent` does not matter: it is the model that was accepted last while the lap is open, and the one
        before the lap once it is published. The hops name both.
        """
        links, measured = await self._lap(revealed)
        model = laps.final(links, measured)
        if not measured[model].sound:
            raise VerificationFailed(f"job {self._job} round {round_} has no model", why=measured[model].why)
        whys = laps.objections(links, measured)
        refused = [  # what did not come with the others may have come in time to be measured
            (bad or why) if why else self.objection(round_, row)
            for row, bad, why in zip(revealed.rows, revealed.refused, whys, strict=True)
        ]
        kept = await self._parts.store.put(await self._context.fetch_model(model))  # pinned, whoever made it
        return kept, tuple(Verdict(not why, why) for why in refused)

    async def worth(self, round_: int, parent: Cid, revealed: Revealed, uses: Uses) -> Worths:
        """Each hop's gain on the validation rows, corrected for its place in the lap. Gains add up: a data
        set is worth its part of the hops that were made with it."""
        gains, depths = laps.gains(*await self._lap(revealed))
        earned = [0 if why else gain for gain, why in zip(gains, revealed.refused, strict=True)]
        worths = hops.worths(earned, depths)
        used = [frozenset(uses.get(Address(row.node), ())) for row in revealed.rows]
        return Worths(worths, hops.HOP_GAIN, datasets.parted(worths, used))

    async def _lap(self, revealed: Revealed) -> tuple[tuple[Link, ...], dict[Cid, Measured]]:
        """The lap's hops in order, and what each of its models measures."""
        links = tuple(Link(Cid.parse(row.parent), Cid.parse(row.cid)) for row in revealed.rows)
        here = {link.model: piece for link, piece in zip(links, revealed.pieces, strict=True)}
        models = dict.fromkeys(cid for link in links for cid in (link.parent, link.model))
        measured = await self._measure(models, revealed.rows[0].round, LATE_S, here)
        first = links[0].parent
        if measured[first].missing:
            raise BlobNotFound(f"model {first} that the lap began with", why=measured[first].why)
        return links, measured

    async def _measure(
        self,
        models: Iterable[Cid],
        round_: int,
        patience_s: float,
        here: Mapping[Cid, bytes] = MappingProxyType({}),
    ) -> dict[Cid, Measured]:
        """All at once, because some may have to be fetched. `here` has the bytes of those that are here."""
        rows = await trio.to_thread.run_sync(self._parts.rows.revealed, self._job, round_)
        makers = {row.cid: Address(row.node) for row in rows}
        found: dict[Cid, Measured] = {}
        failures: list[DflError] = []

        async def measure(model: Cid) -> None:
            data, maker = here.get(model, b""), makers.get(str(model))
            try:
                found[model] = await self._measurer.measure(
                    model, patience_s=patience_s, data=data, maker=maker
                )
            except DflError as failure:
                failures.append(failure)

        async with trio.open_nursery() as nursery:
            for model in models:
                nursery.start_soon(measure, model)
        if failures:
            raise failures[0]
        return found
