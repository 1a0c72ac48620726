"""The `Channel` twin: peers in one process, with the same errors, caps and time-outs, and faults on demand.

Whoever connects to one node meets the peers of that node too, as the real channel's peer exchange arranges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import combinations

import structlog
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
from .channel import FoundBy, Handler, MessageStream, Peer, PeerId, StreamHandler
from .config import NetLimits
from .inbox import Inbox, check_announcement, check_topic
from .memory_links import Fault, Links
from .memory_streams import Wire
from .wire import check_protocol

__all__ = ["Fault", "MemoryChannel", "MemoryNetwork"]

log = structlog.get_logger(__name__)

_SCHEME = "/memory/0/p2p/"


class MemoryNetwork:
    """Channels that can reach each other, in (virtual) time."""

    def __init__(self, limits: NetLimits | None = None, *, latency_s: float = 0.0) -> None:
        self.limits = limits or NetLimits()
        self.members: dict[PeerId, MemoryChannel] = {}
        self.links = Links(latency_s)
        self._wires: dict[Wire, None] = {}  # a set in order of opening, so that every run wakes alike
        self._severed: dict[frozenset[PeerId], None] = {}  # connections that come back when a partition ends

    @asynccontextmanager
    async def open_channel(
        self, binding: Binding, *, gateway_port: int | None = None, peer_key: bytes | None = None
    ) -> AsyncIterator[MemoryChannel]:
        """A new member. `peer_key` is its node key if that is not the one in its binding."""
        key = peer_key if peer_key is not None else binding.peer_key
        async with trio.open_nursery() as nursery:
            channel = MemoryChannel(self, binding, key, gateway_port, nursery)
            if channel.peer_id in self.members:  # killed, and started again before it was tidied up
                self.members[channel.peer_id].leave()
            self.members[channel.peer_id] = channel
            try:
                yield channel
            finally:
                channel.leave()
                nursery.cancel_scope.cancel()

    # Faults, until `heal`

    def set_latency(self, one: PeerId, other: PeerId, latency_s: float) -> None:
        """How long a message takes between two peers; no fault, so it stays."""
        self.links.set_latency(one, other, latency_s)

    def inject(self, fault: Fault, one: PeerId, other: PeerId, *, delay_s: float = 0.0) -> None:
        """From now on, until `heal`. A partition also breaks the connection there is.

        Streams that lost a message under DROP are silent, and break when it is healed: nothing is sent again.
        """
        self.links.inject(fault, one, other, delay_s)
        self._sever_cut()

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Only members of one group reach each other. Who is named in none is in one more with the rest."""
        self.links.divide(groups)
        self._sever_cut()

    def heal(self, *pair: PeerId) -> None:
        """End the fault between two peers; without arguments all of them, and the partition.

        Connections that a partition broke, or did not let come about, are there again, as the real channel's
        discovery would see to.
        """
        if pair:
            one, other = pair
            self.links.heal(one, other)
        else:
            self.links.heal_all()
        for wire in self.wires():
            if wire.lossy and not self.links.lose(*wire.peers):
                wire.cut("a message was lost")
            wire.wake()
        for severed in tuple(self._severed):
            mine, theirs = sorted(severed)
            if not self.links.are_cut(mine, theirs):
                del self._severed[severed]
                if mine in self.members:
                    self.members[mine].introduce(theirs)

    def freeze(self, peer: PeerId) -> None:
        """As a stopped process: what it sends and is sent waits until `thaw`. Connections stay."""
        self.links.freeze(peer)

    def thaw(self, peer: PeerId) -> None:
        self.links.thaw(peer)
        for wire in self.wires():
            wire.wake()

    # Between members

    def open_wire(self, one: PeerId, other: PeerId) -> Wire:
        wire = Wire(self.links, one, other)
        self._wires[wire] = None
        return wire

    def wires(self) -> tuple[Wire, ...]:
        """The streams that are open."""
        self._wires = {wire: None for wire in self._wires if not wire.is_over}
        return tuple(self._wires)

    def sever(self, one: PeerId, other: PeerId, why: str) -> None:
        """The connection between two peers is gone."""
        for mine, theirs in ((one, other), (other, one)):
            if mine in self.members:
                self.members[mine].forget(theirs)
        for wire in self.wires():
            if {one, other} == set(wire.peers):
                wire.cut(why)

    def remember_severed(self, one: PeerId, other: PeerId) -> None:
        self._severed[frozenset((one, other))] = None

    def _sever_cut(self) -> None:
        for one, other in combinations(sorted(self.members), 2):
            if self.links.are_cut(one, other):
                if self.members[one].knows(other) or self.members[other].knows(one):
                    self.remember_severed(one, other)
                self.sever(one, other, "the connection is lost")


@dataclass(frozen=True, slots=True)
class _Served:
    handler: Handler
    max_request_bytes: int


