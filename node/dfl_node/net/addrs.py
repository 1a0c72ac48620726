"""Multiaddrs of peers: parsing what people and strangers give us, and what to tell others of ours."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from libp2p.peer.id import ID
from multiaddr import Multiaddr

from dfl_ledger.errors import UsageError

from .binding import peer_key_of
from .channel import PeerId

_MAX_CHARS = 256
_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
_PLAIN = {*_HOSTS, "tcp", "p2p"}
_CIRCUIT = _PLAIN | {"p2p-circuit"}


def parse_peer_addr(text: str) -> tuple[ID, Multiaddr]:
    """A TCP or relay address that ends in /p2p/<peer id>. Raises UsageError."""
    try:
        addr = Multiaddr(text[: _MAX_CHARS + 1])
        names = [protocol.name for protocol in addr.protocols()]
        peer_id = str(text.rsplit("/p2p/", 1)[1])
        peer_key_of(peer_id)
    except Exception as error:  # the multiaddr package raises several unrelated classes
        raise UsageError(f"not the address of a peer: {text[:80]!r}", why=_FORM) from error
    known = _CIRCUIT if "p2p-circuit" in names else _PLAIN
    if (
        len(text) > _MAX_CHARS
        or names[0] not in _HOSTS
        or "tcp" not in names
        or names[-1] != "p2p"
        or not set(names) <= known
    ):
        raise UsageError(f"not the address of a peer: {text[:80]!r}", why=_FORM)
    return ID.from_base58(peer_id), addr


_FORM = "it must look like /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…"


def circuit_relay(addr: Multiaddr) -> tuple[ID, Multiaddr] | None:
    """The relay's peer id and address, when the address leads through a relay."""
    before, found, _ = str(addr).partition("/p2p-circuit")
    return parse_peer_addr(before) if found else None


def credible(addrs: Iterable[str], peer_id: PeerId, *, loopback_ok: bool, limit: int) -> tuple[str, ...]:
    """Of the addresses we are told for a peer, those worth a dial: they parse, they name that peer, and they
    do not point into our own machine (unless whoever told them is on it)."""
    kept: list[str] = []
    for text in addrs:
        try:
            owner, addr = parse_peer_addr(text)
        except UsageError:
            continue
        if str(owner) == peer_id and text not in kept and (loopback_ok or not is_loopback(addr)):
            kept.append(text)
        if len(kept) == limit:
            break
    return tuple(kept)


def is_loopback(addr: Multiaddr) -> bool:
    """True when the address is, or may be, this machine itself."""
    name, value = _host_of(addr)
    if name not in ("ip4", "ip6"):
        return value.lower().rstrip(".") == "localhost"
    ip = ipaddress.ip_address(value)
    return ip.is_loopback or ip.is_unspecified


def is_loopback_ip(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip.split("%")[0]).is_loopback
    except ValueError:
        return False


def tcp_addr(ip: str, port: int, peer_id: PeerId) -> str:
    """The multiaddr of a TCP endpoint."""
    family = "ip6" if ":" in ip else "ip4"
    return f"/{family}/{ip}/tcp/{port}/p2p/{peer_id}"


def http_url(ip: str, port: int) -> str:
    return f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"


def interfaces_of(bound: Multiaddr) -> list[Multiaddr]:
    """The address a listener is bound to; for a wildcard, that of the interface which leads outside, and
    loopback."""
    name, value = _host_of(bound)
    if value not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return [bound]
    port = bound.value_for_protocol("tcp")
    loopback = "127.0.0.1" if name == "ip4" else "::1"
    return [Multiaddr(f"/{name}/{ip}/tcp/{port}") for ip in (*_outside_ip(name), loopback)]


def _outside_ip(family: str) -> tuple[str, ...]:
    # Connecting a UDP socket sends nothing: it asks the routing table which interface would be used.
    kind, target = (socket.AF_INET, "192.0.2.1") if family == "ip4" else (socket.AF_INET6, "2001:db8::1")
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            ip = str(probe.getsockname()[0])
    except OSError:
        return ()
    return () if is_loopback_ip(ip) else (ip,)


def _host_of(addr: Multiaddr) -> tuple[str, str]:
    name = next(iter(addr.protocols())).name
    return name, str(addr.value_for_protocol(name))
