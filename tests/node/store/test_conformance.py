"""One suite for the twin and the real store, alone and with a peer over each way there is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from dfl_node.store.bitswap import Bitswap
from dfl_node.store.blob_store import BlobStore
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.local import LocalStore
from dfl_node.store.memory import MemoryStore, MemorySwarm
from tests.conformance import blob_store as suite
from tests.node.store.support import WITHIN_S, dial, libp2p_host, over_gateway

PeerCheck = Callable[[BlobStore, BlobStore], Awaitable[None]]
by_name = {"ids": lambda check: check.__name__}


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(WITHIN_S):
            await story()

    trio.run(bounded)


@pytest.mark.parametrize("check", suite.CHECKS, **by_name)
def test_memory(check: suite.Check) -> None:
    run(lambda: check(MemoryStore()))


@pytest.mark.parametrize("check", suite.CHECKS, **by_name)
def test_local(check: suite.Check, tmp_path: Path) -> None:
    run(lambda: check(LocalStore(BlockFiles(tmp_path))))


@pytest.mark.parametrize("check", suite.PEER_CHECKS, **by_name)
def test_memory_swarm(check: PeerCheck) -> None:
    swarm = MemorySwarm()
    run(lambda: check(swarm.store("here"), swarm.store("there")))


@pytest.mark.parametrize("check", suite.PEER_CHECKS, **by_name)
def test_local_over_the_gateway(check: PeerCheck, tmp_path: Path) -> None:
    async def story() -> None:
        here, there = BlockFiles(tmp_path / "here"), BlockFiles(tmp_path / "there")
        async with over_gateway(there) as fetcher:
            await check(LocalStore(here, [fetcher]), LocalStore(there))

    run(story)


@pytest.mark.parametrize("check", suite.PEER_CHECKS, **by_name)
def test_local_over_bitswap(check: PeerCheck, tmp_path: Path) -> None:
    async def story() -> None:
        here, there = BlockFiles(tmp_path / "here"), BlockFiles(tmp_path / "there")
        async with libp2p_host() as one, libp2p_host() as two, trio.open_nursery() as nursery:
            fetcher, server = Bitswap(one, here), Bitswap(two, there)
            await nursery.start(fetcher.run)
            await nursery.start(server.run)
            await dial(one, two)
            await check(LocalStore(here, [fetcher]), LocalStore(there))
            nursery.cancel_scope.cancel()

    run(story)
