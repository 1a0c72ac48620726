"""A job's sealed validation rows: cut and sealed by its requester, opened round by round, read by everybody.

What the spec names as its validation file is then the list of the sealed shards, by position: the first round
that gets a model is scored on the first of them, and so on. The keys follow from a secret that never leaves
the requester's journal (`value/sealing.py`). A key goes on chain when its round has a model, though the
contract would take it from the end of COMMIT on: a round that turned out void would have used it up.

A shard counts if its key came in time (`UnsealedRow.in_time`: the same for everybody), and if it is what it
should be. Else the round has no rows to be measured on, and what was accepted is worth nothing, all alike.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog
import trio

from dfl_ledger import codec
from dfl_ledger.errors import (
    BlobNotFound,
    CidMismatch,
    DflError,
    SpecInvalid,
    UsageError,
    VerificationFailed,
)
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import Cid, JobId, JobState
from dfl_node.jobspec import JobSpec
from dfl_node.parts import Parts
from dfl_node.specrewards import FROM_APP, is_path
from dfl_node.store.blob_store import BlobStore
from dfl_node.value import sealing

log = structlog.get_logger(__name__)

MAX_VALIDATION_BYTES = 64 * 1024 * 1024  # of all rows together
MAX_LIST_BYTES = 1 << 20
_VERSION = 1


class Files(Protocol):
    """What is needed of a `BlobStore` to read."""

    async def get(self, cid: Cid, *, max_bytes: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ShardList:
    """The sealed shards of a job, by position."""

    shards: tuple[Cid, ...]

    def encode(self) -> bytes:
        return codec.encode({"version": _VERSION, "shards": list(self.shards)})

    @classmethod
    def decode(cls, data: bytes, count: int) -> ShardList:
        """Raises VerificationFailed unless it is a list of `count` shards."""
        values = codec.decode(data, max_bytes=MAX_LIST_BYTES)
        if not isinstance(values, dict) or values.keys() != {"version", "shards"}:
            raise _refusal("it is no list of shards")
        shards = values["shards"]
        if values["version"] != _VERSION or not isinstance(shards, list):
            raise _refusal("it is no list of shards of this version")
        if len(shards) != count or not all(isinstance(cid, Cid) for cid in shards):
            raise _refusal(f"it has {len(shards)} entries, and the job needs {count} shards")
        return cls(tuple(shards))


def max_shard_bytes(spec: JobSpec) -> int:
    """Of one sealed shard: all of them together are no more than a file of public rows may be."""
    return MAX_VALIDATION_BYTES // spec.training.rounds


# -- the requester ----------------------------------------------------------------------------------------
async def publish(parts: Parts, spec: JobSpec) -> JobSpec:
    """Cut and seal the validation rows, and store the sealed shards and the list of them.

    The secret is on disk when this returns, so that whatever is escrowed afterwards can be unsealed. The
    rows themselves are never stored. Raises UsageError for too few rows, SpecInvalid for too large ones.
    """
    count, secret = spec.training.rounds, os.urandom(sealing.MIN_SECRET_BYTES)
    rows = await _rows(parts, spec)
    seed = int.from_bytes(hashlib.sha256(b"dfl shard seed" + secret).digest(), "big")
    shards = await parts.trainer.shards(rows, count, seed)
    largest, limit = max(map(len, shards)) + sealing.OVERHEAD_BYTES, max_shard_bytes(spec)
    if largest > limit:
        why = f"one of {count} shards has {largest} bytes, at most {limit} are taken"
        raise SpecInvalid("reward.validation", why)
    chain = await trio.to_thread.run_sync(sealing.make_chain, secret, count)
    cids = []
    for position, (shard, key) in enumerate(zip(shards, chain.keys, strict=True)):
        cids.append(await parts.store.put(sealing.seal(shard, key, position)))
    published = await parts.store.put(ShardList(tuple(cids)).encode())
    await trio.to_thread.run_sync(parts.journal.keep_seal, chain.anchor, secret, count)
    return spec.with_validation(published, chain.anchor)


async def _rows(parts: Parts, spec: JobSpec) -> bytes:
    named = spec.reward.validation
    if named == FROM_APP:
        return await parts.trainer.validation_rows(spec.app)
    if is_path(named):
        return await trio.to_thread.run_sync(_read_file, Path(named))
    return await parts.store.get(spec.validation, max_bytes=MAX_VALIDATION_BYTES)


def _read_file(path: Path) -> bytes:
    """A file of the operator's own. Raises SpecInvalid."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not keep us waiting
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SpecInvalid("reward.validation", "names no plain file")
            data = file.read(MAX_VALIDATION_BYTES + 1)
    except (OSError, ValueError) as bad:  # ValueError: a zero byte in the name
        raise SpecInvalid("reward.validation", f"cannot be read: {bad}"[:200]) from bad
    if len(data) > MAX_VALIDATION_BYTES:
        raise SpecInvalid("reward.validation", f"has more than {MAX_VALIDATION_BYTES} bytes")
    return data


