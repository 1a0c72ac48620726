"""Files from peers' trustless gateways over HTTP: the fast path.

A provider that is hinted at is asked for one CAR stream. Otherwise, if it is slow to begin, and for what is
still missing, several gateways are asked for single blocks side by side, so that a dead one costs no time and
a slow one little.
A gateway that lies, stalls or redirects is dropped for the file; one that does not have it is passed over.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import httpx
import trio

from dfl_ledger.errors import DflError, PeerMisbehaved
from dfl_ledger.records import Cid
from dfl_node.net.channel import Peer
from dfl_node.store.car import CarReader
from dfl_node.store.exchange import Fetch
from dfl_node.store.gateway import CAR_TYPE, RAW_TYPE
from dfl_node.store.unixfs import MAX_BLOCK_BYTES

CONNECT_S = 3.0
STALL_S = 4.0  # in each such span a gateway must bring STALL_BYTES
STALL_BYTES = 64 << 10
LANES = 4  # gateways asked side by side, and blocks in flight
CAR_PROVIDERS = 2  # hinted providers that are asked for a CAR
HEAD_START_S = 1.0  # of theirs: then the others are asked too, if nothing has come
DRAIN_S = 0.1  # for responses that end with the file, whose connections can be used again
BATCH_BYTES = 4 << 20  # blocks of a CAR are checked and written in batches of this size
BATCH_BLOCKS = 256
MAX_UNWANTED_BLOCKS = 64  # in a CAR: some gateways send a block again where it occurs again
MAX_OVERHEAD_BYTES = 4 << 20  # what a CAR may have beyond the file's bytes: inner nodes, section heads


class GatewayFetcher:
    """A `Fetcher` over the gateways of verified peers. Use as an async context manager."""

    def __init__(self, peers: Callable[[], Sequence[Peer]]) -> None:
        self._peers = peers
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[GatewayFetcher]:
        """Keeps connections to gateways open while the context is."""
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=30.0)
        timeout = httpx.Timeout(STALL_S, connect=CONNECT_S)
        # No proxy and no netrc from the environment: a gateway is reached at the peer's own IP or not at all.
        async with httpx.AsyncClient(
            follow_redirects=False, trust_env=False, timeout=timeout, limits=limits
        ) as self._client:
            try:
                yield self
            finally:
                self._client = None

    async def fetch(self, fetch: Fetch, providers: Sequence[str]) -> None:
        peers = [peer for peer in self._peers() if peer.peer_id not in fetch.dropped and _base_url(peer)]
        peers.sort(key=lambda peer: (peer.peer_id not in providers, peer.latency_s or 1.0))
        failures: list[DflError] = []
        hinted = [peer for peer in peers[:CAR_PROVIDERS] if peer.peer_id in providers]
        asked = trio.Event()  # all of them have been

        async def take_cars() -> None:
            for peer in hinted:
                if fetch.assembly.wants(fetch.root):
                    await self._attempt(fetch, peer, self._take_car, failures)
            asked.set()
            fetch.nudge()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_cars)
            nursery.start_soon(_cancel_when_over, nursery.cancel_scope, fetch, failures)
            with trio.move_on_after(HEAD_START_S):
                while fetch.assembly.wants(fetch.root) and not asked.is_set():
                    await fetch.change.wait()
            if not fetch.assembly.wants(fetch.root):  # one of them delivers
                await asked.wait()
            await self._from_all([p for p in peers if asked.is_set() or p not in hinted], fetch, failures)
            await asked.wait()
            nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]

    async def _from_all(self, peers: Sequence[Peer], fetch: Fetch, failures: list[DflError]) -> None:
        """Single blocks from several gateways side by side, until all have been asked."""
        waiting = iter(peers)
        claimed: set[Cid] = set()

        async def lane() -> None:
            for peer in waiting:
                if fetch.done or failures:
                    return
                if peer.peer_id not in fetch.dropped:
                    await self._attempt(fetch, peer, partial(self._take_blocks, claimed), failures)

        async with trio.open_nursery() as nursery:
            for _ in range(min(LANES, len(peers))):
                nursery.start_soon(lane)

    async def _attempt(
        self,
        fetch: Fetch,
        peer: Peer,
        take: Callable[[Fetch, Peer], Awaitable[None]],
        failures: list[DflError],
    ) -> None:
        """Run `take`; a peer's failure drops the peer, the file's own failure goes to `failures`."""
        try:
            await take(fetch, peer)
        except PeerMisbehaved:
            pass  # dropped where it was found out
        except (httpx.HTTPError, ValueError) as bad:
            fetch.drop(peer.peer_id, str(bad) or type(bad).__name__)
        except DflError as failure:
            failures.append(failure)

    async def _take_car(self, fetch: Fetch, peer: Peer) -> None:
        """The whole file in one response."""
        reader = CarReader()
        batch: list[tuple[Cid, bytes]] = []
        batch_bytes = unwanted = 0

        async def flush() -> None:
            nonlocal batch_bytes, unwanted
            unwanted += len(batch) - await fetch.deliver(peer.peer_id, batch)
            batch.clear()
            batch_bytes = 0
            if unwanted > MAX_UNWANTED_BLOCKS:
                raise ValueError("its CAR has blocks that are no part of the file")

        async def feed(part: bytes) -> None:
            nonlocal batch_bytes
            for cid, block in reader.feed(part):
                batch.append((cid, block))
                batch_bytes += len(block)
                # The root at once, because it tells the size; then few calls for many blocks.
                if fetch.assembly.size is None or batch_bytes >= BATCH_BYTES or len(batch) >= BATCH_BLOCKS:
                    await flush()

        def limit() -> int:
            size = fetch.assembly.max_bytes if fetch.assembly.size is None else fetch.assembly.size
            return size + size // 16 + MAX_OVERHEAD_BYTES

        await self._read(fetch, f"{_base_url(peer)}/ipfs/{fetch.root}?format=car", CAR_TYPE, limit, feed)
        await flush()

    async def _take_blocks(self, claimed: set[Cid], fetch: Fetch, peer: Peer) -> None:
        """Block after block, as long as the peer has what is asked for."""
        while not fetch.done:
            change = fetch.change
            # Every lane may ask for the root, as nobody knows yet who has it; the rest is shared out.
            free = (cid for cid in fetch.assembly.missing() if cid == fetch.root or cid not in claimed)
            cid = next(free, None)
            if cid is None:
                await change.wait()
                continue
            claimed.add(cid)
            try:
                block = bytearray()

                async def feed(part: bytes, block: bytearray = block) -> None:
                    block += part

                url = f"{_base_url(peer)}/ipfs/{cid}?format=raw"
                if not await self._read(fetch, url, RAW_TYPE, lambda: MAX_BLOCK_BYTES, feed):
                    return
                await fetch.deliver(peer.peer_id, [(cid, bytes(block))])
            finally:
                claimed.discard(cid)
                fetch.nudge()

    async def _read(
        self,
        fetch: Fetch,
        url: str,
        accept: str,
        limit: Callable[[], int],
        feed: Callable[[bytes], Awaitable[None]],
    ) -> bool:
        """GET, fed part by part; False if the gateway does not have it.

        Raises ValueError for more than `limit()` bytes, for a stall, and for any status but 200 and 404.
        """
        if self._client is None:
            raise RuntimeError("used outside `opened`")
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        total = progress = 0
        failure: DflError | ValueError | None = None
        with trio.move_on_after(CONNECT_S + STALL_S) as stall, _unless(lambda: failure):
            async with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code in (404, 429):
                    return False
                if response.status_code != 200:
                    raise ValueError(f"its gateway answers with status {response.status_code}")
                stall.deadline = trio.current_time() + STALL_S
                async for part in response.aiter_raw():
                    total += len(part)
                    fetch.meter.received += len(part)
                    if failure is not None:
                        continue
                    if total - progress >= STALL_BYTES:
                        progress = total
                        stall.deadline = trio.current_time() + STALL_S
                    try:
                        if total > limit():
                            raise ValueError(f"its gateway sends more than {limit()} bytes")
                        with trio.CancelScope(shield=True):
                            await feed(part)
                    except (DflError, ValueError) as bad:
                        # httpx reads through nested generators, which trio wants run to their end: so the
                        # connection is closed under them and the loop goes on until the next read fails.
                        # For the same reason nothing is cancelled but a read.
                        failure = bad
                        await response.aclose()
        if failure is not None:
            raise failure
        if stall.cancelled_caught:
            raise ValueError(f"its gateway sends less than {STALL_BYTES} bytes in {STALL_S:g} s")
        return True


async def _cancel_when_over(scope: trio.CancelScope, fetch: Fetch, failures: Sequence[DflError]) -> None:
    """A gateway that still keeps us waiting must not hold up a file that is complete."""
    while not (fetch.done or failures):
        await fetch.change.wait()
    await trio.sleep(DRAIN_S)
    scope.cancel()


@contextmanager
def _unless(failed: Callable[[], Exception | None]) -> Iterator[None]:
    """Leave out the errors of a connection that we closed ourselves, after a failure of our own."""
    try:
        yield
    except httpx.HTTPError:
        if failed() is None:
            raise


def _base_url(peer: Peer) -> str | None:
    """The peer's gateway if it is plain HTTP at an IP address: anything else could lead elsewhere."""
    if peer.gateway_url is None:
        return None
    url = httpx.URL(peer.gateway_url)
    try:
        ipaddress.ip_address(url.host)
    except ValueError:
        return None
    plain = url.scheme == "http" and not url.userinfo and url.path in ("", "/") and not url.query
    return str(url).rstrip("/") if plain else None
