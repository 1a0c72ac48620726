"""The `Channel` twin: peers in one process, with the same errors, caps and time-outs, and faults on demand.

Whoever connects to one node meets the peers of that node too, as the real channel's peer exchange arranges.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import trio

from dfl_ledger.errors import (
    BindingInvalid,
    DflError,
    PeerMisbehaved,
    PeerUnreachable,
    TimedOut,
    UsageError,
)

from .binding import Binding, peer_id_of, verify_binding
from .channel import FoundBy, Handler, Peer, PeerId
from .config import NetLimits
from .inbox import Inbox, check_announcement, check_topic

_SCHEME = "/memory/0/p2p/"


class Fault(Enum):
    """What can be wrong between two peers."""

    DROP = "what one sends the other is lost"
    DELAY = "what one sends the other comes late"
    PARTITION = "neither can reach the other"


@dataclass(frozen=True, slots=True)
class _Injected:
    fault: Fault
    delay_s: float


class MemoryNetwork:
    """Channels that can reach each other."""

    def __init__(self, limits: NetLimits | None = None) -> None:
        self.limits = limits or NetLimits()
        self.members: dict[PeerId, MemoryChannel] = {}
        self._faults: dict[frozenset[PeerId], _Injected] = {}

    @asynccontextmanager
    async def open_channel(
        self, binding: Binding, *, gateway_port: int | None = None, peer_key: bytes | None = None
    ) -> AsyncIterator[MemoryChannel]:
        """A new member. `peer_key` is its node key if that is not the one in its binding."""
        key = peer_key if peer_key is not None else binding.peer_key
        async with trio.open_nursery() as nursery:
            channel = MemoryChannel(self, binding, key, gateway_port, nursery)
            self.members[channel.peer_id] = channel
            try:
                yield channel
            finally:
                channel.leave()
                nursery.cancel_scope.cancel()

    def inject(self, fault: Fault, one: PeerId, other: PeerId, *, delay_s: float = 0.0) -> None:
        """From now on, until `heal`. A partition also breaks the connection there is."""
        self._faults[frozenset((one, other))] = _Injected(fault, delay_s)
        if fault is Fault.PARTITION:
            for mine, theirs in ((one, other), (other, one)):
                if mine in self.members:
                    self.members[mine].forget(theirs)

    def heal(self, one: PeerId, other: PeerId) -> None:
        """End the fault between two peers."""
        self._faults.pop(frozenset((one, other)), None)

    def fault(self, one: PeerId, other: PeerId) -> Fault | None:
        injected = self._faults.get(frozenset((one, other)))
        return injected.fault if injected else None

    async def travel(self, one: PeerId, other: PeerId) -> None:
        """The way between two peers: takes its time, or never ends."""
        injected = self._faults.get(frozenset((one, other)))
        if injected is None:
            await trio.lowlevel.checkpoint()
        elif injected.fault is Fault.DELAY:
            await trio.sleep(injected.delay_s)
        else:
            await trio.sleep_forever()


@dataclass(frozen=True, slots=True)
class _Served:
    handler: Handler
    max_request_bytes: int


@dataclass(slots=True, eq=False)
class MemoryChannel:
    """See `Channel`."""

    network: MemoryNetwork
    binding: Binding
    peer_key: bytes
    gateway_port: int | None
    _nursery: trio.Nursery
    _peers: dict[PeerId, Peer] = field(default_factory=dict)
    _served: dict[str, _Served] = field(default_factory=dict)
    _inbox: Inbox = field(init=False)
    _provided: set[bytes] = field(default_factory=set)
    _inflight: set[trio.CancelScope] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._inbox = Inbox(self.network.limits.max_backlog)

    @property
    def peer_id(self) -> PeerId:
        return peer_id_of(self.peer_key)

    @property
    def multiaddrs(self) -> tuple[str, ...]:
        return (_SCHEME + self.peer_id,)

    def peers(self) -> tuple[Peer, ...]:
        return tuple(self._peers.values())

    async def connect(self, multiaddr: str, found_by: FoundBy = FoundBy.BOOT) -> Peer:
        """Raises UsageError, PeerUnreachable, BindingInvalid."""
        peer_id = PeerId(multiaddr.removeprefix(_SCHEME))
        if not multiaddr.startswith(_SCHEME):
            raise UsageError(f"not the address of a peer: {multiaddr[:80]!r}")
        if peer_id == self.peer_id:
            raise UsageError(f"{multiaddr} is this node itself")
        await trio.lowlevel.checkpoint()
        if peer_id not in self._peers:
            other = self._reach(peer_id)
            self._meet(other, found_by)
            for known in other.peers():
                self._introduce(known.peer_id)
        return self._peers[peer_id]

    async def request(
        self, peer: PeerId, protocol: str, body: bytes, *, max_reply_bytes: int, timeout_s: float
    ) -> bytes:
        """Raises PeerUnreachable, PeerMisbehaved, TimedOut."""
        if peer not in self._peers:
            raise PeerUnreachable(f"peer {peer} is not connected", why="no verified connection")
        other = self._reach(peer)
        try:
            with trio.fail_after(timeout_s):
                await self.network.travel(self.peer_id, peer)
                reply = await other.answer(self.peer_id, protocol, body)
                await self.network.travel(self.peer_id, peer)
        except trio.TooSlowError:
            why = f"waited {timeout_s:g} s for its reply"
            raise TimedOut(f"peer {peer} did not answer {protocol}", why=why) from None
        if len(reply) > max_reply_bytes:
            raise PeerMisbehaved(peer, f"{protocol}: a frame of {len(reply)} bytes")
        return reply

    def handle(self, protocol: str, handler: Handler, *, max_request_bytes: int) -> None:
        if not protocol.startswith("/dfl/"):
            raise UsageError(f"not a protocol of ours: {protocol!r}", why="its name must begin with /dfl/")
        self._served[protocol] = _Served(handler, max_request_bytes)

    async def publish(self, topic: str, body: bytes) -> None:
        """Raises UsageError."""
        check_announcement(topic, body, self.network.limits.max_announcement_bytes)
        await trio.lowlevel.checkpoint()
        for other in self._reachable():
            self._nursery.start_soon(self._deliver, other, topic, body)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[AsyncIterator[tuple[PeerId, bytes]]]:
        check_topic(topic)
        reader = self._inbox.open(topic)
        try:
            yield reader
        finally:
            self._inbox.close(topic, reader)

    async def provide(self, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._provided.add(key)

    async def find_providers(self, key: bytes) -> tuple[Peer, ...]:
        await trio.lowlevel.checkpoint()
        found = []
        for other in sorted(self._reachable(), key=lambda member: member.peer_id):
            if key in other._provided:
                self._introduce(other.peer_id, FoundBy.DHT)
                if other.peer_id in self._peers:
                    found.append(self._peers[other.peer_id])
        return tuple(found)

    # Between members

    async def answer(self, asker: PeerId, protocol: str, body: bytes) -> bytes:
        served = self._served.get(protocol)
        if served is None:
            raise PeerUnreachable(
                f"peer {self.peer_id} takes no request", why=f"it does not serve {protocol}"
            )
        if len(body) > served.max_request_bytes or asker not in self._peers:
            raise PeerUnreachable(f"peer {self.peer_id} hung up", why=f"before it answered {protocol}")
        reply: bytes | None = None
        with trio.CancelScope() as scope:
            self._inflight.add(scope)
            try:
                reply = await served.handler(self._peers[asker], body)
            except Exception as error:
                raise PeerUnreachable(f"peer {self.peer_id} hung up", why=repr(error)[:200]) from error
            finally:
                self._inflight.discard(scope)
        if reply is None:
            raise PeerUnreachable(f"peer {self.peer_id} hung up", why=f"before it answered {protocol}")
        return reply

    def forget(self, peer: PeerId) -> None:
        """The connection is gone."""
        self._peers.pop(peer, None)

    def leave(self) -> None:
        """The node is gone, as if it had been killed."""
        self.network.members.pop(self.peer_id, None)
        for member in self.network.members.values():
            member.forget(self.peer_id)
        self._peers.clear()
        for scope in tuple(self._inflight):
            scope.cancel()

    def _reach(self, peer: PeerId) -> MemoryChannel:
        other = self.network.members.get(peer)
        if other is None or self.network.fault(self.peer_id, peer) is Fault.PARTITION:
            raise PeerUnreachable(f"peer {peer} cannot be dialled", why="nobody listens there")
        return other

    def _meet(self, other: MemoryChannel, found_by: FoundBy) -> None:
        """Both check the other's binding, then both know each other. Raises BindingInvalid."""
        mine = other._verified(self, FoundBy.INBOUND)
        self._peers[other.peer_id] = self._verified(other, found_by)
        other._peers[self.peer_id] = mine

    def _verified(self, other: MemoryChannel, found_by: FoundBy) -> Peer:
        try:
            address = verify_binding(
                other.binding,
                peer_key=other.peer_key,
                chain_id=self.binding.chain_id,
                registry=self.binding.registry,
            )
        except BindingInvalid as bad:
            raise BindingInvalid(f"peer {other.peer_id} is refused", why=bad.why) from bad
        return Peer(
            peer_id=other.peer_id,
            address=address,
            multiaddrs=other.multiaddrs,
            gateway_url=f"http://127.0.0.1:{other.gateway_port}" if other.gateway_port else None,
            found_by=found_by,
            latency_s=0.0,
        )

    def _introduce(self, peer: PeerId, found_by: FoundBy = FoundBy.GOSSIP) -> None:
        if peer in self._peers or peer == self.peer_id:
            return
        try:
            self._meet(self._reach(peer), found_by)
        except DflError:
            return  # hearsay that led nowhere

    def _reachable(self) -> Iterable[MemoryChannel]:
        """Everyone a message gets to from here, passed on from peer to peer."""
        seen = {self.peer_id}
        frontier = [self]
        while frontier:
            member = frontier.pop()
            for peer in member._peers:
                if peer not in seen and peer in self.network.members:
                    seen.add(peer)
                    frontier.append(self.network.members[peer])
                    yield self.network.members[peer]

    async def _deliver(self, other: MemoryChannel, topic: str, body: bytes) -> None:
        await self.network.travel(self.peer_id, other.peer_id)
        other._inbox.deliver(topic, self.peer_id, body)
