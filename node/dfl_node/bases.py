"""The base model that a job starts from: fetched once, handed to the trainer."""

from __future__ import annotations

from dfl_ledger.records import Cid
from dfl_node.jobspec import JobSpec
from dfl_node.parts import Parts

MAX_BASE_BYTES = 1 << 30
FETCH_S = 120.0


async def keep_base(parts: Parts, spec: JobSpec) -> None:
    """Give the trainer the base that the spec names, if it names one. Raises DflError if it cannot be had."""
    base = spec.model.base
    if base is not None and not parts.trainer.has_base(base):
        data = await parts.store.get(Cid.parse(base), max_bytes=MAX_BASE_BYTES, timeout_s=FETCH_S)
        await parts.trainer.keep_base(base, data)