@dataclass(frozen=True, slots=True)
class _ServedStreams:
    handler: StreamHandler
    max_message_bytes: int


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
    _served_streams: dict[str, _ServedStreams] = field(default_factory=dict)
    _serving: Counter[PeerId] = field(default_factory=Counter)
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
            other = self._dial(peer_id)
            self._meet(other, found_by)
            for known in other.peers():
                self.introduce(known.peer_id)
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
                await self.network.links.travel(self.peer_id, peer)
                reply = await other.answer(self.peer_id, protocol, body)
                await self.network.links.travel(self.peer_id, peer)
        except trio.TooSlowError:
            why = f"waited {timeout_s:g} s for its reply"
            raise TimedOut(f"peer {peer} did not answer {protocol}", why=why) from None
        if len(reply) > max_reply_bytes:
            raise PeerMisbehaved(peer, f"{protocol}: a frame of {len(reply)} bytes")
        return reply

    def handle(self, protocol: str, handler: Handler, *, max_request_bytes: int) -> None:
        check_protocol(protocol)
        self._served[protocol] = _Served(handler, max_request_bytes)

    async def open_stream(
        self, peer: PeerId, protocol: str, *, max_message_bytes: int, timeout_s: float
    ) -> MessageStream:
        """Raises PeerUnreachable, TimedOut."""
        if peer not in self._peers:
            raise PeerUnreachable(f"peer {peer} is not connected", why="no verified connection")
        known, other = self._peers[peer], self._reach(peer)
        with trio.move_on_after(timeout_s):
            await self.network.links.travel(self.peer_id, peer)
            wire = other.accept(self.peer_id, protocol)
            await self.network.links.travel(self.peer_id, peer)
            return wire.end_for(self.peer_id, known, max_message_bytes)
        raise TimedOut(f"peer {peer} opened no stream for {protocol}", why=f"waited {timeout_s:g} s")

    def handle_streams(self, protocol: str, handler: StreamHandler, *, max_message_bytes: int) -> None:
        check_protocol(protocol)
        self._served_streams[protocol] = _ServedStreams(handler, max_message_bytes)

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
                self.introduce(other.peer_id, FoundBy.DHT)
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

    def accept(self, asker: PeerId, protocol: str) -> Wire:
        """Serve a stream from now on. Raises PeerUnreachable."""
        served = self._served_streams.get(protocol)
        if served is None or asker not in self._peers:
            raise PeerUnreachable(f"peer {self.peer_id} takes no stream", why=f"it does not serve {protocol}")
        wire = self.network.open_wire(asker, self.peer_id)
        if self._serving[asker] >= self.network.limits.max_message_streams_per_peer:
            wire.tear("the other side has closed it")
        else:
            self._serving[asker] += 1
            self._nursery.start_soon(self._serve_stream, self._peers[asker], served, wire)
        return wire

    async def _serve_stream(self, peer: Peer, served: _ServedStreams, wire: Wire) -> None:
        stream = wire.end_for(self.peer_id, peer, served.max_message_bytes)
        with trio.CancelScope() as scope:
            self._inflight.add(scope)
            try:
                await served.handler(peer, stream)
            except Exception as error:
                log.debug("stream ended", peer=peer.peer_id, error=repr(error)[:300])
            finally:
                self._inflight.discard(scope)
                self._serving[peer.peer_id] -= 1
                await stream.aclose()

    def knows(self, peer: PeerId) -> bool:
        return peer in self._peers

    def forget(self, peer: PeerId) -> None:
        """The connection is gone."""
        self._peers.pop(peer, None)

    def leave(self) -> None:
        """The node is gone, as if it had been killed."""
        if self.network.members.get(self.peer_id) is self:
            for peer in tuple(self.network.members):
                self.network.sever(self.peer_id, peer, "the peer is gone")
            del self.network.members[self.peer_id]
        for scope in tuple(self._inflight):
            scope.cancel()

    def _reach(self, peer: PeerId) -> MemoryChannel:
        other = self.network.members.get(peer)
        if other is None or self.network.links.are_cut(self.peer_id, peer):
            raise PeerUnreachable(f"peer {peer} cannot be dialled", why="nobody listens there")
        return other

    def _dial(self, peer: PeerId) -> MemoryChannel:
        if self.network.links.are_cut(self.peer_id, peer):
            self.network.remember_severed(self.peer_id, peer)
        other = self._reach(peer)
        if self.network.links.hold(self.peer_id, peer):
            raise PeerUnreachable(f"peer {peer} cannot be dialled", why="it says no hello")
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

    def introduce(self, peer: PeerId, found_by: FoundBy = FoundBy.GOSSIP) -> None:
        if peer in self._peers or peer == self.peer_id:
            return
        try:
            self._meet(self._dial(peer), found_by)
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
        await self.network.links.travel(self.peer_id, other.peer_id)
        other._inbox.deliver(topic, self.peer_id, body)
