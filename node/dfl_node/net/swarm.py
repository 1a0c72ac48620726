"""The swarm with explicit limits on connections.

Instead of the library's resource manager (which lets everything through when it meets an error of its own)
every inbound socket asks `gate.Gate`. The library's own inbound limit is not used: it gives a place back only
when the swarm ends, so that a node would take its last connection after some hundred peers came and went.
"""

from __future__ import annotations

import ipaddress

import structlog
import trio
from libp2p.abc import IMuxedConn, INetConn
from libp2p.crypto.keys import KeyPair
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr

from .config import NetLimits
from .gate import Gate, Refused, Seat, Stage
from .muxer import BoundedYamux
from .services import shielded
from .transports import Tcp, Upgrader, note_remote_address

log = structlog.get_logger(__name__)


class _NoAutoConnector(AutoConnector):
    """Whom to dial is decided in discovery, not by filling up from every address ever heard of."""

    async def maybe_connect(self) -> None:
        return


class NodeSwarm(Swarm):
    """Connections under `Gate`, dials with a deadline and without hidden retries."""

    def __init__(self, key_pair: KeyPair, limits: NetLimits) -> None:
        peer_id = ID.from_pubkey(key_pair.public_key)
        peerstore = PeerStore()
        peerstore.add_key_pair(peer_id, key_pair)
        self.limits = limits
        self.gate = Gate(limits)
        self.verified: set[ID] = set()
        self._scopes: dict[int, trio.CancelScope] = {}
        # Outbound dials come on top of the inbound places; `Gate` is what limits strangers.
        total = 2 * limits.max_connections
        super().__init__(
            peer_id,
            peerstore,
            Upgrader(key_pair, limits),
            [Tcp(limits)],
            RetryConfig(max_retries=0),
            ConnectionConfig(
                max_connections=total,
                min_connections=0,
                low_watermark=0,
                high_watermark=total,
                max_connections_per_peer=4,
                dial_timeout=limits.dial_s,
                inbound_upgrade_timeout=limits.handshake_s,
                outbound_upgrade_timeout=limits.handshake_s,
                outbound_stream_protocol_negotiation_timeout=limits.negotiate_s,
                inbound_stream_protocol_negotiation_timeout=limits.negotiate_s,
            ),
        )

    def _init_connection_management(self) -> None:
        super()._init_connection_management()
        self.auto_connector = _NoAutoConnector(swarm=self)

    def mark_verified(self, peer_id: ID) -> None:
        """The peer said a valid hello: its seats are no longer the first to go."""
        self.verified.add(peer_id)
        for connection in self.get_connections(peer_id):
            seat = getattr(connection.muxed_conn, "seat", None)
            if isinstance(seat, Seat):
                seat.stage = Stage.VERIFIED

    async def dial_direct(self, peer_id: ID, addr: Multiaddr) -> INetConn:
        """One attempt at one address, whatever failed before. Raises SwarmException."""
        self.unblock_peer(peer_id)  # a peer that came back is not held to its absence
        return await self.dial_addr(addr, peer_id)

    async def _dial_addr_single_attempt(
        self, addr: Multiaddr, peer_id: ID, source: tuple[str, int] | None = None
    ) -> INetConn:
        with trio.move_on_after(self.limits.dial_s + self.limits.handshake_s):
            try:
                return await super()._dial_addr_single_attempt(addr, peer_id, source)
            except SwarmException:
                raise
            except Exception as error:  # TLS and noise raise what they like
                raise SwarmException(f"handshake with {peer_id} failed: {error!r:.200}") from error
        raise SwarmException(f"{addr} did not answer in time")

    async def _handle_inbound_connection(self, read_write_closer: ReadWriteCloser, maddr: Multiaddr) -> None:
        remote = note_remote_address(read_write_closer)
        verdict = self.gate.admit(_limited_ip(remote[0] if remote else ""), trio.current_time())
        if isinstance(verdict, Refused):
            log.debug("inbound connection refused", why=verdict.why)
            await read_write_closer.close()
            return
        if verdict.evicted is not None:
            evicted_scope = self._scopes.pop(id(verdict.evicted), None)
            if evicted_scope is not None:
                evicted_scope.cancel()
        seat = verdict.seat
        try:
            with trio.CancelScope() as scope:
                self._scopes[id(seat)] = scope
                await self._serve_inbound(RawConnection(read_write_closer, False), maddr, seat)
        finally:
            self.gate.leave(seat)
            self._scopes.pop(id(seat), None)

    async def _serve_inbound(self, raw: RawConnection, maddr: Multiaddr, seat: Seat) -> None:
        muxed: IMuxedConn | None = None
        try:
            with trio.fail_after(self.limits.handshake_s):
                muxed = await self.upgrade_inbound_raw_conn(raw, maddr)
            if isinstance(muxed, BoundedYamux):
                muxed.seat = seat
                seat.stage = Stage.VERIFIED if muxed.peer_id in self.verified else Stage.UNVERIFIED
                await muxed.event_closed.wait()
        except Exception as error:
            log.debug("inbound handshake failed", ip=seat.ip, error=repr(error)[:200])
        finally:
            with shielded(1.0):
                if muxed is not None and not muxed.is_closed:
                    await muxed.close()
                await raw.close()


def _limited_ip(ip: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 that one IPv6 customer gets."""
    try:
        parsed = ipaddress.ip_address(ip.split("%")[0])
    except ValueError:
        return ip
    if parsed.version == 6:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