class Unsealer:
    """Opens the shards of a job of ours when their rounds have a model."""

    def __init__(self, job: JobId, spec: JobSpec, parts: Parts) -> None:
        self._job, self._spec, self._parts = job, spec, parts
        self._opened = 0  # at least so many, as the chain had it last

    def due(self, job: JobState) -> int | None:
        """The position of the next shard that we can open, if its round has a model. Blocks.

        One that is too late to count is opened all the same: the next ones cannot be opened before it.
        """
        if not self._spec.reward.sealed or self._opened >= min(job.completed, self._spec.training.rounds):
            return None
        if self._parts.journal.seal(self._anchor) is None:
            return None  # it is another node's
        self._opened = self._parts.ledger.unsealed(self._job)[0]
        return self._opened if self._opened < min(job.completed, self._spec.training.rounds) else None

    async def unseal(self, position: int) -> None:
        """Put a key on chain; the contract refuses it a second time."""
        await trio.to_thread.run_sync(self._unseal, position)
        log.info("validation shard unsealed", job=self._job, position=position)

    def _unseal(self, position: int) -> None:
        self._parts.ledger.unseal(self._job, position, self._keys().keys[position])

    async def watched(self) -> bytes:
        """Rows that only we know until the job ends, the same for every round: the last shard.

        Raises BlobNotFound if it is another node that has the keys.
        """
        last = self._spec.training.rounds - 1
        keys = (await trio.to_thread.run_sync(self._keys)).keys
        return await _open(self._parts.store, self._spec, last, keys[last])

    def _keys(self) -> sealing.KeyChain:
        kept = self._parts.journal.seal(self._anchor)
        if kept is None:
            raise BlobNotFound(f"the keys of job {self._job}", why="this node's journal has none")
        return sealing.make_chain(*kept)

    @property
    def _anchor(self) -> bytes:
        return bytes.fromhex(self._spec.reward.seal_anchor)


# -- everybody --------------------------------------------------------------------------------------------
async def keep(store: BlobStore, spec: JobSpec) -> None:
    """Fetch every sealed shard while its requester is there to have it. Raises DflError."""
    for cid in (await _listed(store, spec)).shards:
        if not await store.has(cid):
            await store.get(cid, max_bytes=max_shard_bytes(spec))


async def shard(files: Files, rows: LedgerRows, job: JobId, spec: JobSpec, round_: int) -> bytes | None:
    """The rows that a published round is scored on; None if there are none: they were not unsealed in time,
    or are not what was to be sealed. Raises BlobNotFound if their file is not to be had, or the ledger does
    not know yet whether they were in time.

    Whether they are sound rows is left to whoever reads them.
    """
    found = await trio.to_thread.run_sync(rows.unsealed, job, round_)
    if found is not None and found.late_s is None:
        why = "the ledger does not know yet when it was unsealed"
        raise BlobNotFound(f"validation shard of job {job} round {round_}", why=why)
    if found is None or not found.in_time:
        return None
    try:
        sealing.verify(found.key, found.previous)
        return await _open(files, spec, found.position, found.key)
    except VerificationFailed as bad:
        log.warning("a validation shard is none", job=job, round=round_, why=str(bad))
        return None


async def has_rows(files: Files, rows: LedgerRows, job: JobId, spec: JobSpec, round_: int) -> bool:
    """Whether a published round can be measured: always, unless its rows are sealed. Raises BlobNotFound."""
    return not spec.reward.sealed or await shard(files, rows, job, spec, round_) is not None


def unsound(spec: JobSpec) -> tuple[type[DflError], ...]:
    """What says that a shard holds no sound rows, once it is open: then the round has none either."""
    return (UsageError,) if spec.reward.sealed else ()


def may_open(rows: LedgerRows, job: JobId, round_: int) -> bool:
    """Whether a round's shard may still be unsealed in time, as far as the rows know. Blocks."""
    found = rows.unsealed(job, round_)
    return found is None or found.late_s is None


async def _open(files: Files, spec: JobSpec, position: int, key: bytes) -> bytes:
    """Raises BlobNotFound, VerificationFailed."""
    limit = max_shard_bytes(spec)
    sealed = await _get(files, (await _listed(files, spec)).shards[position], limit)
    unseal = partial(sealing.unseal, sealed, key, position, max_bytes=limit - sealing.OVERHEAD_BYTES)
    return await trio.to_thread.run_sync(unseal)


async def _listed(files: Files, spec: JobSpec) -> ShardList:
    """Raises BlobNotFound, VerificationFailed."""
    return ShardList.decode(await _get(files, spec.validation, MAX_LIST_BYTES), spec.training.rounds)


async def _get(files: Files, cid: Cid, max_bytes: int) -> bytes:
    """Raises BlobNotFound, UpdateRefused for a file that is too large or none."""
    try:
        return await files.get(cid, max_bytes=max_bytes)
    except CidMismatch as lie:  # of whoever delivered it: it says nothing of the file
        raise BlobNotFound(f"file {cid}", why=lie.why or lie.what) from lie


def _refusal(why: str) -> VerificationFailed:
    return VerificationFailed("a job's sealed validation rows were refused", why=why)
