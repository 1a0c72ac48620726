"""The real `Channel`: peers over py-libp2p. This file puts the parts together; each has a file of its own.

host, swarm, transports, muxer, gate   sockets and streams, with limits
greeting, peerbook                     who is verified, who is refused
requests, streams, gossip, dht         what verified peers do with each other
discovery, mdns, nat, relay            how they find and reach each other
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import structlog
import trio
from libp2p.abc import INetConn, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.host.ping import ID as PING
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from dfl_ledger.errors import DflError, PeerMisbehaved, PeerUnreachable, UsageError, VerificationFailed

from .addrs import circuit_relay, parse_peer_addr
from .binding import verify_binding
from .channel import FoundBy, Handler, MessageStream, Peer, PeerId, StreamHandler
from .config import NetConfig
from .dht import Dht
from .discovery import Discovery
from .gossip import Gossip
from .greeting import Greeter
from .host import NodeHost, open_host
from .mdns import Announcement, announced, network_of
from .nat import DialBack
from .nat_state import Reach, Reachability
from .peerbook import PeerBook
from .relay import Relaying
from .requests import Requests
from .services import Tasks, shielded
from .streams import Streams
from .traffic import Traffic
from .transports import Upgrader
from .wire import PEERS, REACH, check_protocol

log = structlog.get_logger(__name__)

_REACH_EVERY_S = 300.0
_RESERVE_AGAIN = 0.5  # of a reservation's life
_PING_BYTES = 32


class _Events(INotifee):
    """What the swarm tells us. Nothing here may wait: the library waits for all of it."""

    def __init__(self, channel: Libp2pChannel) -> None:
        self._channel = channel

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._channel._on_connected(conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._channel._on_disconnected(conn.muxed_conn.peer_id)

    async def opened_stream(self, network: INetwork, stream: object) -> None: ...

    async def closed_stream(self, network: INetwork, stream: object) -> None: ...

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...


class Libp2pChannel:
    """See `Channel`. Made by `open_channel`."""

    def __init__(self, host: NodeHost, config: NetConfig, tasks: Tasks) -> None:
        self.host = host
        self.config = config
        self._tasks = tasks
        self._limits = config.limits
        self.book = PeerBook(self._limits.refused_s, self._limits.max_strikes)
        self._me = host.get_id()
        self.mdns_problem = "" if config.enable_mdns else "switched off"
        self._requests = Requests(host, self.book, self._on_violation)
        self._streams = Streams(host, self.book, self._on_violation)
        self._greeter = Greeter(host, config, self.book, tasks, self._on_verified)
        self._gossip = Gossip(host, tasks)
        self._dht = Dht(host, tasks)
        self._relaying = Relaying(host, offer=config.offer_relay)
        self._discovery = Discovery(host, self.book, tasks, self.connect, self.request)
        self._dial_back = DialBack(host, self.book, self.request)
        self._reach_lock = trio.Lock()
        self._changed = trio.Event()
        self.handle(PEERS, self._discovery.serve_peers, max_request_bytes=0)
        self.handle(REACH, self._dial_back.serve, max_request_bytes=16)
        host.get_network().register_notifee(_Events(self))

    # The Channel Protocol

    @property
    def peer_id(self) -> PeerId:
        return PeerId(str(self._me))

    @property
    def multiaddrs(self) -> tuple[str, ...]:
        """Where we can be dialled, relays included, each ending in /p2p/<peer id>."""
        return tuple(str(addr) for addr in self.host.get_addrs())

    def peers(self) -> tuple[Peer, ...]:
        """The verified peers we are connected to."""
        # A connection that is closing is closed: the library reports it two tenths of a second later.
        return tuple(
            peer
            for peer in self.book.verified.values()
            if self.host.is_connected(ID.from_base58(peer.peer_id))
        )

    async def connect(self, multiaddr: str, found_by: FoundBy = FoundBy.BOOT) -> Peer:
        """Dial, verify the binding, remember. Idempotent.

        A boot or registry address is kept: it is dialled again, with growing pauses, whenever the connection
        is gone. Raises UsageError (not a peer's address), PeerUnreachable, TimedOut, BindingInvalid and
        PeerMisbehaved.
        """
        peer_id, addr = parse_peer_addr(multiaddr)
        name = PeerId(str(peer_id))
        if peer_id == self._me:
            raise UsageError(f"{multiaddr} is this node itself")
        if name in self.book.verified:
            return self.book.verified[name]
        refusal = self.book.refusal(name, trio.current_time())
        if refusal is not None:
            raise PeerMisbehaved(name, f"it is refused: {refusal}")
        if found_by in (FoundBy.BOOT, FoundBy.REGISTRY):
            self._discovery.keep(multiaddr, found_by)
        self.book.expect(name, found_by)
        try:
            if not self.host.is_connected(peer_id):
                await self._dial(peer_id, addr)
            return await self._greeter.greet(peer_id)
        finally:
            self.book.forget_expectation(name)

    async def request(
        self, peer: PeerId, protocol: str, body: bytes, *, max_reply_bytes: int, timeout_s: float
    ) -> bytes:
        """One request, one reply. Raises PeerUnreachable, PeerMisbehaved, TimedOut."""
        return await self._requests.ask(
            peer, protocol, body, max_reply_bytes=max_reply_bytes, timeout_s=timeout_s
        )

    def handle(self, protocol: str, handler: Handler, *, max_request_bytes: int) -> None:
        """Serve a request protocol; its name begins with /dfl/. A handler that raises closes the stream."""
        check_protocol(protocol)
        self._requests.handle(protocol, handler, max_request_bytes=max_request_bytes)

    async def open_stream(
        self, peer: PeerId, protocol: str, *, max_message_bytes: int, timeout_s: float
    ) -> MessageStream:
        """Raises PeerUnreachable, TimedOut."""
        return await self._streams.open(
            peer, protocol, max_message_bytes=max_message_bytes, timeout_s=timeout_s
        )

    def handle_streams(self, protocol: str, handler: StreamHandler, *, max_message_bytes: int) -> None:
        """Serve a stream protocol; its name begins with /dfl/. The stream ends with its handler."""
        check_protocol(protocol)
        self._streams.handle(protocol, handler, max_message_bytes=max_message_bytes)

    async def publish(self, topic: str, body: bytes) -> None:
        """Announce to everyone subscribed. Raises UsageError over 64 KiB."""
        await self._gossip.publish(topic, body)

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[tuple[PeerId, bytes]]]:
        """Announcements of others while the context is open; a slow reader loses the oldest."""
        return self._gossip.subscribe(topic)

    async def provide(self, key: bytes) -> None:
        """Put a provider record: we take part in what `key` names."""
        await self._dht.provide(key)

    async def find_providers(self, key: bytes) -> tuple[Peer, ...]:
        """Find, dial and verify those who provide `key`. Unreachable ones are left out."""
        told = await self._dht.find_providers(key)
        return await self._discovery.find({PeerId(str(peer)): addrs for peer, addrs in told.items()})

    # Beyond the Protocol

    @property
    def listening(self) -> tuple[str, ...]:
        """The multiaddrs our sockets listen on, wildcards resolved, relays left out."""
        return tuple(addr for addr in self.multiaddrs if "/p2p-circuit/" not in addr)

    @property
    def tls_problem(self) -> str | None:
        """Why TLS is not offered, or None."""
        upgrader = self.host.swarm.upgrader
        return upgrader.tls_problem if isinstance(upgrader, Upgrader) else None

    def traffic(self) -> dict[str, Traffic]:
        """Bytes sent and received by protocol, since the channel was opened."""
        return self.host.meter.snapshot()

    def gossip_score(self, peer: ID, topic: str) -> float:
        """What GossipSub thinks of a peer; below `gossip.SCORES`' thresholds it is not listened to."""
        return self._gossip.score(peer, topic)

    @property
    def reach(self) -> Reach:
        """Whether others can dial us, as far as peers told."""
        return self._dial_back.reach

    async def check_reach(self) -> Reach:
        """Ask peers to dial us, and take a place on a relay if they cannot."""
        async with self._reach_lock:
            reach = await self._dial_back.check()
            if reach.state is Reachability.PRIVATE and self.config.use_relays:
                await self._reserve_somewhere()
        return reach

    def relays(self) -> tuple[str, ...]:
        """The relays through which we can be reached now."""
        return self._relaying.reservations()

    async def changed(self) -> None:
        """Wait until a peer comes or goes."""
        await self._changed.wait()

    # Connections come and go

    async def _dial(self, peer_id: ID, addr: Multiaddr) -> None:
        via = circuit_relay(addr)
        if via is not None:
            relay_id, relay_addr = via
            await self.connect(str(relay_addr), FoundBy.DHT)
            await self._relaying.dial(relay_id, peer_id)
            return
        try:
            await self.host.swarm.dial_direct(peer_id, addr)
        except Exception as error:
            why = str(error.__cause__ or error)[:200]
            raise PeerUnreachable(
                f"peer {peer_id} cannot be dialled at {addr}", why=why, help_command="dfl-node doctor"
            ) from error

    def _on_connected(self, conn: INetConn) -> None:
        muxed = conn.muxed_conn
        if muxed.is_initiator:
            self._tasks.start_soon(self._greet, muxed.peer_id)

    async def _greet(self, peer_id: ID) -> None:
        # Connections that the DHT or the block store opened are greeted too.
        try:
            await self._greeter.greet(peer_id)
        except DflError as error:
            log.debug("no hello", peer=str(peer_id), why=str(error))

    def _on_verified(self, peer: Peer) -> None:
        peer_id = ID.from_base58(peer.peer_id)
        log.debug("peer verified", peer=peer.peer_id, address=peer.address, found_by=peer.found_by.value)
        self._gossip.add_peer(peer_id)
        self._dht.add_peer(PeerInfo(peer_id, [Multiaddr(addr) for addr in peer.multiaddrs]))
        self._tasks.start_soon(self._discovery.exchange_with, peer.peer_id)
        self._tasks.start_soon(self._ping_soon, peer.peer_id)
        if self._dial_back.reach.state is not Reachability.PUBLIC and not self._relaying.reservations():
            self._tasks.start_soon(self.check_reach)
        self._peers_changed()

    def _on_disconnected(self, peer_id: ID) -> None:
        if self.host.is_connected(peer_id):
            return
        self.host.mark_gone(peer_id)
        self._dht.remove_peer(peer_id)
        if self._relaying.forget(peer_id):
            self._tasks.start_soon(self.check_reach)
        if self.book.gone(PeerId(str(peer_id))) is not None:
            log.debug("peer gone", peer=str(peer_id))
            self._peers_changed()

    def _peers_changed(self) -> None:
        self._discovery.peers_changed()
        self._changed.set()
        self._changed = trio.Event()

    async def _on_violation(self, peer: PeerId, why: str) -> None:
        if self.book.strike(peer):
            log.warning("peer refused", peer=peer, why=why)
            self.book.refuse(peer, why, trio.current_time())
            with shielded(2.0):
                await self.host.disconnect(ID.from_base58(peer))

    # Background

    async def _ping_forever(self) -> None:
        while True:
            await trio.sleep(self._limits.ping_s * random.uniform(0.8, 1.2))  # noqa: S311 - not a secret
            async with trio.open_nursery() as nursery:
                for peer in self.peers():
                    nursery.start_soon(self._ping, peer.peer_id)

    async def _ping_soon(self, peer: PeerId) -> None:
        """The first latency, as soon as the other side has surely verified us, too."""
        await trio.sleep(self._limits.first_ping_s)
        if peer in self.book.verified:
            await self._ping(peer)

    async def _ping(self, peer: PeerId) -> None:
        """Measure the latency; a peer that does not answer is gone, whatever TCP believes."""
        peer_id = ID.from_base58(peer)
        try:
            with trio.fail_after(self._limits.ping_timeout_s):
                stream = await self.host.new_stream(peer_id, [TProtocol(PING)])
                asked_at = trio.current_time()
                await stream.write(bytes(_PING_BYTES))
                answered = 0
                while answered < _PING_BYTES:
                    answered += len(await stream.read(_PING_BYTES - answered))
                self.book.measured(peer, trio.current_time() - asked_at)
                await stream.close()
        except Exception as error:
            log.info("peer does not answer pings", peer=peer, error=repr(error)[:200])
            with shielded(2.0):
                await self.host.disconnect(peer_id)

    async def _check_reach_forever(self) -> None:
        while True:
            await trio.sleep(_REACH_EVERY_S * random.uniform(0.8, 1.2))  # noqa: S311 - not a secret
            await self.check_reach()

    async def _reserve_somewhere(self) -> None:
        if self._relaying.reservations():
            return
        for relay in tuple(self.book.relays):
            peer = self.book.verified[relay]
            try:
                good_for_s = await self._relaying.reserve(ID.from_base58(relay), peer.multiaddrs)
            except DflError as error:
                log.info("no place on relay", relay=relay, why=str(error))
                continue
            self._tasks.start_soon(self._reserve_again, relay, good_for_s)
            # Whoever met us before learns the new address by another hello, and from our provider records.
            for known in self.peers():
                self._tasks.start_soon(self._greet, ID.from_base58(known.peer_id))
            self._tasks.start_soon(self._dht.provide_again)
            return

    async def _reserve_again(self, relay: PeerId, good_for_s: float) -> None:
        while relay in self.book.verified:
            await trio.sleep(max(1.0, good_for_s * _RESERVE_AGAIN))
            peer = self.book.verified.get(relay)
            try:
                if peer is not None:
                    good_for_s = await self._relaying.reserve(ID.from_base58(relay), peer.multiaddrs)
            except DflError as error:
                log.info("place on relay lost", relay=relay, why=str(error))
                self._relaying.forget(ID.from_base58(relay))
                self._tasks.start_soon(self.check_reach)
                return

    def _on_mdns(self, peer_id: PeerId, addrs: tuple[str, ...]) -> None:
        self._discovery.consider(peer_id, addrs, FoundBy.MDNS, loopback_ok=True)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for part in (self._gossip, self._dht, self._relaying):
                await stack.enter_async_context(part.running())
            ports = [addr.value_for_protocol("tcp") for addr in self.host.get_transport_addrs()]
            if self.config.enable_mdns and ports:
                network = network_of(self.config.chain_id, self.config.registry)
                ours = Announcement(self.peer_id, int(ports[0] or 0), self.multiaddrs, network)
                self.mdns_problem = await stack.enter_async_context(announced(ours, self._on_mdns))
            for background in (
                self._ping_forever,
                self._check_reach_forever,
                self._discovery.exchange_forever,
            ):
                self._tasks.start_soon(background)
            for bootnode in self.config.bootnodes:
                self._discovery.keep(bootnode, FoundBy.BOOT)
            yield


@asynccontextmanager
async def open_channel(config: NetConfig) -> AsyncIterator[Libp2pChannel]:
    """Listen, and take part in the network while the context is open.

    Raises UsageError for an address that cannot be used, BindingInvalid for a binding that is not ours.
    """
    for bootnode in config.bootnodes:
        parse_peer_addr(bootnode)
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            tasks = Tasks(nursery)
            async with open_host(config, tasks) as host:
                _check_own_binding(config, host)
                channel = Libp2pChannel(host, config, tasks)
                async with channel.running():
                    try:
                        yield channel
                    except BaseException as error:
                        failure = error
                        raise
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Nobody outside shall have to know that there is a nursery in here.
        raise (failure or _only(group)) from None


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _check_own_binding(config: NetConfig, host: NodeHost) -> None:
    """Better said at the start than by every peer."""
    try:
        verify_binding(
            config.binding,
            peer_key=host.get_public_key().to_bytes(),
            chain_id=config.chain_id,
            registry=config.registry,
        )
    except VerificationFailed as bad:
        bad.help_command = "dfl-node start"
        raise
