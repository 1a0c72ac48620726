"""The `Channel` Protocol: talk to peers. `Libp2pChannel` is the real one, `MemoryChannel` its twin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import NewType, Protocol

from dfl_ledger.records import Address

PeerId = NewType("PeerId", str)  # base58, as libp2p prints it

Handler = Callable[["Peer", bytes], Awaitable[bytes]]
StreamHandler = Callable[["Peer", "MessageStream"], Awaitable[None]]


class FoundBy(Enum):
    """How a peer became known."""

    BOOT = "boot"  # a --bootnodes flag
    REGISTRY = "registry"  # the chain's node registry
    MDNS = "mdns"
    DHT = "dht"  # a Kademlia provider record
    GOSSIP = "gossip"
    INBOUND = "inbound"  # it dialled us


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer whose wallet binding has been verified."""

    peer_id: PeerId
    address: Address  # its wallet
    multiaddrs: tuple[str, ...]
    gateway_url: str | None  # its trustless gateway, built from the connection's IP and the port it told
    found_by: FoundBy
    latency_s: float | None = None


class MessageStream(Protocol):
    """Whole messages between two peers, in order, both ways at once: one task may send, another receive.

    However the stream ends (closed on either side, peer dead, connection lost) `send` and `receive` raise
    PeerUnreachable from then on, `receive` after the last message that arrived. A peer that is silent, or
    does not read, is no error: put a time limit around the call.
    """

    @property
    def peer(self) -> Peer:
        """Who is at the other end, as it was when the stream opened."""
        ...

    async def send(self, body: bytes) -> None:
        """Returns when the message is on its way, which waits for a peer that reads slowly.

        Raises PeerUnreachable, or UsageError for a message over the stream's limit. A send that is cancelled
        after it has begun ends the stream, for half a message cannot be taken back.
        """
        ...

    async def receive(self) -> bytes:
        """The next message. Cancelling loses nothing.

        Raises PeerUnreachable, or PeerMisbehaved for a message over the stream's limit, which ends the
        stream and counts as a violation.
        """
        ...

    async def aclose(self) -> None:
        """End the stream both ways; what was sent before still arrives. Idempotent, and never waits long."""
        ...


class Channel(Protocol):
    """Requests and streams to one peer, announcements to all. Only verified peers are spoken to.

    Raises PeerUnreachable, PeerMisbehaved, TimedOut. Passes tests/conformance/channel.py.
    """

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def multiaddrs(self) -> tuple[str, ...]:
        """Where we can be dialled, each ending in /p2p/<peer id>."""
        ...

    def peers(self) -> tuple[Peer, ...]:
        """The verified peers we are connected to."""
        ...

    async def connect(self, multiaddr: str, found_by: FoundBy = FoundBy.BOOT) -> Peer:
        """Dial, verify the binding, remember. Idempotent."""
        ...

    async def request(
        self, peer: PeerId, protocol: str, body: bytes, *, max_reply_bytes: int, timeout_s: float
    ) -> bytes:
        """One request, one reply, on a stream of its own."""
        ...

    def handle(self, protocol: str, handler: Handler, *, max_request_bytes: int) -> None:
        """Serve a request protocol. A handler that raises closes the stream without a reply."""
        ...

    async def open_stream(
        self, peer: PeerId, protocol: str, *, max_message_bytes: int, timeout_s: float
    ) -> MessageStream:
        """A stream that lasts: for many messages between the same two peers it costs a fraction of requests.

        `max_message_bytes` bounds what we send and take. A peer that serves too many of our streams already
        closes this one at once.
        """
        ...

    def handle_streams(self, protocol: str, handler: StreamHandler, *, max_message_bytes: int) -> None:
        """Serve a stream protocol. The stream ends when the handler returns or raises."""
        ...

    async def publish(self, topic: str, body: bytes) -> None:
        """Announce to everyone subscribed. Best effort; at most 64 KiB."""
        ...

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[tuple[PeerId, bytes]]]:
        """Announcements of others (signed by their node key), while the context is open.

        A slow reader loses the oldest announcements, never memory.
        """
        ...

    async def provide(self, key: bytes) -> None:
        """Put a Kademlia provider record: we take part in what `key` names."""
        ...

    async def find_providers(self, key: bytes) -> tuple[Peer, ...]:
        """Find, dial and verify those who provide `key`. Unreachable ones are left out."""
        ...
