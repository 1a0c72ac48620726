"""The twin's faults, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from dfl_ledger.errors import BindingInvalid, PeerUnreachable, TimedOut
from dfl_node.net.memory import Fault, MemoryChannel, MemoryNetwork
from tests.conformance.channel import ECHO, echo
from tests.node.net.support import bound, key_of, seed_of

Story = Callable[[MemoryNetwork, MemoryChannel, MemoryChannel], Awaitable[None]]


@asynccontextmanager
async def acquainted() -> AsyncIterator[tuple[MemoryNetwork, MemoryChannel, MemoryChannel]]:
    network = MemoryNetwork()
    async with network.open_channel(bound(1)) as one, network.open_channel(bound(2)) as other:
        other.handle(ECHO, echo, max_request_bytes=100)
        await one.connect(other.multiaddrs[0])
        yield network, one, other


def run(story: Story) -> None:
    async def main() -> None:
        async with acquainted() as (network, one, other):
            await story(network, one, other)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def ask(one: MemoryChannel, other: MemoryChannel, timeout_s: float = 30.0) -> bytes:
    return await one.request(other.peer_id, ECHO, b"x", max_reply_bytes=9, timeout_s=timeout_s)


def test_what_is_dropped_times_out() -> None:
    async def story(network: MemoryNetwork, one: MemoryChannel, other: MemoryChannel) -> None:
        network.inject(Fault.DROP, one.peer_id, other.peer_id)
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await ask(one, other)
        assert trio.current_time() - started == pytest.approx(30.0)
        network.heal(one.peer_id, other.peer_id)
        assert await ask(one, other) == b"x"

    run(story)


def test_what_is_delayed_comes_late() -> None:
    async def story(network: MemoryNetwork, one: MemoryChannel, other: MemoryChannel) -> None:
        network.inject(Fault.DELAY, one.peer_id, other.peer_id, delay_s=2.0)
        started = trio.current_time()
        async with other.subscribe("t") as announcements:
            await one.publish("t", b"late")
            assert await anext(aiter(announcements)) == (one.peer_id, b"late")
            assert trio.current_time() - started == pytest.approx(2.0)
            assert await ask(one, other) == b"x"
            assert trio.current_time() - started == pytest.approx(6.0)

    run(story)


def test_a_partition_breaks_the_connection_until_it_heals() -> None:
    async def story(network: MemoryNetwork, one: MemoryChannel, other: MemoryChannel) -> None:
        network.inject(Fault.PARTITION, one.peer_id, other.peer_id)
        assert one.peers() == other.peers() == ()
        with pytest.raises(PeerUnreachable):
            await ask(one, other)
        with pytest.raises(PeerUnreachable):
            await one.connect(other.multiaddrs[0])
        network.heal(one.peer_id, other.peer_id)
        await one.connect(other.multiaddrs[0])
        assert await ask(one, other) == b"x"

    run(story)


def test_a_node_that_dies_hangs_up_on_who_waits() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with network.open_channel(bound(1)) as one, trio.open_nursery() as nursery:
            dying = network.open_channel(bound(2))
            other = await dying.__aenter__()

            async def never(peer: object, body: bytes) -> bytes:
                await trio.sleep_forever()
                raise AssertionError

            other.handle(ECHO, never, max_request_bytes=100)
            await one.connect(other.multiaddrs[0])

            async def kill() -> None:
                await trio.sleep(1.0)
                other.leave()

            nursery.start_soon(kill)
            with pytest.raises(PeerUnreachable):
                await ask(one, other)
            assert one.peers() == ()
            await dying.__aexit__(None, None, None)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_binding_of_another_key_is_refused() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        thief = network.open_channel(bound(2), peer_key=key_of(seed_of(3)))
        async with network.open_channel(bound(1)) as one, thief as other:
            with pytest.raises(BindingInvalid, match="another node key"):
                await one.connect(other.multiaddrs[0])
            assert one.peers() == other.peers() == ()

    trio.run(main, clock=MockClock(autojump_threshold=0))
