"""What node and worker say to each other over two pipes: a JSON header, then binary payloads.

    u32 length of the header | header | payload | payload ...      the header's "payloads" lists their lengths

Used by both sides, so it imports neither trio nor torch. Lengths are checked before memory is taken.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from dfl_ledger.errors import DflError

MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOADS = 10_000
MAX_FRAME_BYTES = 4 << 30
_LENGTH = struct.Struct(">I")
PREFIX_BYTES = _LENGTH.size


@dataclass(frozen=True, slots=True)
class Frame:
    header: dict[str, Any]
    payloads: tuple[bytes, ...] = ()


class FrameError(Exception):
    """The other side does not speak this protocol."""


class WorkerDied(DflError):
    """The worker process ended within a request: killed, out of memory, or closed. The next request starts
    another one."""


def pack_header(header: dict[str, Any], payloads: Sequence[bytes]) -> bytes:
    """Everything that goes before the payloads. Raises FrameError for what the other side would refuse."""
    text = json.dumps({**header, "payloads": [len(payload) for payload in payloads]}).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise FrameError(f"a header of {len(text)} bytes")
    unpack_header(text)
    return _LENGTH.pack(len(text)) + text


def header_length(prefix: bytes) -> int:
    """From the first PREFIX_BYTES of a frame."""
    length = int(_LENGTH.unpack(prefix)[0])
    if length > MAX_HEADER_BYTES:
        raise FrameError(f"a header of {length} bytes")
    return length


def unpack_header(text: bytes) -> tuple[dict[str, Any], list[int]]:
    """The header and the lengths of the payloads that follow."""
    try:
        header = json.loads(text)
        lengths = header.pop("payloads")
        fine = len(lengths) <= MAX_PAYLOADS and all(type(n) is int and n >= 0 for n in lengths)
    except (ValueError, TypeError, KeyError, AttributeError) as bad:
        raise FrameError("a malformed header") from bad
    if not fine or sum(lengths) > MAX_FRAME_BYTES:
        raise FrameError("too many or too large payloads")
    return header, lengths


def read_frame(file: BinaryIO) -> Frame | None:
    """The next frame of a blocking file, None at its end. Raises FrameError."""
    prefix = file.read(PREFIX_BYTES)
    if not prefix:
        return None
    if len(prefix) < PREFIX_BYTES:
        raise FrameError("the pipe ended within a frame")
    header, lengths = unpack_header(_read(file, header_length(prefix)))
    return Frame(header, tuple(_read(file, length) for length in lengths))


def write_frame(file: BinaryIO, frame: Frame) -> None:
    file.write(pack_header(frame.header, frame.payloads))
    for payload in frame.payloads:
        file.write(payload)
    file.flush()


def _read(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise FrameError("the pipe ended within a frame")
    return data
