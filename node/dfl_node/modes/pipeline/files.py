"""The two files a run publishes: a stage's, and the record of who fed it.

A stage's file says which run, which cuts and which step its snapshot belongs to, because the cuts differ from
round to round with the nodes' speed:

    header length u32 | header, DAG-CBOR | snapshot, safetensors as the trainer wrote it
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any

from dfl_ledger import codec
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.records import Address, Cid, JobId
from dfl_node.modes.pipeline.messages import plain, read
from dfl_node.modes.pipeline.plan import Finish, Point, RunId, Turn

MAX_HEADER_BYTES = 64 * 1024
MAX_RECORD_BYTES = 4 * 2**20
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class StageHeader:
    """Whose file it is."""

    job: JobId
    round: int
    parent: Cid
    epoch: int
    conductor: Address
    cuts: tuple[str, ...]
    stage: int
    step: int

    @property
    def run(self) -> RunId:
        return RunId(self.job, self.round, self.parent)

    @property
    def attempt(self) -> tuple[int, str, int, tuple[str, ...]]:
        """Stages make a model together only if this is the same: epoch, conductor, step, cuts."""
        return (self.epoch, self.conductor, self.step, self.cuts)


@dataclass(frozen=True, slots=True)
class StageFile:
    header: StageHeader
    snapshot: bytes  # as `Stage.snapshot` gives it

    def encode(self) -> bytes:
        header = codec.encode(plain(self.header))
        return b"".join((_LENGTH.pack(len(header)), header, self.snapshot))

    @classmethod
    def decode(cls, data: bytes) -> StageFile:
        """Raises VerificationFailed. Says nothing of the snapshot: that is the trainer's to check."""
        if len(data) < _LENGTH.size:
            raise _refused("stage", "it is too short")
        (length,) = _LENGTH.unpack_from(data)
        if length > min(MAX_HEADER_BYTES, len(data) - _LENGTH.size):
            raise _refused("stage", f"a header of {length} bytes")
        end = _LENGTH.size + length
        values = codec.decode(data[_LENGTH.size : end], max_bytes=MAX_HEADER_BYTES)
        return cls(_read("stage", StageHeader, values), data[end:])


@dataclass(frozen=True, slots=True)
class Record:
    """Who fed the run and what happened in it: published as the feed's piece."""

    job: JobId
    round: int
    parent: Cid
    finish: Finish
    points: tuple[Point, ...]  # recovery points, without their losses
    turns: tuple[Turn, ...]
    losses: tuple[float, ...]  # mean training loss, a step each

    @property
    def run(self) -> RunId:
        return RunId(self.job, self.round, self.parent)

    def encode(self) -> bytes:
        return codec.encode(plain(self))

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """Raises VerificationFailed."""
        return _read("feed", cls, codec.decode(data, max_bytes=MAX_RECORD_BYTES))  # type: ignore[no-any-return]


def _read(what: str, kind: Any, values: Any) -> Any:
    if not isinstance(values, dict) or values.keys() != {f.name for f in fields(kind)}:
        raise _refused(what, "its fields are not those of such a file")
    try:
        return read(kind, values, what)
    except ValueError as bad:
        raise _refused(what, str(bad)) from bad


def _refused(what: str, why: str) -> VerificationFailed:
    return VerificationFailed(f"{what} file refused", why=why)
