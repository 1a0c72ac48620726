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


class Channel(Protocol):
    """Requests to one peer and announcements to all. Only peers with a verified binding are spoken to.

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
