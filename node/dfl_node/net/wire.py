"""Bytes on a stream: length-prefixed frames, and the fixed layouts of our own small messages.

Every length is checked before anything is read or allocated, and every field of a stranger's message is
checked before it is used. `WireError` means that the peer broke the protocol.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from dfl_ledger.errors import BindingInvalid, PeerUnreachable, UsageError

from .binding import BINDING_BYTES, Binding, decode_binding, encode_binding
from .channel import PeerId

HELLO = "/dfl/hello/1.0.0"
PEERS = "/dfl/peers/1.0.0"
REACH = "/dfl/reach/1.0.0"

MAX_HELLO_BYTES = 4096
MAX_PEERS_BYTES = 40 << 10
MAX_LISTED_PEERS = 16
_MAX_ADDRS = 8
_MAX_ADDR_BYTES = 256
_MAX_AGENT_BYTES = 64
_CHUNK = 64 << 10
NONCE_BYTES = 16


class WireError(Exception):
    """The peer sent something that is not the protocol."""


class ByteStream(Protocol):
    """The two halves of a libp2p stream that frames need. `read` may return fewer bytes than asked."""

    async def read(self, n: int | None = None) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


async def write_frame(stream: ByteStream, body: bytes) -> None:
    """Four bytes of length, big endian, then the body."""
    await stream.write(len(body).to_bytes(4, "big") + body)


async def read_frame(stream: ByteStream, max_bytes: int) -> bytes:
    """One frame. Raises WireError when it announces more than max_bytes or the stream ends within it."""
    size = int.from_bytes(await _read_exactly(stream, 4), "big")
    if size > max_bytes:
        raise WireError(f"a frame of {size} bytes where at most {max_bytes} are allowed")
    return await _read_exactly(stream, size)


def check_protocol(protocol: str) -> None:
    """Raises UsageError. Strangers are kept from the protocols that begin so, see host.py."""
    if not protocol.startswith("/dfl/"):
        raise UsageError(f"not a protocol of ours: {protocol!r}", why="its name must begin with /dfl/")


def check_message(body: bytes, max_bytes: int) -> None:
    """Raises UsageError for a message that its stream does not carry."""
    if len(body) > max_bytes:
        raise UsageError(
            "the message is too large", why=f"{len(body)} bytes where this stream allows {max_bytes}"
        )


def ended(peer: PeerId, why: str) -> PeerUnreachable:
    """What a message stream raises once it is over."""
    return PeerUnreachable(f"the stream with peer {peer} has ended", why=why)


class FrameReader:
    """The frames of one stream, one after another. A cancelled `read` loses nothing: the next one goes on."""

    def __init__(self, stream: ByteStream, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._unread = bytearray()  # at most one frame, and what one read brought beyond it

    async def read(self) -> bytes:
        """Raises WireError for a frame over the limit, EOFError when no whole frame comes any more."""
        await self._fill(4)
        size = int.from_bytes(self._unread[:4], "big")
        if size > self._max_bytes:
            raise WireError(f"a frame of {size} bytes where at most {self._max_bytes} are allowed")
        await self._fill(4 + size)
        body = bytes(memoryview(self._unread)[4 : 4 + size])
        del self._unread[: 4 + size]
        return body

    async def _fill(self, size: int) -> None:
        while len(self._unread) < size:
            chunk = await self._stream.read(max(size - len(self._unread), _CHUNK))
            if not chunk:
                raise EOFError(f"the stream ended after {len(self._unread)} of {size} bytes")
            self._unread += chunk


async def _read_exactly(stream: ByteStream, size: int) -> bytes:
    # Grows with what arrives, never with what was announced.
    body = bytearray()
    while len(body) < size:
        chunk = await stream.read(min(size - len(body), _CHUNK))
        if not chunk:
            raise WireError(f"the stream ended after {len(body)} of {size} bytes")
        body += chunk
    return bytes(body)


@dataclass(frozen=True, slots=True)
class Hello:
    """The first words on a connection, the same both ways. The answer repeats the asker's nonce."""

    binding: Binding
    nonce: bytes  # NONCE_BYTES
    time_ms: int  # the sender's clock, Unix milliseconds: only to warn of skew
    gateway_port: int | None
    offers_relay: bool
    agent: str
    addrs: tuple[str, ...]  # multiaddrs where the sender says it can be dialled


