"""Can others dial us? Asked of peers, who try it; and what to do when they cannot: a relay.

The library's AutoNAT cannot tell: it "dials back" through the connection the question came on, and so finds
everybody reachable. Here the asked peer opens a fresh TCP connection to the asker's own address (never to
another, so that nobody can be made to knock at strangers' doors) and waits for the multistream greeting.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
import trio
from libp2p.peer.id import ID

from dfl_ledger.errors import DflError

from .addrs import is_loopback_ip
from .channel import Peer, PeerId
from .host import NodeHost
from .nat_state import Reach, Reachability
from .peerbook import PeerBook
from .wire import REACH, WireError

log = structlog.get_logger(__name__)

_ASKED = 3
_DIAL_BACK_S = 3.0
_BETWEEN_ANSWERS_S = 5.0  # for one peer
_GREETING = b"\x13/multistream/1.0.0\n"
_MAX_REPLY_BYTES = 64


Ask = Callable[..., Awaitable[bytes]]


class DialBack:
    """Asks peers to dial us, and does it for them."""

    def __init__(self, host: NodeHost, book: PeerBook, ask: Ask) -> None:
        self._host = host
        self._book = book
        self._ask = ask
        self._answered_at: dict[PeerId, float] = {}
        self.reach = Reach(Reachability.UNKNOWN, "no peer has tried yet")

    async def check(self) -> Reach:
        """Ask a few peers; the answer is kept in `reach`."""
        ports = [addr.value_for_protocol("tcp") for addr in self._host.get_transport_addrs()]
        if not ports:
            self.reach = Reach(Reachability.PRIVATE, "this node listens on no address")
            return self.reach
        answers: list[str | None] = []
        async with trio.open_nursery() as nursery:
            for peer in tuple(self._book.verified)[:_ASKED]:
                nursery.start_soon(self._ask_one, peer, int(ports[0] or 0), answers)
        reached = [ip for ip in answers if ip is not None]
        if reached:
            self._host.reached_at({ip for ip in reached if not is_loopback_ip(ip)}, int(ports[0] or 0))
            note = " (on this machine)" if is_loopback_ip(reached[0]) else ""
            self.reach = Reach(
                Reachability.PUBLIC,
                f"{len(reached)} of {len(answers)} peers reached us at {reached[0]}{note}",
            )
        elif answers:
            self.reach = Reach(Reachability.PRIVATE, f"none of {len(answers)} peers could dial us back")
        elif self.reach.state is Reachability.UNKNOWN:
            self.reach = Reach(Reachability.UNKNOWN, "no peer could be asked to dial us back")
        return self.reach

    async def _ask_one(self, peer: PeerId, port: int, answers: list[str | None]) -> None:
        try:
            reply = await self._ask(
                peer,
                REACH,
                struct.pack(">H", port),
                max_reply_bytes=_MAX_REPLY_BYTES,
                timeout_s=2 * _DIAL_BACK_S,
            )
        except DflError as error:
            log.debug("dial-back not answered", peer=peer, why=str(error))
            return
        if reply[:1] == b"\0":
            answers.append(None)
        elif reply[:1] == b"\1":
            with suppress(ValueError):
                answers.append(str(ipaddress.ip_address(reply[1:].decode("ascii", "replace"))))

    async def serve(self, peer: Peer, body: bytes) -> bytes:
        """Dial the asker back at the address its connection comes from. One byte, and that address."""
        if len(body) != 2:
            raise WireError("a dial-back request has two bytes")
        now = trio.current_time()
        if now - self._answered_at.get(peer.peer_id, -_BETWEEN_ANSWERS_S) < _BETWEEN_ANSWERS_S:
            return b"\2"  # too soon: no answer, which is not a failure
        self._answered_at = {
            name: at for name, at in self._answered_at.items() if now - at < _BETWEEN_ANSWERS_S
        }
        self._answered_at[peer.peer_id] = now
        endpoint = self._host.endpoint(ID.from_base58(peer.peer_id))
        if endpoint is None:
            return b"\2"
        (port,) = struct.unpack(">H", body)
        reached = port >= 1024 and await _greets(endpoint.ip, port)
        return bytes((reached,)) + endpoint.ip.encode()


async def _greets(ip: str, port: int) -> bool:
    """True when a libp2p node answers there."""
    with trio.move_on_after(_DIAL_BACK_S):
        try:
            async with await trio.open_tcp_stream(ip, port) as stream:
                await stream.send_all(_GREETING)
                heard = bytearray()
                while len(heard) < len(_GREETING):
                    more = await stream.receive_some(len(_GREETING) - len(heard))
                    if not more:
                        return False
                    heard += more
                return bytes(heard) == _GREETING
        except OSError:
            return False
    return False
