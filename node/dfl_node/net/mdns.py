"""Peers on the same LAN, by multicast DNS. What is heard is hearsay: it is dialled and has to say hello.

zeroconf runs an event loop in a thread of its own. A machine without multicast (a container, a VPN) makes it
fail in many ways, none of which may disturb the node.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from .binding import peer_key_of
from .channel import PeerId
from .services import shielded

log = structlog.get_logger(__name__)

SERVICE = "_dfl._tcp.local."
_NETWORK = "net"
_UNUSED_IP = bytes((127, 0, 0, 1))  # zeroconf reports no service without one; ours are in the text record
_MAX_ADDRS = 8
_MAX_TXT_BYTES = 256
_RESOLVE_MS = 2000
_START_S = 3.0
_STOP_S = 0.3

OnFound = Callable[[PeerId, tuple[str, ...]], None]


@dataclass(frozen=True, slots=True)
class Announcement:
    """What we say of ourselves."""

    peer_id: PeerId
    port: int
    addrs: tuple[str, ...]
    network: str  # nodes of another network are not reported: they would be refused anyway


def network_of(chain_id: int, registry: str) -> str:
    """A short name for the network of one chain and registry."""
    return hashlib.sha256(f"{chain_id}/{registry.lower()}".encode()).hexdigest()[:16]


@asynccontextmanager
async def announced(announcement: Announcement, found: OnFound) -> AsyncIterator[str]:
    """Announce ourselves and report others while the context is open.

    Yields "" or, when mDNS does not work here, the reason. Never raises for that.
    """
    token = trio.lowlevel.current_trio_token()

    def report(name: PeerId, told: tuple[str, ...]) -> None:
        try:
            token.run_sync_soon(found, name, told)
        except trio.RunFinishedError:
            return  # heard while the node was ending

    session = _Session(announcement, report)
    problem = "multicast DNS did not start in time"
    with trio.move_on_after(_START_S):
        problem = await trio.to_thread.run_sync(session.start, abandon_on_cancel=True)  # type: ignore[call-arg]
    if problem:
        log.info("no discovery by mDNS", why=problem)
    try:
        yield problem
    finally:
        with shielded(_STOP_S):
            await trio.to_thread.run_sync(session.stop, abandon_on_cancel=True)  # type: ignore[call-arg]


class _Session:
    """The blocking side; every method runs in a thread."""

    def __init__(self, announcement: Announcement, report: OnFound) -> None:
        self._ours = announcement
        self._report = report
        self._zeroconf: Any = None
        self._stopped = False

    def start(self) -> str:
        """Why it does not work, or nothing."""
        try:
            from zeroconf import ServiceBrowser, ServiceInfo, Zeroconf

            addrs = self._ours.addrs[:_MAX_ADDRS]
            properties = {_NETWORK: self._ours.network} | {f"a{n}": addr for n, addr in enumerate(addrs)}
            info = ServiceInfo(
                SERVICE,
                f"{self._ours.peer_id}.{SERVICE}",
                port=self._ours.port,
                properties=properties,
                server=f"{self._ours.peer_id[-16:].lower()}.local.",
                addresses=[_UNUSED_IP],
            )
            self._zeroconf = Zeroconf()
            # Probing for a conflict takes most of a second; the peer id in the name is unique.
            self._zeroconf.register_service(info, cooperating_responders=True)
            ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._on_change])
        except Exception as error:
            self.stop()
            return repr(error)[:200]
        if self._stopped:
            self.stop()
        return ""

    def stop(self) -> None:
        self._stopped = True
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            try:
                zeroconf.close()
            except Exception as error:
                log.debug("mDNS did not close", error=repr(error)[:200])

    def _on_change(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if self._stopped or state_change.name not in ("Added", "Updated"):
            return
        try:
            peer_id = name.removesuffix("." + SERVICE)
            peer_key_of(peer_id)
            info = zeroconf.get_service_info(service_type, name, timeout=_RESOLVE_MS)
            if peer_id == self._ours.peer_id or info is None:
                return
            properties = {
                key: value
                for key, value in info.properties.items()
                if value is not None and len(value) <= _MAX_TXT_BYTES
            }
            if properties.pop(_NETWORK.encode(), b"").decode() != self._ours.network:
                return
            told = list(properties.values())
            self._report(PeerId(peer_id), tuple(value.decode() for value in told[:_MAX_ADDRS]))
        except Exception as error:
            log.debug("mDNS answer ignored", error=repr(error)[:200])
