"""The libp2p host: who may open which stream, how many, and what an error in one may cost (that stream).

A connection proves a node key and nothing more. Until the peer's hello is verified it may speak only the open
protocols: hello, identify, ping, and whatever the block store serves to everybody. Everything of ours, gossip
and the DHT are for verified peers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr import Multiaddr

from dfl_ledger.errors import PeerUnreachable, UsageError

from .addrs import interfaces_of, tcp_addr
from .channel import PeerId
from .config import NetConfig
from .muxer import BoundedYamux
from .services import Tasks, quiet_libp2p, running, shielded
from .swarm import NodeSwarm
from .traffic import Meter
from .transports import bound_multistream
from .wire import HELLO

log = structlog.get_logger(__name__)

_MAX_REACHED = 2
_CLOSE_S = 0.6  # all connections together; each says goodbye on its own
RELAY_HOP = "/libp2p/circuit/relay/0.2.0/hop"
RELAY_STOP = "/libp2p/circuit/relay/0.2.0/stop"
_RESTRICTED = ("/dfl/", "/meshsub/", "/floodsub/", RELAY_HOP)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The far end of a direct connection."""

    ip: str
    port: int
    dialled: bool  # by us: the port is one the peer listens on


class NodeHost(BasicHost):
    """A BasicHost that contains what strangers cause."""

    def __init__(self, swarm: NodeSwarm, tasks: Tasks) -> None:
        self.swarm = swarm
        self.limits = swarm.limits
        self.meter = Meter()
        self._reached_addrs: list[Multiaddr] = []  # where peers dialled us back
        self.relay_addrs: list[Multiaddr] = []  # ours, through relays
        self.circuit_relays: set[ID] = set()  # where we have a reservation: only they may bring us circuits
        self._tasks = tasks
        self._verified_events: dict[ID, trio.Event] = {}
        self._streams: Counter[int] = Counter()  # inbound streams by connection
        # Addresses that others report as ours are not believed: they come from strangers.
        super().__init__(
            swarm,
            negotiate_timeout=int(self.limits.negotiate_s),
            disable_identify_address_discovery=True,
        )

    # Addresses

    def get_addrs(self) -> list[Multiaddr]:
        """Where we can be dialled: what we listen on, and through relays. Each ends in /p2p/<peer id>."""
        suffix = Multiaddr(f"/p2p/{self.get_id()}")
        listening = [
            addr.encapsulate(suffix) for bound in self.get_transport_addrs() for addr in interfaces_of(bound)
        ]
        return list(dict.fromkeys([*listening, *self._reached_addrs, *self.relay_addrs]))

    def reached_at(self, ips: set[str], port: int) -> None:
        """Peers dialled us at these addresses, which a router may forward to us: tell others."""
        me = PeerId(str(self.get_id()))
        self._reached_addrs = [Multiaddr(tcp_addr(ip, port, me)) for ip in sorted(ips)[:_MAX_REACHED]]

    def is_connected(self, peer_id: ID) -> bool:
        return any(not connection.is_closed for connection in self.swarm.get_connections(peer_id))

    def endpoint(self, peer_id: ID) -> Endpoint | None:
        """Where a peer's direct connection comes from; None when it is only reached through a relay."""
        for connection in self.swarm.get_connections(peer_id):
            muxed = connection.muxed_conn
            if connection.is_closed or not isinstance(muxed, BoundedYamux) or muxed.is_relayed:
                continue
            remote = muxed.get_remote_address()
            if remote is not None:
                return Endpoint(remote[0], remote[1], muxed.is_initiator)
        return None

    # Verification

    def mark_verified(self, peer_id: ID) -> None:
        self.swarm.mark_verified(peer_id)
        event = self._verified_events.pop(peer_id, None)
        if event is not None:
            event.set()

    def mark_gone(self, peer_id: ID) -> None:
        """No connection to the peer is left."""
        self.swarm.verified.discard(peer_id)
        self._verified_events.pop(peer_id, None)
        # Identify may have filled the peerstore with a megabyte; nothing in it is needed any more.
        with suppress(PeerStoreError):  # it knows nothing of the peer
            self.get_peerstore().clear_peerdata(peer_id)

    def is_verified(self, peer_id: ID) -> bool:
        return peer_id in self.swarm.verified

    async def _wait_verified(self, peer_id: ID) -> bool:
        """Streams can overtake the hello of their own connection: give it its time."""
        if not self.is_verified(peer_id):
            event = self._verified_events.setdefault(peer_id, trio.Event())
            with trio.move_on_after(self.limits.hello_s):
                await event.wait()
        return self.is_verified(peer_id)

    async def _may_open(self, peer_id: ID, protocol: str) -> bool:
        if protocol == RELAY_STOP:
            return peer_id in self.circuit_relays
        if protocol == HELLO or not protocol.startswith(_RESTRICTED):
            return True
        return await self._wait_verified(peer_id)

    # Streams

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> INetStream:
        stream = await super().new_stream(peer_id, protocol_ids)
        self.meter.watch(stream, str(stream.get_protocol()))
        return stream

    async def open_to(self, peer: PeerId, protocol: str) -> INetStream:
        """A stream over a connection there is. Raises PeerUnreachable."""
        peer_id = ID.from_base58(peer)
        if not self.is_connected(peer_id):  # the library would dial, and wait for that
            raise PeerUnreachable(
                f"peer {peer} is not connected", help_command="dfl-node peers", why="no verified connection"
            )
        try:
            return await self.new_stream(peer_id, [TProtocol(protocol)])
        except Exception as error:
            why = f"it does not serve {protocol}" if "not supported" in str(error.__cause__) else repr(error)
            raise PeerUnreachable(f"peer {peer} takes no stream", why=why[:200]) from error

    def inbound_streams(self) -> int:
        """How many streams others have open to us now."""
        return self._streams.total()

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        connection = id(net_stream.muxed_conn)
        peer_id = net_stream.muxed_conn.peer_id
        if (
            self._streams[connection] >= self.limits.max_streams_per_connection
            or self._streams.total() >= self.limits.max_streams
        ):
            log.debug("too many streams", peer=str(peer_id))
            await _reset(net_stream)
            return
        self._streams[connection] += 1
        try:
            await self._serve_stream(net_stream, peer_id)
        except Exception as error:
            # Left alone it would end the connection's accept loop, and from there the whole swarm.
            log.debug("a stream failed", peer=str(peer_id), error=repr(error)[:300])
            await _reset(net_stream)
        finally:
            self._streams[connection] -= 1
            if not self._streams[connection]:
                del self._streams[connection]

    async def _serve_stream(self, stream: INetStream, peer_id: ID) -> None:
        protocol, handler = await self.multiselect.negotiate(
            MultiselectCommunicator(stream), int(self.limits.negotiate_s)
        )
        if protocol is None or handler is None or not await self._may_open(peer_id, protocol):
            await _reset(stream)
            return
        stream.set_protocol(protocol)
        self.meter.watch(stream, protocol)
        await handler(stream)

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        # The library runs this as a trio system task, where an exception ends the process.
        if peer_id in (self.get_id(), *self._identify_inflight) or self._has_cached_protocols(peer_id):
            return
        self._identify_inflight.add(peer_id)
        self._tasks.start_soon(self._identify_contained, peer_id, reason)

    async def _identify_contained(self, peer_id: ID, reason: str) -> None:
        try:
            await self._identify_task_entry(peer_id, reason)
        except Exception as error:
            log.debug("identify failed", peer=str(peer_id), error=repr(error)[:200])

    # Life

    async def close_connections(self) -> None:
        """Close all connections side by side: one takes the library two tenths of a second."""
        with shielded(_CLOSE_S):
            async with trio.open_nursery() as nursery:
                for connection in self.swarm.get_connections():
                    nursery.start_soon(connection.close)


@asynccontextmanager
async def open_host(config: NetConfig, tasks: Tasks) -> AsyncIterator[NodeHost]:
    """A host that listens. Raises UsageError when it cannot listen on an address."""
    quiet_libp2p()
    bound_multistream(config.limits.max_multistream_bytes)
    swarm = NodeSwarm(create_new_key_pair(config.key_seed), config.limits)
    host = NodeHost(swarm, tasks)
    async with running(swarm):
        try:
            for address in config.listen:
                if not await swarm.listen(_parse_listen(address)):
                    raise UsageError(
                        f"cannot listen on {address}",
                        why="the address is in use or not this machine's",
                        help_command="dfl-node start --listen /ip4/0.0.0.0/tcp/0",
                    )
            yield host
        finally:
            await host.close_connections()
            with shielded(_CLOSE_S):
                await host.close()


def _parse_listen(address: str) -> Multiaddr:
    try:
        return Multiaddr(address)
    except Exception as error:  # the multiaddr package raises several unrelated classes
        raise UsageError(f"not a multiaddr: {address!r}", why=str(error)) from error


async def _reset(stream: INetStream) -> None:
    try:
        await stream.reset()
    except Exception as error:
        log.debug("reset failed", error=repr(error)[:200])
