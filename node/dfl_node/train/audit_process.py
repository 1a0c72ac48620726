"""Audits in `ProcessTrainer`: a node's rows and another's work done again in its worker. trio, no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dfl_node.train.frames import Frame
from dfl_node.train.trainer import DataConfig, Recomputation, Recomputed, Shard


class AuditRequests:
    """The part of `ProcessTrainer` that audits."""

    async def _ask(self, op: str, *payloads: bytes, **fields: Any) -> Frame:
        raise NotImplementedError

    async def _in_slices(self, op: str, *payloads: bytes, **fields: Any) -> Frame:
        raise NotImplementedError

    async def shard(self, data: DataConfig) -> Shard:
        answer = await self._ask("shard", data=asdict(data))
        return Shard(answer.payloads[0], bytes.fromhex(answer.header["commitment"]))

    async def recompute(self, work: Recomputation, committed: bytes) -> Recomputed:
        answer = await self._in_slices(
            "recompute",
            work.parent,
            work.shard,
            committed,
            job=work.job,
            round=work.round,
            node_seed=work.node_seed,
            model=asdict(work.model),
            training=asdict(work.training),
            rule=asdict(work.rule),
            samples=work.samples,
            commitment=work.commitment.hex(),
            time_budget_s=None,
            reference=True,
        )
        return Recomputed(answer.payloads[0], answer.header["distance"])
