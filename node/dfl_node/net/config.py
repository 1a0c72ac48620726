"""What a channel is opened with: addresses, the binding, and every limit a stranger meets."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfl_ledger.records import Address

from .binding import Binding

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@dataclass(frozen=True, slots=True)
class NetLimits:
    """What one stranger, one address and all strangers together may take. Seconds and bytes."""

    # Sockets. A socket is pending until TLS and the multiplexer are agreed, unverified until its hello.
    max_connections: int = 128
    max_connections_per_ip: int = 48
    max_pending: int = 48
    max_pending_per_ip: int = 16
    max_unverified: int = 48
    handshake_s: float = 6.0
    dial_s: float = 6.0
    hello_s: float = 8.0
    refused_s: float = 300.0  # how long a peer whose hello was wrong stays refused
    max_strikes: int = 5  # protocol violations of a verified peer before it is refused

    # Streams
    max_streams: int = 1024
    max_streams_per_connection: int = 96
    negotiate_s: float = 6.0
    max_multistream_bytes: int = 1024
    max_frame_bytes: int = 1 << 20  # one yamux frame; other implementations send at most 64 KiB
    max_window_bytes: int = 4 << 20  # unread bytes of one stream, if its reader is quick
    max_buffered_bytes: int = 96 << 20  # unread bytes of all connections together
    stalled_s: float = 20.0  # for a socket to take 64 KiB
    max_message_streams_per_peer: int = 32  # served at the same time

    # Requests
    request_s: float = 20.0  # for a request to arrive whole
    serve_s: float = 120.0  # for a handler to answer
    max_requests_per_peer: int = 16  # served at the same time

    # Gossip
    max_announcement_bytes: int = 64 << 10
    max_backlog: int = 256  # announcements kept for a slow reader
    max_announcements_per_s: float = 100.0  # of one peer, of one topic

    # Discovery
    target_peers: int = 12  # below it, peers are asked for more peers
    max_addrs_per_peer: int = 8
    max_dials: int = 8  # at the same time, for discovery
    lookup_s: float = 8.0
    exchange_s: float = 30.0  # between two rounds of peer exchange
    reconnect_min_s: float = 0.5
    reconnect_max_s: float = 30.0
    first_ping_s: float = 1.0  # after a peer was verified
    ping_s: float = 20.0  # between two pings of a peer
    ping_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class NetConfig:
    """How to open a channel."""

    key_seed: bytes = field(repr=False)  # 32 bytes: the Ed25519 seed of the node key
    binding: Binding
    chain_id: int
    registry: Address
    listen: tuple[str, ...] = (LOOPBACK,)  # empty: reachable through relays only
    bootnodes: tuple[str, ...] = ()  # multiaddrs kept connected, each ending in /p2p/<peer id>
    gateway_port: int | None = None
    enable_mdns: bool = False
    offer_relay: bool = False
    use_relays: bool = True  # reserve a place on a relay when nobody can dial us
    agent: str = "dfl/0.1"
    limits: NetLimits = NetLimits()
