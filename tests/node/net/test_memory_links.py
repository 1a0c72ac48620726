"""The twin's time, partitions and frozen nodes, for requests, dials, announcements and streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from dfl_ledger.errors import PeerUnreachable, TimedOut
from dfl_node.net.channel import MessageStream, Peer
from dfl_node.net.memory import Fault, MemoryChannel, MemoryNetwork
from tests.conformance.channel import ECHO, echo, introduce
from tests.conformance.channel_streams import TALK, Listener, open_talk, repeat
from tests.node.net.support import bound

Members = tuple[MemoryChannel, ...]


@asynccontextmanager
async def members_of(network: MemoryNetwork, count: int) -> AsyncIterator[Members]:
    async with AsyncExitStack() as stack:
        members = tuple(
            [await stack.enter_async_context(network.open_channel(bound(n))) for n in range(1, count + 1)]
        )
        for member in members:
            member.handle(ECHO, echo, max_request_bytes=100)
            member.handle_streams(TALK, repeat, max_message_bytes=1 << 20)
        await introduce(members)
        yield members


def run(count: int, story: Callable[[MemoryNetwork, Members], Awaitable[None]]) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        with trio.fail_after(10_000):
            async with members_of(network, count) as members:
                await story(network, members)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def ask(one: MemoryChannel, other: MemoryChannel) -> bytes:
    return await one.request(other.peer_id, ECHO, b"x", max_reply_bytes=9, timeout_s=30.0)


def known(member: MemoryChannel) -> set[str]:
    return {peer.peer_id for peer in member.peers()}


async def is_silent(stream: MessageStream) -> bool:
    with trio.move_on_after(1_000):
        await stream.receive()
        return False
    return True


# -- latency --------------------------------------------------------------------------------------------


def test_every_way_takes_its_latency() -> None:
    async def story(network: MemoryNetwork, members: Members) -> None:
        one, other, third = members
        network.set_latency(one.peer_id, other.peer_id, 0.25)
        started = trio.current_time()
        assert await ask(one, other) == b"x"
        assert trio.current_time() - started == pytest.approx(0.5)
        assert await ask(one, third) == b"x"
        assert trio.current_time() - started == pytest.approx(0.5)
        network.inject(Fault.DELAY, one.peer_id, other.peer_id, delay_s=1.0)
        assert await ask(one, other) == b"x"
        assert trio.current_time() - started == pytest.approx(3.0)

    run(3, story)


def test_messages_of_a_stream_travel_side_by_side_and_stay_in_order() -> None:
    async def story(network: MemoryNetwork, members: Members) -> None:
        one, other = members
        network.set_latency(one.peer_id, other.peer_id, 0.5)
        stream = await open_talk(one, other)
        started = trio.current_time()
        for number in range(10):
            await stream.send(b"%d" % number)
        network.set_latency(one.peer_id, other.peer_id, 0.1)  # later messages do not overtake
        await stream.send(b"last")
        for number in range(10):
            assert await stream.receive() == b"%d" % number
        assert await stream.receive() == b"last"
        assert trio.current_time() - started == pytest.approx(0.6)

    run(2, story)


def test_a_network_can_have_a_latency_everywhere() -> None:
    async def main() -> None:
        async with members_of(MemoryNetwork(latency_s=0.05), 2) as (one, other):
            started = trio.current_time()
            assert await ask(one, other) == b"x"
            assert trio.current_time() - started == pytest.approx(0.1)

    trio.run(main, clock=MockClock(autojump_threshold=0))


# -- partitions -----------------------------------------------------------------------------------------


def test_groups_do_not_reach_each_other_until_they_heal() -> None:
    async def story(network: MemoryNetwork, members: Members) -> None:
        a, b, c, d = members
        await d.provide(b"job")
        network.partition([a.peer_id, b.peer_id], [c.peer_id])  # and d by itself
        assert [known(member) for member in members] == [{b.peer_id}, {a.peer_id}, set(), set()]
        assert await ask(a, b) == b"x"
        for other in (c, d):
            with pytest.raises(PeerUnreachable):
                await ask(a, other)
            with pytest.raises(PeerUnreachable):
                await open_talk(a, other)
            with pytest.raises(PeerUnreachable):
                await a.connect(other.multiaddrs[0])
        assert await a.find_providers(b"job") == ()
        network.heal()
        everyone = {member.peer_id for member in members}
        assert all(known(member) == everyone - {member.peer_id} for member in members)
        assert await ask(c, d) == b"x"

    run(4, story)


def test_announcements_stay_within_a_group_even_those_under_way() -> None:
    async def story(network: MemoryNetwork, members: Members) -> None:
        a, b, c = members
        network.set_latency(a.peer_id, c.peer_id, 1.0)
        heard: list[bytes] = []
        async with b.subscribe("t") as near, c.subscribe("t") as far, trio.open_nursery() as nursery:

            async def listen() -> None:
                heard.extend([body async for _, body in far])

            nursery.start_soon(listen)
            await a.publish("t", b"under way")
            await trio.sleep(0.5)
            network.partition([a.peer_id, b.peer_id])
            await a.publish("t", b"within")
            news = aiter(near)
            assert [(await anext(news))[1] for _ in range(2)] == [b"under way", b"within"]
            await trio.sleep(100)
            assert heard == []
            nursery.cancel_scope.cancel()

    run(3, story)


def test_a_partition_breaks_streams_and_what_was_under_way() -> None:
    async def story(network: MemoryNetwork, members: Members) -> None:
        a, b, c = members
        listener = Listener()
        c.handle_streams(TALK, listener.handle, max_message_bytes=100)
        network.set_latency(a.peer_id, c.peer_id, 1.0)
        within, across = await open_talk(a, b), await open_talk(a, c)
        await across.send(b"under way")
        network.partition([c.peer_id])
        for call in (across.send(b"x"), across.receive()):
            with pytest.raises(PeerUnreachable):
                await call
        await trio.sleep(10)
        assert listener.heard == []
        assert isinstance(listener.end, PeerUnreachable)
        await within.send(b"x")
        assert await within.receive() == b"x"
        network.heal()
        with pytest.raises(PeerUnreachable):
            await across.send(b"x")
        again = await open_talk(a, c)
        await again.send(b"y")
        await trio.sleep(10)
        assert listener.heard == [b"y"]

    run(3, story)


def test_who_starts_during_a_partition_meets_the_others_when_it_heals() -> None:
    async def story(network: MemoryNetwork, members: Members) -> None:
        a, b = members
        network.partition([a.peer_id, b.peer_id])
        async with network.open_channel(bound(9)) as late:
            with pytest.raises(PeerUnreachable):
                await late.connect(a.multiaddrs[0])
            network.heal()
            assert a.peer_id in known(late)

    run(2, story)


# -- losses and stops -------------------------------------------------------------------------------------


def test_a_stream_that_loses_a_message_is_silent_and_breaks_when_the_loss_ends() -> None:
    async def story(network: MemoryNetwork, members: Members) -> None:
        one, other = members
        stream, idle = await open_talk(one, other), await open_talk(one, other)
        network.inject(Fault.DROP, one.peer_id, other.peer_id)
        await stream.send(b"lost")
        assert await is_silent(stream)
        with trio.move_on_after(5.0) as scope:  # the window fills, as nobody acknowledges
            for _ in range(10):
                await stream.send(bytes(100_000))
        assert scope.cancelled_caught
        network.heal(one.peer_id, other.peer_id)
        with pytest.raises(PeerUnreachable):
            await stream.receive()
        await idle.send(b"nothing was lost here")
        assert await idle.receive() == b"nothing was lost here"

    run(2, story)


def test_a_frozen_node_is_silent_and_goes_on_when_thawed() -> None:
    async def story(network: MemoryNetwork, members: Members) -> None:
        one, other, third = members
        stream = await open_talk(one, other)
        network.freeze(other.peer_id)
        await stream.send(b"held back")
        assert await is_silent(stream)
        with pytest.raises(TimedOut):
            await ask(one, other)
        with pytest.raises(TimedOut):
            await open_talk(one, other)
        assert other.peer_id in known(one)
        assert await ask(one, third) == b"x"
        network.thaw(other.peer_id)
        assert await stream.receive() == b"held back"
        assert await ask(one, other) == b"x"

    run(3, story)


def test_a_frozen_node_hears_of_a_stream_s_end_when_thawed() -> None:
    async def story(network: MemoryNetwork, members: Members) -> None:
        one, other = members
        listener = Listener()
        other.handle_streams(TALK, listener.handle, max_message_bytes=100)
        stream = await open_talk(one, other)
        network.freeze(other.peer_id)
        await stream.send(b"last words")
        await stream.aclose()
        await trio.sleep(100)
        assert (listener.heard, listener.end) == ([], None)
        network.thaw(other.peer_id)
        await trio.sleep(0.001)
        assert listener.heard == [b"last words"]
        assert isinstance(listener.end, PeerUnreachable)

    run(2, story)


def test_a_killed_node_breaks_its_streams_and_its_handlers_stop() -> None:
    async def story(network: MemoryNetwork, members: Members) -> None:
        one, dying = members
        stopped: list[str] = []

        async def busy(peer: Peer, stream: MessageStream) -> None:
            try:
                await trio.sleep_forever()
            finally:
                stopped.append(peer.peer_id)

        dying.handle_streams(TALK, busy, max_message_bytes=100)
        called, calling = await open_talk(one, dying), await open_talk(dying, one)
        await trio.sleep(1)
        dying.leave()
        await trio.sleep(1)
        assert stopped == [one.peer_id]
        for stream in (called, calling):
            with pytest.raises(PeerUnreachable):
                await stream.receive()
        async with network.open_channel(bound(2)) as again:
            again.handle_streams(TALK, repeat, max_message_bytes=100)
            await again.connect(one.multiaddrs[0])
            dying.leave()  # the dead one is tidied up late: no harm to its successor
            stream = await open_talk(one, again)
            await stream.send(b"x")
            assert await stream.receive() == b"x"

    run(2, story)
