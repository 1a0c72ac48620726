"""Kademlia provider records among verified peers: who takes part in what a key names.

The library's Kademlia under a protocol name of our own, so that a Kubo we exchange blocks with does not merge
the public IPFS network into ours. Its lookup answers from the local store alone when that knows any provider,
and a node that takes part always knows itself: so the lookup here asks the others in every case.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import structlog
import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from .config import NetLimits
from .host import NodeHost
from .services import Tasks, running

log = structlog.get_logger(__name__)

KAD = TProtocol("/dfl/kad/1.0.0")
_MAX_KEYS = 4096  # keys whose providers we keep for others
_MAX_OWN_KEYS = 256
_MAX_PROVIDERS = 20
_MAX_ASKED = 12
_REPROVIDE_S = 600.0


class _DhtHost:
    """The host as the DHT sees it: our protocol name, verified peers only."""

    def __init__(self, host: NodeHost) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def get_connected_peers(self) -> list[ID]:
        return [peer for peer in self._host.get_connected_peers() if self._host.is_verified(peer)]

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> INetStream:
        return await self._host.new_stream(peer_id, [KAD])

    def set_stream_handler(self, protocol_id: TProtocol, stream_handler: StreamHandlerFn) -> None:
        self._host.set_stream_handler(KAD, stream_handler)


class _Providers(ProviderStore):
    max_addrs = 8

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        if key in self.providers or len(self.providers) < _MAX_KEYS:
            super().add_provider(key, PeerInfo(provider.peer_id, provider.addrs[: self.max_addrs]))


class _NoValues(ValueStore):
    """Nobody stores values in our DHT, and strangers shall not begin to."""

    def put_record(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("values are not kept")


def content_key(key: bytes) -> bytes:
    """The DHT key of any bytes: their SHA2-256 as a multihash."""
    return bytes((0x12, 0x20)) + hashlib.sha256(key).digest()


class Dht:
    """Provide and find."""

    def __init__(self, host: NodeHost, tasks: Tasks) -> None:
        self._tasks = tasks
        self._limits: NetLimits = host.limits
        self._me = host.get_id()
        facade = cast(IHost, _DhtHost(host))
        self._dht = KadDHT(facade, DHTMode.SERVER, enable_values=False, strict_validation=True)
        self._dht.provider_store = _Providers(facade, self._dht.peer_routing)
        self._dht.value_store = _NoValues(facade, host.get_id())
        self._provided: dict[bytes, None] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with running(self._dht):
            self._tasks.start_soon(self._provide_forever)
            yield

    def add_peer(self, info: PeerInfo) -> None:
        """The peer's hello is verified: let it take part, and tell it what we provide."""
        self._tasks.start_soon(self._add_contained, info)

    def remove_peer(self, peer_id: ID) -> None:
        self._dht.routing_table.remove_peer(peer_id)

    async def _add_contained(self, info: PeerInfo) -> None:
        with trio.move_on_after(self._limits.lookup_s):
            try:
                await self._dht.routing_table.add_peer(info, skip_server_mode_check=True)
                for key in tuple(self._provided):
                    await self._dht.provider_store._send_add_provider(info.peer_id, key)
            except Exception as error:
                log.debug("no dht with peer", peer=str(info.peer_id), error=repr(error)[:200])

    async def provide(self, key: bytes) -> None:
        """Tell the peers nearest to the key that we take part, and later ones when they come."""
        record = content_key(key)
        self._provided.pop(record, None)
        self._provided[record] = None
        while len(self._provided) > _MAX_OWN_KEYS:
            self._provided.pop(next(iter(self._provided)))
        with trio.move_on_after(self._limits.lookup_s):
            await self._dht.provider_store.provide(record)

    async def provide_again(self) -> None:
        """Renew our records: records grow old, and addresses change."""
        for record in tuple(self._provided):
            try:
                with trio.move_on_after(self._limits.lookup_s):
                    await self._dht.provider_store.provide(record)
            except Exception as error:
                log.debug("providing again failed", error=repr(error)[:200])

    async def _provide_forever(self) -> None:
        while True:
            await trio.sleep(_REPROVIDE_S)
            await self.provide_again()

    async def find_providers(self, key: bytes) -> dict[ID, tuple[str, ...]]:
        """Who says to take part, with the addresses told. Nothing in here has been checked by dialling."""
        record = content_key(key)
        found: dict[ID, set[str]] = {}
        asked: set[ID] = {self._me}

        def note(providers: Sequence[PeerInfo]) -> None:
            for provider in providers:
                if provider.peer_id != self._me and (
                    provider.peer_id in found or len(found) < _MAX_PROVIDERS
                ):
                    addrs = found.setdefault(provider.peer_id, set())
                    addrs.update(str(addr) for addr in provider.addrs[: self._limits.max_addrs_per_peer])

        async def ask(peer_id: ID) -> None:
            providers, _ = await self._dht.provider_store._get_providers_from_peer_with_closers(
                peer_id, record
            )
            note(providers)

        note(self._dht.provider_store.get_providers(record))
        with trio.move_on_after(self._limits.lookup_s):
            nearest = await self._dht.peer_routing.find_closest_peers_network(record, _MAX_ASKED)
            async with trio.open_nursery() as nursery:
                for peer_id in nearest[:_MAX_ASKED]:
                    if peer_id not in asked:
                        asked.add(peer_id)
                        nursery.start_soon(ask, peer_id)
        return {
            peer_id: tuple(sorted(addrs))[: self._limits.max_addrs_per_peer]
            for peer_id, addrs in found.items()
        }
