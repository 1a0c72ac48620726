"""Bitswap messages: read from a stream under a size cap, decoded without unfolding, built.

The message format is py-libp2p's generated code. https://specs.ipfs.tech/bitswap-protocol/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from libp2p.abc import INetStream
from libp2p.bitswap.pb.bitswap_pb2 import Message
from libp2p.network.stream.exceptions import StreamEOF

from dfl_ledger.records import Cid
from dfl_node.store.dag_pb import fields, read_varint
from dfl_node.store.unixfs import MAX_BLOCK_BYTES

MAX_MESSAGE_BYTES = 4 << 20
MAX_FIELDS = 8192  # blocks and presences in one message
MAX_WANTLIST_BYTES = 256 << 10
STALL_BYTES = 16 << 10  # what counts as progress
_PREFIXES = (b"\x00\x70\x12\x20", b"\x01\x70\x12\x20", b"\x01\x55\x12\x20")  # version, codec, SHA2-256


async def read_message(stream: INetStream, heard: Callable[[], None]) -> bytearray | None:
    """The next message's bytes; None when the peer has closed its side.

    Calls `heard` after each STALL_BYTES. Raises ValueError for a message that is too long or cut off.
    """
    prefix = bytearray()
    while not prefix or prefix[-1] & 0x80:
        byte = await _read_some(stream, 1)
        if not byte and not prefix:
            return None
        prefix += byte
        if not byte or len(prefix) > 4:
            raise ValueError("a message without a length")
    length, _ = read_varint(prefix, 0)
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes")
    body = bytearray()  # grows as bytes come: a length alone costs no memory
    noted = 0
    while len(body) < length:
        part = await _read_some(stream, min(length - len(body), 1 << 16))
        if not part:
            raise ValueError("a message is cut off")
        body += part
        if len(body) - noted >= STALL_BYTES or len(body) == length:
            noted = len(body)
            heard()
    return body


def parse(body: bytearray) -> Message:
    """Decode a message. Raises ValueError for one that would take far more memory than it has bytes."""
    wantlist_bytes = 0
    for count, (number, value) in enumerate(fields(memoryview(body))):
        if number == Message.WANTLIST_FIELD_NUMBER and isinstance(value, memoryview):
            wantlist_bytes += len(value)
        if count >= MAX_FIELDS or wantlist_bytes > MAX_WANTLIST_BYTES:
            raise ValueError("a message with too many parts")
    message = Message()
    message.ParseFromString(bytes(body))
    return message


def blocks_of(message: Message) -> list[tuple[Cid, bytes]]:
    """The blocks of a message under the CIDs their bytes have. Foreign hashes and giants are left out."""
    return [
        (Cid.of(part.data, part.prefix[1]), part.data)
        for part in message.payload
        if part.prefix in _PREFIXES and len(part.data) <= MAX_BLOCK_BYTES
    ]


def wantlist(cids: Sequence[Cid], *, have: bool = False, cancel: bool = False) -> Message:
    """Ask for blocks, or only whether the peer has them, or take a question back."""
    message = Message()
    kind = Message.Wantlist.Have if have else Message.Wantlist.Block
    for cid in cids:
        message.wantlist.entries.add(
            block=bytes(cid), priority=1, cancel=cancel, wantType=kind, sendDontHave=not cancel
        )
    return message


async def _read_some(stream: INetStream, size: int) -> bytes:
    """At most `size` bytes; empty when the peer has closed its side."""
    try:
        return await stream.read(size)
    except StreamEOF:
        return b""
