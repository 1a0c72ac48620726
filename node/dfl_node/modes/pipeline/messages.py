"""What a conductor and a member say to each other, as DAG-CBOR, one message a frame.

The dataclasses are the format: `unpack` builds one only of exactly its fields, each of its declared type and
within the limits below. What the values mean is checked by whoever acts on them.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from dfl_ledger import codec
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.records import Cid
from dfl_node.modes.pipeline.plan import Finish, Plan, Point, Turn

MAX_CONTROL_BYTES = 2 * 2**20  # the losses of 100,000 steps are the most there can be
MAX_TEXT_CHARS = 400
MAX_ITEMS = 100_000


# -- a new stream's first message --------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Ask:
    """A conductor to a member: this is my seat; what can you hold, and what do you know of the run?"""

    job: int
    round: int
    parent: Cid
    epoch: int


@dataclass(frozen=True, slots=True)
class Call:
    """To the holder of a stage: this stream is the line to one of its ports."""

    job: int
    round: int
    parent: Cid
    epoch: int  # of the plan it belongs to
    stage: int
    port: str  # "above": from the stage before, or the feed; "labels": from the feed to the last stage


# -- from a member -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Offer:
    """What a member can do, and what it knows."""

    epoch: int  # the latest it has heard of
    memory_bytes: int  # for stages
    speed: float  # FLOP/s, 0 = never measured
    point: Point | None
    finish: Finish | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The member obeys another conductor."""

    epoch: int
    alive: bool  # it has heard of that one lately


@dataclass(frozen=True, slots=True)
class Ready:
    epoch: int
    stage: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A stage's file of a step is stored, here and with somebody else if anybody would."""

    epoch: int
    stage: int
    step: int
    cid: Cid


@dataclass(frozen=True, slots=True)
class Trouble:
    """A stage cannot go on."""

    epoch: int
    stage: int  # who says so
    blames: int  # a stage; FEED for the feed; itself for a failure of its own
    kind: str  # SEVERED ...
    why: str


@dataclass(frozen=True, slots=True)
class Beat:
    """Still here, from either end."""

    epoch: int
    step: int  # how far the conductor's run is, or the sender's stages are
    waits: bool  # every stage of the sender waits for somebody else


# -- from a conductor --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Go:
    """Every stage of the plan is ready: connect and begin."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Reached:
    """There is a new recovery point."""

    point: Point
    turns: tuple[Turn, ...]


FEED = 2**32 - 1  # as the stage that `Trouble` blames
SEVERED = "severed"  # the line to it broke
MISBEHAVED = "misbehaved"  # what it sent cannot be used
FAILED = "failed"  # its own trainer
RESTORING = "restoring"  # it could not begin: from its snapshot, or at all
Opening = Ask | Call
Message = Ask | Call | Offer | Refusal | Ready | Kept | Trouble | Beat | Plan | Go | Reached | Finish
_KINDS: dict[str, Any] = {
    kind.__name__.lower(): kind
    for kind in (Ask, Call, Offer, Refusal, Ready, Kept, Trouble, Beat, Plan, Go, Reached, Finish)
}
T = TypeVar("T")


def pack(message: Message) -> bytes:
    return codec.encode({"kind": type(message).__name__.lower(), "body": plain(message)})


def unpack(data: bytes) -> Message:
    """Raises VerificationFailed for anything that is not one of our messages."""
    values = codec.decode(data, max_bytes=MAX_CONTROL_BYTES)
    try:
        if not isinstance(values, dict) or values.keys() != {"kind", "body"}:
            raise ValueError("not a message")
        kind = _KINDS.get(values["kind"]) if isinstance(values["kind"], str) else None
        if kind is None:
            raise ValueError("an unknown kind of message")
        message: Message = read(kind, values["body"])
    except ValueError as bad:
        raise VerificationFailed("a pipeline's message is malformed", why=str(bad)) from bad
    return message


# -- dataclasses to plain values and back ------------------------------------------------------------------
def plain(value: Any) -> Any:
    """For the codec: dataclasses as maps, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, (Cid, type)):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value[:MAX_TEXT_CHARS] if isinstance(value, str) else value


def read(hint: Any, value: Any, where: str = "message") -> Any:
    """`value` as the type `hint` says. Raises ValueError naming the place that is not."""
    hint = getattr(hint, "__supertype__", hint)  # a NewType
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):  # X | None
        return None if value is None else read(typing.get_args(hint)[0], value, where)
    if origin is tuple and isinstance(value, list) and len(value) <= MAX_ITEMS:
        of = typing.get_args(hint)[0]
        return tuple(read(of, item, where) for item in value)
    if hint is int and type(value) is int and 0 <= value < 2**63:
        return value
    if hint is float and type(value) is float and math.isfinite(value):
        return value
    if hint is str and type(value) is str and len(value) <= MAX_TEXT_CHARS:
        return value
    if (hint is bool and type(value) is bool) or (hint is Cid and isinstance(value, Cid)):
        return value
    if dataclasses.is_dataclass(hint) and hint is not Cid and isinstance(value, dict):
        hints = _hints(typing.cast("type", hint))
        if value.keys() != hints.keys():
            raise ValueError(f"{where}: not exactly the fields of {getattr(hint, '__name__', hint)}")
        return hint(**{name: read(of, value[name], f"{where}.{name}") for name, of in hints.items()})  # type: ignore[operator]
    raise ValueError(f"{where}: not what belongs there")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
