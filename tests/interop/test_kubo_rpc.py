"""`KuboStore` against a real server of Kubo's RPC.

The server is js-ipfs (ipfs-core 0.18.1, ipfs-http-server 0.15.1), since a Kubo daemon cannot be installed
everywhere the tests run. What differs is said where it matters.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import ipfshttpclient
import pytest
import trio

from dfl_ledger.errors import BlobNotFound
from dfl_ledger.records import Cid
from dfl_node.store.bitswap import Bitswap
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.exchange import Fetcher
from dfl_node.store.gateway_client import GatewayFetcher
from dfl_node.store.kubo import KuboBlocks, KuboStore, parse_cid
from dfl_node.store.local import LocalStore
from dfl_node.store.unixfs import CHUNK_BYTES
from tests.conformance import blob_store as suite
from tests.conformance.blob_store import content
from tests.interop.support import js_ipfs
from tests.node.store.support import dial, gateway, libp2p_host, over_gateway, peer

# urllib3 2 warns of a parameter that ipfshttpclient passes; kubo.py silences it, pytest turns it on again.
pytestmark = pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning")

WITHIN_S = 60


@pytest.fixture(scope="module")
def rpc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with js_ipfs(tmp_path_factory.mktemp("js-ipfs")) as multiaddr:
        yield multiaddr


@asynccontextmanager
async def store_at(rpc: str, *fetchers: Fetcher) -> AsyncIterator[KuboStore]:
    blocks = KuboBlocks(rpc)
    try:
        yield KuboStore(blocks, fetchers)
    finally:
        blocks.close()


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(WITHIN_S):
            await story()

    trio.run(bounded)


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_conformance(rpc: str, check: suite.Check) -> None:
    async def story() -> None:
        async with store_at(rpc) as store:
            await check(store)

    run(story)


def test_the_daemon_tells_its_version(rpc: str) -> None:
    async def story() -> None:
        async with store_at(rpc) as store:
            assert await store.blocks.check() == "0.18.1"

    run(story)


def test_a_file_of_many_chunks_has_the_cid_that_ipfs_add_gives_it(rpc: str) -> None:
    data = content(3 * CHUNK_BYTES + 9)
    with ipfshttpclient.Client(rpc) as client:
        added = client.add(
            io.BytesIO(data),
            cid_version=1,
            raw_leaves=True,
            chunker=f"size-{CHUNK_BYTES}",
            opts={"cid-base": "base32"},
        )

    async def story() -> None:
        async with store_at(rpc) as store:
            assert await store.put(data) == parse_cid(added["Hash"])

    run(story)


def test_a_file_added_with_the_daemons_defaults_is_read(rpc: str) -> None:
    data = content(600_000)
    with ipfshttpclient.Client(rpc) as client:
        text = client.add_bytes(data)

    async def story() -> None:
        async with store_at(rpc) as store:
            cid = Cid.parse(text)
            assert await store.get(cid, max_bytes=len(data)) == data
            assert (await suite.listed(store))[cid].size == len(data)

    run(story)


def test_what_the_daemon_lacks_comes_from_peers_and_stays_in_it(rpc: str, tmp_path: Path) -> None:
    async def story() -> None:
        there = BlockFiles(tmp_path)
        data = content(CHUNK_BYTES + 3, seed=7)
        async with over_gateway(there) as fetcher, store_at(rpc, fetcher) as store:
            cid = await LocalStore(there).put(data)
            assert await store.get(cid, max_bytes=len(data)) == data
            assert await store.has(cid)
            pinned = await LocalStore(there).put(data[1:])
            await store.pin(pinned)
            assert (await suite.listed(store))[pinned].pinned

    run(story)


@pytest.mark.parametrize("way", ["gateway", "bitswap"])
def test_a_node_serves_from_the_daemon(rpc: str, tmp_path: Path, way: str) -> None:
    """A node with `--ipfs` and one without in the same network."""
    data = content(CHUNK_BYTES + 3, seed=8 if way == "gateway" else 9)
    here = BlockFiles(tmp_path)

    async def over_http(store: KuboStore, cid: Cid) -> None:
        async with (
            gateway(store.blocks) as url,
            GatewayFetcher(lambda: [peer("there", url)]).opened() as fetcher,
        ):
            assert await LocalStore(here, [fetcher]).get(cid, max_bytes=len(data)) == data

    async def over_libp2p(store: KuboStore, cid: Cid) -> None:
        async with libp2p_host() as one, libp2p_host() as two, trio.open_nursery() as nursery:
            fetcher = Bitswap(one, here)
            await nursery.start(fetcher.run)
            await nursery.start(Bitswap(two, store.blocks).run)
            await dial(one, two)
            assert await LocalStore(here, [fetcher]).get(cid, max_bytes=len(data)) == data
            nursery.cancel_scope.cancel()

    async def story() -> None:
        async with store_at(rpc) as store:
            await (over_http if way == "gateway" else over_libp2p)(store, await store.put(data))

    run(story)


def test_the_deadline_holds(rpc: str) -> None:
    async def story() -> None:
        async with store_at(rpc) as store:
            began = trio.current_time()
            with pytest.raises(BlobNotFound):
                await store.get(suite.UNKNOWN, max_bytes=10, timeout_s=0.3)
            assert trio.current_time() - began < 2

    run(story)