_HELLO_HEAD = struct.Struct(f">B{BINDING_BYTES}s{NONCE_BYTES}sQHBBB")
_HELLO_VERSION = 1


def encode_hello(hello: Hello) -> bytes:
    """Addresses and agent beyond what a hello may carry are left out."""
    agent = hello.agent.encode()[:_MAX_AGENT_BYTES]
    addrs = _sendable(hello.addrs)
    head = _HELLO_HEAD.pack(
        _HELLO_VERSION,
        encode_binding(hello.binding),
        hello.nonce,
        hello.time_ms,
        hello.gateway_port or 0,
        1 if hello.offers_relay else 0,
        len(agent),
        len(addrs),
    )
    return head + agent + b"".join(struct.pack(">H", len(addr)) + addr for addr in addrs)


def decode_hello(raw: bytes) -> Hello:
    """Raises WireError. The binding is read, not verified."""
    if len(raw) < _HELLO_HEAD.size:
        raise WireError(f"a hello of {len(raw)} bytes")
    version, binding, nonce, time_ms, port, flags, agent_size, addr_count = _HELLO_HEAD.unpack_from(raw)
    if version != _HELLO_VERSION:
        raise WireError(f"hello version {version}")
    cursor = _Cursor(raw, _HELLO_HEAD.size)
    agent = cursor.text(agent_size, _MAX_AGENT_BYTES)
    addrs = cursor.addrs(addr_count)
    cursor.end()
    try:
        bound = decode_binding(binding)
    except BindingInvalid as bad:
        raise WireError(str(bad)) from bad
    return Hello(bound, nonce, time_ms, port or None, bool(flags & 1), agent, addrs)


@dataclass(frozen=True, slots=True)
class Listed:
    """A peer another peer tells us about: hearsay until it has been dialled and has said hello."""

    peer_key: bytes  # 32 bytes
    addrs: tuple[str, ...]


def encode_peers(listed: tuple[Listed, ...]) -> bytes:
    """At most MAX_LISTED_PEERS of them."""
    parts = [struct.pack(">B", len(listed[:MAX_LISTED_PEERS]))]
    for peer in listed[:MAX_LISTED_PEERS]:
        addrs = _sendable(peer.addrs)
        parts.append(peer.peer_key + struct.pack(">B", len(addrs)))
        parts += [struct.pack(">H", len(addr)) + addr for addr in addrs]
    return b"".join(parts)


def decode_peers(raw: bytes) -> tuple[Listed, ...]:
    """Raises WireError."""
    cursor = _Cursor(raw, 0)
    count = cursor.byte()
    if count > MAX_LISTED_PEERS:
        raise WireError(f"a list of {count} peers")
    listed = tuple(Listed(cursor.take(32), cursor.addrs(cursor.byte())) for _ in range(count))
    cursor.end()
    return listed


def _sendable(addrs: tuple[str, ...]) -> list[bytes]:
    encoded = [addr.encode() for addr in addrs]
    return [addr for addr in encoded if len(addr) <= _MAX_ADDR_BYTES][:_MAX_ADDRS]


@dataclass(slots=True)
class _Cursor:
    raw: bytes
    at: int

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.raw):
            raise WireError("a message that ends within a field")
        piece = self.raw[self.at : self.at + size]
        self.at += size
        return piece

    def byte(self) -> int:
        return self.take(1)[0]

    def text(self, size: int, limit: int) -> str:
        if size > limit:
            raise WireError(f"a text of {size} bytes where at most {limit} are allowed")
        try:
            text = self.take(size).decode()
        except UnicodeDecodeError as bad:
            raise WireError("a text that is not UTF-8") from bad
        if not text.isprintable():
            raise WireError("a text with control characters")
        return text

    def addrs(self, count: int) -> tuple[str, ...]:
        if count > _MAX_ADDRS:
            raise WireError(f"{count} addresses where at most {_MAX_ADDRS} are allowed")
        found = []
        for _ in range(count):
            size = int.from_bytes(self.take(2), "big")
            found.append(self.text(size, _MAX_ADDR_BYTES))
        return tuple(found)

    def end(self) -> None:
        if self.at != len(self.raw):
            raise WireError(f"{len(self.raw) - self.at} bytes after the end of a message")
