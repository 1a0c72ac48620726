"""What `dfl-node doctor` says of the network: what works here, what does not, what the library cannot do."""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import trio

from .nat_state import Reachability

if TYPE_CHECKING:
    from .libp2p_channel import Libp2pChannel

_MAX_SKEW_S = 30.0
_MDNS_GROUP, _MDNS_PORT = "224.0.0.251", 5353
_MULTICAST_WAIT_S = 1.0
_DIAL_S = 3.0


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `ok` is None for a plain statement and for what cannot be known yet."""

    name: str
    ok: bool | None
    detail: str
    help: str = ""


# What py-libp2p 0.8.1 was seen to do, on loopback, when this was written.
LIBRARY: tuple[Check, ...] = (
    Check("TCP with TLS or noise, yamux", None, "works, with Kubo too; this is what dfl uses"),
    Check("circuit relay v2", None, "works: reserve, dial through, answer requests (`--roles relay`)"),
    Check("hole punching (DCUtR)", None, "not used: a node behind a NAT is reached through a relay only"),
    Check(
        "AutoNAT",
        None,
        "not used: the library finds everybody reachable, even at a closed port; dfl asks peers to dial back",
    ),
    Check("QUIC", None, "not used: works, at a fiftieth of TCP's speed"),
    Check("WebRTC", None, "not usable: it listens on no address without further packages"),
    Check("UPnP port mapping", None, "not used: forward the port at your router, or use a relay"),
)


async def diagnose(channel: Libp2pChannel) -> tuple[Check, ...]:
    """Every check of an open channel, then the library's limits."""
    findings = [await check_listens(channel)]
    await channel.check_reach()
    checks: tuple[Callable[[Libp2pChannel], Check], ...] = (
        check_peers,
        check_reachable,
        check_relay,
        check_clock,
        check_tls,
        check_mdns,
    )
    findings += [check(channel) for check in checks]
    findings.append(await trio.to_thread.run_sync(check_multicast))
    return (*findings, *LIBRARY)


async def check_listens(channel: Libp2pChannel) -> Check:
    """Our own addresses answer."""
    endpoints = [(addr.split("/")[2], int(addr.split("/")[4])) for addr in channel.listening]
    if not endpoints:
        return Check("listens", None, "on no address: others reach this node through relays only")
    for ip, port in endpoints:
        with trio.move_on_after(_DIAL_S):
            try:
                stream = await trio.open_tcp_stream(ip, port)
            except OSError:
                continue
            await stream.aclose()
            return Check("listens", True, f"and answers at {ip} port {port}")
    return Check(
        "listens", False, "but none of its addresses answers", "dfl-node start --listen /ip4/0.0.0.0/tcp/4001"
    )


def check_peers(channel: Libp2pChannel) -> Check:
    count = len(channel.peers())
    if count:
        return Check("peers", True, f"{count} with a verified wallet binding")
    return Check("peers", False, "none", "dfl-node start --bootnodes /ip4/…/tcp/…/p2p/…")


def check_reachable(channel: Libp2pChannel) -> Check:
    reach = channel.reach
    match reach.state:
        case Reachability.PUBLIC:
            return Check("reachable", True, reach.why)
        case Reachability.PRIVATE:
            ok = bool(channel.relays())
            how = "; others come through a relay" if ok else ""
            return Check("reachable", ok, reach.why + how, "" if ok else "forward the port, or know a relay")
        case Reachability.UNKNOWN:
            return Check("reachable", None, reach.why)


def check_relay(channel: Libp2pChannel) -> Check:
    offered, used = len(channel.book.relays), channel.relays()
    if used:
        return Check("relay", True, f"reachable through {', '.join(used)}")
    if offered:
        return Check("relay", True, f"{offered} known, none needed")
    return Check("relay", None, "no peer offers to relay", "dfl-node start --roles relay …")


def check_clock(channel: Libp2pChannel) -> Check:
    skews = channel.book.clock_skew_s.values()
    if not skews:
        return Check("clock", None, "no peer to compare it with")
    skew_s = median(skews)
    detail = f"{abs(skew_s):.1f} s {'behind' if skew_s > 0 else 'ahead of'} the peers'"
    if abs(skew_s) <= _MAX_SKEW_S:
        return Check("clock", True, detail)
    return Check("clock", False, detail, "timedatectl set-ntp true")


def check_tls(channel: Libp2pChannel) -> Check:
    problem = channel.tls_problem
    if problem is None:
        return Check("TLS", True, "offered first, then noise")
    return Check("TLS", False, f"not with this Python, noise is used at half the speed: {problem}")


def check_mdns(channel: Libp2pChannel) -> Check:
    if not channel.config.enable_mdns:
        return Check("mDNS", None, "switched off")
    problem = channel.mdns_problem
    return Check("mDNS", not problem, problem or "announced on the local network")


def check_multicast() -> Check:
    """A multicast packet of ours comes back to us. Blocks up to a second: call it in a thread."""
    token = secrets.token_bytes(16)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
            heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # A port of our own beside mDNS's: a stray packet on 5353 would disturb others.
            heard.bind(("", 0))
            group = struct.pack("4s4s", socket.inet_aton(_MDNS_GROUP), socket.inet_aton("0.0.0.0"))  # noqa: S104
            heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            heard.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
            heard.settimeout(_MULTICAST_WAIT_S)
            heard.sendto(token, (_MDNS_GROUP, heard.getsockname()[1]))
            while heard.recv(64) != token:
                continue
    except OSError as error:
        return Check("multicast", False, f"not on this machine: {error}", "dfl-node start --bootnodes …")
    return Check("multicast", True, "works: nodes on one network can find each other by mDNS")
