"""From one address to the whole network: boot nodes kept, peers asked for peers, hearsay dialled."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable

import structlog
import trio
from libp2p.peer.id import ID

from dfl_ledger.errors import DflError, UsageError, VerificationFailed

from .addrs import credible, is_loopback_ip, parse_peer_addr
from .binding import peer_id_of, peer_key_of
from .channel import FoundBy, Peer, PeerId
from .host import NodeHost
from .peerbook import PeerBook
from .services import Tasks
from .wire import MAX_LISTED_PEERS, MAX_PEERS_BYTES, PEERS, Listed, WireError, decode_peers, encode_peers

log = structlog.get_logger(__name__)

_MAX_KEPT = 32
_EXCHANGE_TIMEOUT_S = 5.0

Connect = Callable[[str, FoundBy], Awaitable[Peer]]
Ask = Callable[..., Awaitable[bytes]]


class Discovery:
    """Decides whom to dial. `connect` does it and verifies; `ask` is the channel's request."""

    def __init__(self, host: NodeHost, book: PeerBook, tasks: Tasks, connect: Connect, ask: Ask) -> None:
        self._host = host
        self._book = book
        self._tasks = tasks
        self._connect = connect
        self._ask = ask
        self._limits = host.limits
        self._me = PeerId(str(host.get_id()))
        self._kept: set[str] = set()
        self._dialling: set[PeerId] = set()
        self._dials = trio.CapacityLimiter(self._limits.max_dials)
        self._changed = trio.Event()

    def peers_changed(self) -> None:
        """Somebody came or went."""
        self._changed.set()
        self._changed = trio.Event()

    # Boot nodes

    def keep(self, multiaddr: str, found_by: FoundBy) -> None:
        """Stay connected to this address from now on: dial again whenever the connection is gone."""
        if multiaddr not in self._kept and len(self._kept) < _MAX_KEPT:
            self._kept.add(multiaddr)
            self._tasks.start_soon(self._keep, multiaddr, found_by)

    async def _keep(self, multiaddr: str, found_by: FoundBy) -> None:
        owner, _ = parse_peer_addr(multiaddr)
        peer_id = PeerId(str(owner))
        pause_s = self._limits.reconnect_min_s
        while True:
            if peer_id not in self._book.verified:
                try:
                    await self._connect(multiaddr, found_by)
                    pause_s = self._limits.reconnect_min_s
                except VerificationFailed as refused:
                    log.warning("boot node refused", address=multiaddr, why=str(refused))
                    pause_s = self._limits.reconnect_max_s
                except DflError as error:
                    log.info("boot node not reached", address=multiaddr, why=str(error), retry_s=pause_s)
            while peer_id in self._book.verified:
                await self._changed.wait()
            # Jittered, so that a boot node that returns is not met by all nodes at once.
            await trio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
            pause_s = min(2 * pause_s, self._limits.reconnect_max_s)

    # Peer exchange

    async def exchange_forever(self) -> None:
        """Now and then ask somebody for peers, while we have few."""
        while True:
            await trio.sleep(self._limits.exchange_s * random.uniform(0.5, 1.5))  # noqa: S311
            if self._book.verified:
                await self.exchange_with(random.choice(tuple(self._book.verified)))  # noqa: S311

    async def exchange_with(self, peer_id: PeerId) -> None:
        """Ask one peer whom it knows, and dial those."""
        wanted = self._limits.target_peers - len(self._book.verified)
        if wanted <= 0:
            return
        try:
            reply = await self._ask(
                peer_id, PEERS, b"", max_reply_bytes=MAX_PEERS_BYTES, timeout_s=_EXCHANGE_TIMEOUT_S
            )
            listed = decode_peers(reply)
        except (DflError, WireError) as error:
            log.debug("no peers from peer", peer=peer_id, why=str(error))
            return
        local = self._is_local(peer_id)
        unknown = [peer for peer in listed if peer_id_of(peer.peer_key) not in self._book.verified]
        for peer in random.sample(unknown, min(wanted, len(unknown))):
            self.consider(peer_id_of(peer.peer_key), peer.addrs, FoundBy.GOSSIP, loopback_ok=local)

    async def serve_peers(self, asker: Peer, body: bytes) -> bytes:
        """Some of the peers we are connected to."""
        others = [peer for peer in self._book.verified.values() if peer.peer_id != asker.peer_id]
        chosen = random.sample(others, min(len(others), MAX_LISTED_PEERS))
        return encode_peers(tuple(Listed(peer_key_of(peer.peer_id), peer.multiaddrs) for peer in chosen))

    # Hearsay

    def consider(
        self, peer_id: PeerId, addrs: Iterable[str], found_by: FoundBy, *, loopback_ok: bool
    ) -> None:
        """Dial a peer we were told about, in the background, unless that is pointless."""
        self._tasks.start_soon(self._consider, peer_id, tuple(addrs), found_by, loopback_ok)

    async def _consider(
        self, peer_id: PeerId, addrs: tuple[str, ...], found_by: FoundBy, loopback_ok: bool
    ) -> None:
        await self.dial(peer_id, addrs, found_by, loopback_ok=loopback_ok)

    async def dial(
        self, peer_id: PeerId, addrs: tuple[str, ...], found_by: FoundBy, *, loopback_ok: bool
    ) -> Peer | None:
        """The verified peer, or None: try its addresses one after the other."""
        known = self._book.verified.get(peer_id)
        if known is not None or peer_id == self._me:
            return known
        if peer_id in self._dialling or self._book.refusal(peer_id, trio.current_time()) is not None:
            return None
        self._dialling.add(peer_id)
        try:
            async with self._dials:
                for addr in credible(
                    addrs, peer_id, loopback_ok=loopback_ok, limit=self._limits.max_addrs_per_peer
                ):
                    try:
                        return await self._connect(addr, found_by)
                    except (VerificationFailed, UsageError) as refused:
                        log.debug("found peer refused", peer=peer_id, why=str(refused))
                        return None
                    except DflError as error:
                        log.debug("found peer not reached", address=addr, why=str(error))
        finally:
            self._dialling.discard(peer_id)
        return self._book.verified.get(peer_id)

    def on_loopback(self) -> bool:
        """True when some of our peers run on this machine, so that loopback addresses can be meant."""
        return any(self._is_local(peer_id) for peer_id in self._book.verified)

    def _is_local(self, peer_id: PeerId) -> bool:
        endpoint = self._host.endpoint(ID.from_base58(peer_id))
        return endpoint is not None and is_loopback_ip(endpoint.ip)

    async def find(self, providers: dict[PeerId, tuple[str, ...]]) -> tuple[Peer, ...]:
        """Dial what the DHT told, side by side; those that can be reached and are verified."""
        local = self.on_loopback()
        found: dict[PeerId, Peer] = {}

        async def one(peer_id: PeerId, addrs: tuple[str, ...]) -> None:
            peer = await self.dial(peer_id, addrs, FoundBy.DHT, loopback_ok=local)
            if peer is not None:
                found[peer_id] = peer

        with trio.move_on_after(self._limits.lookup_s + self._limits.dial_s):
            async with trio.open_nursery() as nursery:
                for peer_id, addrs in providers.items():
                    nursery.start_soon(one, peer_id, addrs)
        return tuple(found[peer_id] for peer_id in sorted(found))
