"""CARv1: blocks in a row, for streaming a DAG over HTTP. Pure.

https://ipld.io/specs/transport/car/carv1/
"""

from __future__ import annotations

from collections.abc import Iterator

from dfl_ledger.records import Cid
from dfl_node.store.dag_pb import read_varint, varint
from dfl_node.store.unixfs import MAX_BLOCK_BYTES

MAX_HEADER_BYTES = 4096
_CID_BYTES = 36  # CIDv1 over SHA2-256; version 0 has 34
_MAX_SECTION_BYTES = _CID_BYTES + MAX_BLOCK_BYTES


def car_header(root: Cid) -> bytes:
    """The header for one root: DAG-CBOR of {"roots": [root], "version": 1}, which has just this form."""
    link = b"\xd8\x2a\x58\x25\x00" + bytes(root)  # tag 42, 37 bytes, the multibase prefix of a binary CID
    body = b"\xa2\x65roots\x81" + link + b"\x67version\x01"
    return varint(len(body)) + body


def car_section(cid: Cid, size: int) -> bytes:
    """What stands before a block of `size` bytes."""
    return varint(_CID_BYTES + size) + bytes(cid)


class CarReader:
    """Reads a CAR as it comes in. Its roots are ignored, as the gateway's specification advises."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header_read = False

    def feed(self, data: bytes) -> Iterator[tuple[Cid, bytes]]:
        """Take bytes, give the blocks they complete, which are not checked against their CIDs yet.

        Raises ValueError for anything but a CARv1 of SHA2-256 blocks; a section's size is refused before the
        section is buffered.
        """
        self._buffer += data
        at = 0
        try:
            while (section := self._section(at)) is not None:
                start, end = section
                at = end
                if self._header_read:
                    yield _split(bytes(memoryview(self._buffer)[start:end]))
                else:
                    if b"gversion\x01" not in self._buffer[start:end]:
                        raise ValueError("not a CARv1")
                    self._header_read = True
        finally:
            del self._buffer[:at]

    def _section(self, at: int) -> tuple[int, int] | None:
        """Where the next whole section begins and ends; None if it has not come in yet."""
        try:
            size, start = read_varint(self._buffer, at)
        except ValueError:
            if len(self._buffer) - at >= 10:
                raise
            return None
        limit = _MAX_SECTION_BYTES if self._header_read else MAX_HEADER_BYTES
        if size > limit:
            raise ValueError(f"a CAR section of {size} bytes where {limit} are allowed")
        return (start, start + size) if len(self._buffer) >= start + size else None


def _split(section: bytes) -> tuple[Cid, bytes]:
    length = 34 if section[:2] == b"\x12\x20" else _CID_BYTES
    return Cid.from_bytes(section[:length]), section[length:]
