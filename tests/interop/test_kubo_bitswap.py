"""A real Kubo fetches by CID what a node published, and the other way round, over bitswap on libp2p."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
from libp2p.abc import IHost
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from dfl_ledger.records import Cid
from dfl_node.net.libp2p_channel import open_channel
from dfl_node.store.bitswap import Bitswap
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.local import LocalStore
from tests.conformance.blob_store import content
from tests.interop.support import COMMAND_S, Kubo, kubo
from tests.node.net.support import config_of

log = structlog.get_logger(__name__)

TWENTY_MB = 20_000_000
SIZES = (0, 1, 300_000, TWENTY_MB)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubo]:
    with kubo(tmp_path_factory.mktemp("kubo")) as node:
        yield node


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[tuple[IHost, LocalStore]]:
    """A node's own channel, with its limits for strangers: a Kubo never says our hello."""
    files = BlockFiles(folder)
    async with open_channel(config_of()) as channel, trio.open_nursery() as nursery:
        service = Bitswap(channel.host, files)
        await nursery.start(service.run)
        yield channel.host, LocalStore(files, [service])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", SIZES)
def test_kubo_fetches_what_we_published(daemon: Kubo, tmp_path: Path, size: int) -> None:
    data = content(size, seed=1)
    output = tmp_path / "got"

    async def story() -> float:
        with trio.fail_after(COMMAND_S):
            async with node(tmp_path / "store") as (host, store):
                cid = await store.put(data)
                address = str(host.get_addrs()[0])
                assert await trio.to_thread.run_sync(lambda: daemon.do("connect", addr=address)[0]) == 0
                code, seconds = await trio.to_thread.run_sync(
                    lambda: daemon.do("get", cid=str(cid), file=str(output))
                )
                assert code == 0
                return float(seconds)

    seconds = trio.run(story)
    assert output.read_bytes() == data
    log.info("Kubo fetched what we published", bytes=size, seconds=seconds)


@pytest.mark.parametrize("size", SIZES)
def test_we_fetch_what_kubo_published(daemon: Kubo, tmp_path: Path, size: int) -> None:
    """With Kubo's defaults: CIDv0, chunks of 256 KiB, DAG-PB leaves with inline data."""
    data = content(size, seed=2)
    (tmp_path / "file").write_bytes(data)
    text, _ = daemon.do("add", file=str(tmp_path / "file"))

    async def story() -> float:
        with trio.fail_after(COMMAND_S):
            async with node(tmp_path / "store") as (host, store):
                await host.connect(info_from_p2p_addr(Multiaddr(daemon.multiaddr)))
                began = time.perf_counter()
                assert await store.get(Cid.parse(text), max_bytes=size) == data
                return time.perf_counter() - began

    log.info("we fetched what Kubo published", bytes=size, seconds=round(trio.run(story), 3))
