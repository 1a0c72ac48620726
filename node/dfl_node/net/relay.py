"""Circuit relay v2 (https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md).

The relay's side (hop) and the reached side (stop) are the library's, under limits of ours. The dialling side
is here: the library's transport makes a reservation of its own for every dial, and chooses relays by itself.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio
from libp2p.abc import INetConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as CircuitPeerId
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from multiaddr import Multiaddr

from dfl_ledger.errors import PeerUnreachable

from .host import RELAY_HOP, NodeHost
from .services import running, shielded

log = structlog.get_logger(__name__)

LIMITS = RelayLimits(
    duration=3600,  # seconds of one circuit
    data=256 << 20,  # bytes of one circuit, both ways together
    max_circuit_conns=16,  # circuits to one peer
    max_reservations=64,
    reservation_ttl=3600,
)


class Relaying:
    """Reservations of ours on relays, dials through relays, and, if we offer it, circuits for others."""

    def __init__(self, host: NodeHost, *, offer: bool) -> None:
        self._host = host
        self._protocol = CircuitV2Protocol(host, LIMITS, allow_hop=offer)
        self._reserved_until: dict[ID, float] = {}  # Unix seconds

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with running(self._protocol):
            await self._protocol.event_started.wait()
            yield

    def reservations(self) -> tuple[str, ...]:
        """The relays through which we can be reached now."""
        now = time.time()
        return tuple(str(relay) for relay, until in self._reserved_until.items() if until > now)

    async def reserve(self, relay: ID, relay_addrs: tuple[str, ...]) -> float:
        """Ask a connected relay to let others reach us through it. Returns the seconds it is good for.

        Raises PeerUnreachable.
        """
        reply = await self._reserve(relay)
        if reply.status != Status.OK:
            raise PeerUnreachable(f"relay {relay} gives no place", why=Status.Name(reply.status))
        self._reserved_until[relay] = float(reply.reservation.expire)
        self._host.circuit_relays.add(relay)
        me = self._host.get_id()
        self._host.relay_addrs = [
            *(addr for addr in self._host.relay_addrs if str(relay) not in str(addr)),
            *(Multiaddr(f"{addr}/p2p-circuit/p2p/{me}") for addr in relay_addrs),
        ]
        log.info("reachable through relay", relay=str(relay))
        return max(0.0, self._reserved_until[relay] - time.time())

    def forget(self, relay: ID) -> bool:
        """The connection to the relay is gone, and our place on it. True if we had one."""
        had_one = self._reserved_until.pop(relay, None) is not None
        self._host.circuit_relays.discard(relay)
        self._host.relay_addrs = [addr for addr in self._host.relay_addrs if str(relay) not in str(addr)]
        return had_one

    async def dial(self, relay: ID, target: ID) -> INetConn:
        """Connect to a peer through a relay we are connected to. Raises PeerUnreachable."""
        connect = HopMessage(type=HopMessage.CONNECT, peer=CircuitPeerId(id=target.to_bytes()))
        stream = await self._open(relay)
        try:
            with trio.fail_after(self._host.limits.dial_s):
                await write_delimited_msg(stream, connect)
                reply = await read_delimited_msg(stream, HopMessage)
            if reply.status == Status.OK:
                raw = RawConnection(
                    stream,
                    True,
                    ConnectionType.RELAYED,
                    [Multiaddr(f"/p2p/{relay}/p2p-circuit/p2p/{target}")],
                )
                with trio.fail_after(self._host.limits.handshake_s):
                    return await self._host.swarm.upgrade_outbound_raw_conn(raw, target)
            why = Status.Name(reply.status)
        except Exception as error:
            why = repr(error)[:200]
        with shielded(1.0):
            await stream.reset()
        raise PeerUnreachable(f"peer {target} cannot be reached through relay {relay}", why=why)

    async def _reserve(self, relay: ID) -> HopMessage:
        stream = await self._open(relay)
        try:
            with trio.fail_after(self._host.limits.dial_s):
                await write_delimited_msg(stream, HopMessage(type=HopMessage.RESERVE))
                return await read_delimited_msg(stream, HopMessage)
        except Exception as error:
            raise PeerUnreachable(f"relay {relay} does not answer", why=repr(error)[:200]) from error
        finally:
            with shielded(1.0):
                await stream.close()

    async def _open(self, relay: ID) -> INetStream:
        try:
            return await self._host.new_stream(relay, [TProtocol(RELAY_HOP)])
        except Exception as error:
            raise PeerUnreachable(f"peer {relay} is not a relay", why=repr(error)[:200]) from error
