"""TCP, TLS 1.3, noise, yamux and multistream-select with the limits that py-libp2p leaves out.

TLS is offered first: measured on loopback, one stream, it carries about twice what noise does. Kubo offers
both, and yamux.
"""

from __future__ import annotations

import ssl
from typing import Any, cast

import trio
from libp2p.abc import IMuxedConn, IRawConnection, ISecureConn, ISecureTransport
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.tls.io import TLSReadWriter
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
from .muxer import BoundedYamux, BufferBudget

_READ_BYTES = 64 << 10


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


class _BoundedMuxers(MuxerMultistream):
    def __init__(self, limits: NetLimits) -> None:
        super().__init__({TProtocol(YAMUX): Yamux}, negotiate_timeout=int(limits.negotiate_s))
        self._budget = BufferBudget(limits.max_buffered_bytes)
        self._limits = limits

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        muxed = BoundedYamux(conn, peer_id, self._budget, self._limits)
        return self._annotate_connection(muxed, conn, protocol)


class _WideReads:
    """What TLS runs over after its handshake: the library reads 4 KiB at a time, a quarter of a record."""

    def __init__(self, raw: IRawConnection) -> None:
        self._raw = raw
        self.write = raw.write
        self.close = raw.close
        self.get_remote_address = raw.get_remote_address

    async def read(self, n: int | None = None) -> bytes:
        return await self._raw.read(_READ_BYTES)


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
        if isinstance(secured.conn, TLSReadWriter):
            secured.conn.stream_writer.raw_connection = cast(IRawConnection, _WideReads(raw_conn))
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
