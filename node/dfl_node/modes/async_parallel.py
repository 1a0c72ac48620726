"""Data parallel, asynchronous: a round is a buffer of updates from models that may be some rounds old.

FedBuff (Nguyen et al. 2022, arXiv:2106.06639): an update is shortened by 1 / sqrt(1 + staleness), and its
staleness is how many models were published between its parent and the round's. All else is `DataParallel`.
"""

from __future__ import annotations

from dataclasses import replace

import trio

from dfl_ledger.query import ContributionRow
from dfl_ledger.records import Cid
from dfl_node.modes.data_parallel import DataParallel
from dfl_node.modes.mode import Context
from dfl_node.modes.pieces import Revealed
from dfl_node.train.trainer import WeightedUpdate


class AsyncParallel(DataParallel):
    """A `ModePart`."""

    def __init__(self, context: Context, *, max_lag: int) -> None:
        super().__init__(context)
        self._max_lag = max_lag

    @property
    def time_budget_s(self) -> float | None:
        """None unless the spec has one: nobody waits for a slow node, whose update is merely older."""
        return self._spec.training.time_budget_s or None

    def objection(self, round_: int, row: ContributionRow) -> str:
        return super().objection(round_, row) or self._staleness_objection(round_, Cid.parse(row.parent))

    async def weighted(self, round_: int, revealed: Revealed) -> list[WeightedUpdate]:
        models = await trio.to_thread.run_sync(self._recent_models, round_)
        updates = await super().weighted(round_, revealed)
        parents = [Cid.parse(row.parent) for row, _ in revealed.standing()]
        return [
            replace(update, staleness=models.index(parent))
            for update, parent in zip(updates, parents, strict=True)
        ]

    def _staleness_objection(self, round_: int, parent: Cid) -> str:
        if parent in self._recent_models(round_):
            return ""
        models = self._parts.rows.lineage(self._job, round_)
        if parent not in models:
            return "its parent is no model of this job"
        return f"stale: {models.index(parent)} models behind, at most {self._max_lag} are taken"

    def _recent_models(self, round_: int) -> tuple[Cid, ...]:
        """Those an update may start from, newest first. Blocks."""
        return self._parts.rows.lineage(self._job, round_, self._max_lag + 1)
