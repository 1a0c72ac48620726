"""TCP, TLS 1.3, noise, yamux and multistream-select with the limits that py-libp2p leaves out.

TLS is offered first: measured on loopback, one stream, it carries about twice what noise does. Kubo offers
both, and yamux.
"""

from __future__ import annotations

import ssl
from typing import Any, cast

import trio
from libp2p.abc import IMuxedConn, IRawConnection, ISecureConn, ISecureTransport
from libp2p.connection_types import ConnectionType
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.tls.transport import PROTOCOL_ID as TLS
from libp2p.security.tls.transport import TLSTransport
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from .config import NetLimits
from .gate import Seat
from .services import shielded


def bound_multistream(max_bytes: int) -> None:
    """Cap every multistream-select message this process reads.

    The library reads the length prefix of a protocol name and then that many bytes, whatever the prefix says
    and before anybody is authenticated; a name that is not UTF-8 raises an error nobody expects. The reader
    is made in a dozen places of the library, so the method itself is replaced.
    """

    async def read(self: MultiselectCommunicator) -> str:
        try:
            line = await read_varint_prefixed_bytes_limited(self.read_writer, max_bytes)
            name = line.decode()
        except Exception as error:
            raise MultiselectCommunicatorError(f"cannot read a protocol name: {error!r:.200}") from error
        if not name.endswith("\n"):
            raise MultiselectCommunicatorError("a protocol name without its line end")
        return name[:-1]

    MultiselectCommunicator.read = read  # type: ignore[method-assign]


class BufferBudget:
    """Unread bytes of all connections together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._connections: set[BoundedYamux] = set()

    def add(self, connection: BoundedYamux) -> None:
        self._connections.add(connection)

    def remove(self, connection: BoundedYamux) -> None:
        self._connections.discard(connection)

    def allows(self, more_bytes: int) -> bool:
        held = sum(connection.buffered_bytes() for connection in self._connections)
        return held + more_bytes <= self._max_bytes


class BoundedYamux(Yamux):
    """Yamux that holds a peer to its windows, and whose failure closes this connection and nothing else."""

    def __init__(self, conn: ISecureConn, peer_id: ID, budget: BufferBudget, max_frame_bytes: int) -> None:
        super().__init__(conn, peer_id, is_initiator=conn.is_initiator, on_close=_nothing)
        self.seat: Seat | None = None  # set for inbound sockets
        self._budget = budget
        self._max_frame_bytes = max_frame_bytes

    def buffered_bytes(self) -> int:
        return sum(map(len, self.stream_buffers.values()))

    @property
    def raw_connection(self) -> IRawConnection | None:
        """What TLS or noise runs over: a socket, or a relay's stream."""
        return getattr(self.secured_conn, "raw_connection", None)

    @property
    def is_relayed(self) -> bool:
        raw = self.raw_connection
        return raw is not None and raw.get_connection_type() == ConnectionType.RELAYED

    def get_transport_addresses(self) -> list[Multiaddr]:
        raw = self.raw_connection
        return raw.get_transport_addresses() if raw is not None else []

    def get_connection_type(self) -> ConnectionType:
        raw = self.raw_connection
        return raw.get_connection_type() if raw is not None else ConnectionType.UNKNOWN

    async def start(self) -> None:
        self._budget.add(self)
        try:
            await super().start()
        except Exception as error:
            with shielded(1.0):
                await self.close()
            raise RawConnError(f"multiplexer of {self.peer_id} failed: {error!r:.200}") from error
        finally:
            self._budget.remove(self)

    async def _read_data_body(self, length: int) -> bytes:
        # The library only logs a peer that sends beyond its window, and keeps the bytes. It also logs an
        # error in here and reads on, taking the frame's body for headers: so hang up first.
        if length > self._max_frame_bytes:
            await self._cleanup_on_error()
            raise RawConnError(f"a frame of {length} bytes")
        if not self._budget.allows(length):
            await self._cleanup_on_error()
            raise RawConnError("unread bytes fill the budget of all connections")
        return await super()._read_data_body(length)


async def _nothing() -> None:
    return


class _BoundedMuxers(MuxerMultistream):
    def __init__(self, limits: NetLimits) -> None:
        super().__init__({TProtocol(YAMUX): Yamux}, negotiate_timeout=int(limits.negotiate_s))
        self._budget = BufferBudget(limits.max_buffered_bytes)
        self._max_frame_bytes = limits.max_frame_bytes

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        muxed = BoundedYamux(conn, peer_id, self._budget, self._max_frame_bytes)
        return self._annotate_connection(muxed, conn, protocol)


class CachedTls(TLSTransport):
    """TLS with one context a side instead of one a connection (two temporary files and a key load each)."""

    _contexts: dict[bool, ssl.SSLContext]

    def create_ssl_context(self, server_side: bool = False) -> ssl.SSLContext:
        contexts: dict[bool, ssl.SSLContext] = self.__dict__.setdefault("_contexts", {})
        if server_side not in contexts:
            contexts[server_side] = super().create_ssl_context(server_side)
        return contexts[server_side]


def tls_problem(tls: TLSTransport) -> str | None:
    """Why TLS cannot be served by this Python, or None.

    The library reaches past the ssl module into libssl to accept self-signed certificates, which needs a
    Python that is linked to the system's OpenSSL.
    """
    try:
        tls.create_ssl_context(server_side=True)
        tls.create_ssl_context(server_side=False)
    except Exception as error:
        return repr(error)[:200]
    return None


class Upgrader(TransportUpgrader):
    """From a socket to a multiplexed connection: TLS or noise, then yamux, nothing else."""

    def __init__(self, key_pair: KeyPair, limits: NetLimits) -> None:
        tls = CachedTls(key_pair)
        self.tls_problem = tls_problem(tls)
        security: dict[TProtocol, ISecureTransport] = {}
        if self.tls_problem is None:
            security[TLS] = tls
        noise_key = create_x25519_key_pair()
        security[TProtocol(NOISE)] = NoiseTransport(key_pair, noise_privkey=noise_key.private_key)
        super().__init__(security, {TProtocol(YAMUX): Yamux}, int(limits.negotiate_s))
        self.muxer_multistream = _BoundedMuxers(limits)

    async def upgrade_security(
        self, raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None
    ) -> ISecureConn:
        secured: Any = await super().upgrade_security(raw_conn, is_initiator, peer_id)
        # The library's TLS session forgets what it runs over, and with it whether a relay is in between.
        secured.raw_connection = raw_conn
        return cast(ISecureConn, secured)


class Tcp(TCP):
    """TCP that knows the remote address of an IPv6 socket too (the library expects a pair, IPv6 has four)."""

    def __init__(self, limits: NetLimits) -> None:
        super().__init__(dns_resolution_timeout=limits.dial_s, dns_max_retries=1)
        self._dial_s = limits.dial_s

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        with trio.move_on_after(self._dial_s):
            raw = await super().dial(maddr)
            if isinstance(raw, RawConnection):
                note_remote_address(raw.stream)
            return raw
        raise OpenConnectionError(f"{maddr} did not answer within {self._dial_s:g} s")


def note_remote_address(stream: Any) -> tuple[str, int] | None:
    """The remote (ip, port) of the library's TCP stream, remembered where the library looks for it."""
    try:
        host, port, *_ = stream.stream.socket.getpeername()
    except (AttributeError, OSError, ValueError):
        return None
    if host.startswith("::ffff:"):
        host = host.removeprefix("::ffff:")
    stream._cached_remote_address = (host, port)
    return host, port
