"""Data parallel, synchronous: everyone trains on its own rows, and the updates are combined."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from dfl_ledger.errors import UsageError
from dfl_ledger.query import ContributionRow
from dfl_ledger.records import Address, Cid, JobState, Kind
from dfl_node.modes.mode import Context, Uses, Worths, job_seed
from dfl_node.modes.pieces import Revealed
from dfl_node.rounds.vocabulary import Hop, Train, Work
from dfl_node.train.trainer import Assignment, Verdict, WeightedUpdate

COMMIT_SHARE = 0.5  # of the commit window that training may take; the rest is for the model and the chain


class DataParallel:
    """A `ModePart`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._job, self._spec, self._parts = context.job, context.spec, context.parts

    @property
    def max_piece_bytes(self) -> int:
        return self._spec.training.max_update_bytes

    @property
    def time_budget_s(self) -> float | None:
        """How long one training may take."""
        return self._spec.training.time_budget_s or COMMIT_SHARE * self._spec.round.commit_s

    # -- our piece ------------------------------------------------------------------------------------
    def drawn(self, job: JobState, node: Address) -> bool:
        """Client sampling, drawn by the parent model: nobody knows it before the round opens."""
        if self._spec.round.sample and len(self._parts.rows.members(self._job, job.round)) < job.expected:
            return False  # the ledger's rows are behind the chain: soon they will say
        return self._is_drawn(job.round, job.model, node)

    def activity(self) -> dict[str, Any]:
        return {}

    async def train(self, action: Train) -> Work:
        """parent -> up to H local steps -> pseudo-gradient."""
        context, parts = self._context, self._parts
        parent = await context.fetch_model(action.parent)
        update = await parts.trainer.train(
            Assignment(
                job=self._job,
                round=action.round,
                parent=parent,
                model=context.model,
                training=context.training,
                data=parts.data[self._spec.app],
                node_seed=job_seed(context.me, self._job),
                rule=context.rule,
                time_budget_s=self.time_budget_s,
                local=await context.local_state(),
                reference=self._spec.reward.audits > 0,
            )
        )
        await context.keep_local_state(update.local)
        return await context.keep(
            action, update.delta, samples=update.samples, loss=update.loss, train_s=update.train_s
        )

    async def hop(self, action: Hop) -> None:
        raise UsageError("a data parallel job has no hops", why=f"round {action.round}")

    # -- everybody's pieces ---------------------------------------------------------------------------
    def objection(self, round_: int, row: ContributionRow) -> str:
        limit = self._spec.training.local_steps * self._spec.training.batch_size
        if row.kind != Kind.UPDATE.name.lower():
            return f"is a {row.kind}, not an update"
        if row.samples > limit:
            return f"declares {row.samples} samples, more than the job's steps can process"
        if not self._is_drawn(round_, Cid.parse(row.parent), Address(row.node)):
            return "its node was not drawn for this round"
        # A piece of a void round may come again: no model was made of it.
        earlier = self._parts.rows.delivered_in(self._job, Cid.parse(row.cid), before=round_)
        return f"is a piece of round {earlier} again" if earlier is not None else ""

    async def combine(self, round_: int, parent: Cid, revealed: Revealed) -> tuple[Cid, tuple[Verdict, ...]]:
        """The updates in the order of their reveal, so that every node derives the same bytes."""
        result = await self._parts.trainer.aggregate(
            self._context.model,
            await self._context.fetch_model(parent),
            await self.weighted(round_, revealed),
            rule=self._context.rule,
            max_update_bytes=self._spec.training.max_update_bytes,
        )
        return await self._parts.store.put(result.model), revealed.spread(result.verdicts)

    async def worth(self, round_: int, parent: Cid, revealed: Revealed, uses: Uses) -> Worths:
        """Marginal worths on the validation rows: of each update, and of each data set by the same
        measurements."""
        updates = [
            replace(update, datasets=tuple(uses.get(Address(row.node), ())))
            for update, (row, _) in zip(
                await self.weighted(round_, revealed), revealed.standing(), strict=True
            )
        ]
        pieces = "".join(row.cid for row, _ in revealed.standing())
        scores = await self._parts.trainer.score(
            self._context.model,
            await self._context.fetch_model(parent),
            updates,
            await self._context.scored_on(round_),
            method=self._spec.reward.valuation,
            rule=self._context.rule,
            max_update_bytes=self._spec.training.max_update_bytes,
            # Nobody knows it before all pieces are committed.
            seed=int.from_bytes(hashlib.sha256(f"{parent}/{round_}/{pieces}".encode()).digest(), "big"),
        )
        inspected = iter(scores.worths)
        worths = tuple(0 if why else next(inspected) for why in revealed.refused)
        return Worths(worths, scores.method, scores.datasets)

    async def weighted(self, round_: int, revealed: Revealed) -> list[WeightedUpdate]:
        """The updates that nothing speaks against, and what each weighs."""
        return [WeightedUpdate(piece, row.samples) for row, piece in revealed.standing()]

    def _is_drawn(self, round_: int, parent: Cid, node: Address) -> bool:
        sample = self._spec.round.sample
        if not sample:
            return True

        def lot(member: Address) -> bytes:
            return hashlib.sha256(f"{parent}/{round_}/{member}".encode()).digest()

        members = self._parts.rows.members(self._job, round_)
        return node in sorted(members, key=lot)[:sample]
