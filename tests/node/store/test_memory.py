"""The twin's faults, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from dfl_ledger.errors import BlobNotFound, CidMismatch, DflError
from dfl_node.store.memory import Fault, MemoryStore, MemorySwarm
from tests.conformance.blob_store import content

DATA = content(3_000_000)


def run(story: Callable[[MemorySwarm], Awaitable[None]]) -> None:
    trio.run(story, MemorySwarm(), clock=MockClock(autojump_threshold=0))


async def get(store: MemoryStore, from_: MemoryStore, timeout_s: float = 30.0) -> bytes:
    cid = await from_.put(DATA)
    return await store.get(cid, max_bytes=len(DATA), timeout_s=timeout_s, providers=["bad"])


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Fault.MISSING, BlobNotFound), (Fault.CORRUPT, CidMismatch), (Fault.SLOW, BlobNotFound)],
)
def test_a_faulty_peer_alone(fault: Fault, error: type[DflError]) -> None:
    async def story(swarm: MemorySwarm) -> None:
        here, bad = swarm.store("here"), swarm.store("bad")
        bad.fault = fault
        with pytest.raises(error):
            await get(here, bad, timeout_s=5.0)
        assert trio.current_time() == pytest.approx(5.0, abs=0.1)

    run(story)


@pytest.mark.parametrize("fault", Fault)
def test_a_faulty_peer_beside_an_honest_one(fault: Fault) -> None:
    async def story(swarm: MemorySwarm) -> None:
        here, bad, good = swarm.store("here"), swarm.store("bad"), swarm.store("good")
        bad.fault = fault
        await good.put(DATA)
        assert await get(here, bad, timeout_s=60.0) == DATA

    run(story)


def test_a_faulty_store_is_honest_to_its_own_node() -> None:
    async def story(swarm: MemorySwarm) -> None:
        bad = swarm.store("bad")
        bad.fault = Fault.CORRUPT
        assert await get(bad, bad) == DATA

    run(story)


def test_what_comes_later_is_still_found() -> None:
    async def story(swarm: MemorySwarm) -> None:
        here, there = swarm.store("here"), swarm.store("there")
        cid = await MemoryStore().put(DATA)

        async def publish_later() -> None:
            await trio.sleep(3)
            await there.put(DATA)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_later)
            assert await here.get(cid, max_bytes=len(DATA), timeout_s=10.0) == DATA

    run(story)
