"""What every `Channel` does with message streams, told as stories for the twin and for libp2p."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from dfl_ledger.errors import PeerMisbehaved, PeerUnreachable, UsageError
from dfl_node.net.channel import Channel, MessageStream, Peer
from tests.conformance.channel import (
    ECHO,
    MAX_STREAMS,
    PATIENCE_S,
    World,
    echo,
    eventually,
    introduce,
)

TALK = "/dfl/talk/1.0.0"
MIB = 1 << 20
SILENCE_S = 0.2  # long enough for what happens at once


async def repeat(peer: Peer, stream: MessageStream) -> None:
    """Send back what comes, until the other side hangs up."""
    while True:
        await stream.send(await stream.receive())


async def never_read(peer: Peer, stream: MessageStream) -> None:
    await trio.sleep_forever()


class Listener:
    """A handler that keeps what it hears, and how it ended."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.end: Exception | None = None

    async def handle(self, peer: Peer, stream: MessageStream) -> None:
        try:
            while True:
                self.heard.append(await stream.receive())
        except Exception as error:
            self.end = error
            raise


async def open_talk(one: Channel, other: Channel, max_message_bytes: int = MIB) -> MessageStream:
    return await one.open_stream(
        other.peer_id, TALK, max_message_bytes=max_message_bytes, timeout_s=PATIENCE_S
    )


@asynccontextmanager
async def talking(
    world: World, handler: Callable[[Peer, MessageStream], Awaitable[None]], max_message_bytes: int = MIB
) -> AsyncIterator[tuple[Channel, Channel, MessageStream]]:
    """Two peers and a stream between them, the second of them handling. Nothing in here may wait for long."""
    async with world.open(2) as channels:
        one, other = channels
        other.handle_streams(TALK, handler, max_message_bytes=max_message_bytes)
        other.handle(ECHO, echo, max_request_bytes=10)
        await introduce(channels)
        with trio.fail_after(3 * PATIENCE_S):
            yield one, other, await open_talk(one, other)


async def endlessly(call: Callable[[], Awaitable[object]]) -> None:
    while True:
        await call()


async def still_talking(one: Channel, other: Channel) -> None:
    """The connection is as good as before."""
    assert await one.request(other.peer_id, ECHO, b"x", max_reply_bytes=9, timeout_s=PATIENCE_S) == b"x"


def messages_of(sizes: tuple[int, ...]) -> list[bytes]:
    return [random.Random(size).randbytes(size) for size in sizes]  # noqa: S311 - not a secret


async def check_messages_arrive_whole_and_in_order(world: World) -> None:
    async with talking(world, repeat) as (_, other, stream):
        assert stream.peer.peer_id == other.peer_id
        for body in messages_of((0, 1, 3, 4, 5, 10_000, 65_523, 65_524, 65_536, 300_000, MIB)):
            await stream.send(body)
            assert await stream.receive() == body


async def check_a_handler_knows_who_calls(world: World) -> None:
    async def tell(peer: Peer, stream: MessageStream) -> None:
        assert stream.peer == peer
        await stream.send(peer.peer_id.encode() + b" " + peer.address.encode())

    async with talking(world, tell) as (one, other, stream):
        caller = next(peer for peer in other.peers() if peer.peer_id == one.peer_id)
        assert await stream.receive() == f"{one.peer_id} {caller.address}".encode()


async def check_both_ends_send_and_receive_at_once(world: World) -> None:
    """Ten megabytes each way: neither end reads first, and nobody waits for the other for ever."""
    bodies = messages_of((10_000, 200_000, 70_000, 500_000, 1)) * 13
    got_there: list[bytes] = []

    async def both(stream: MessageStream, got: list[bytes]) -> None:
        async def send_all() -> None:
            for body in bodies:
                await stream.send(body)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            got.extend([await stream.receive() for _ in bodies])

    async def handle(peer: Peer, stream: MessageStream) -> None:
        await both(stream, got_there)

    async with talking(world, handle) as (_, _, stream):
        got_here: list[bytes] = []
        await both(stream, got_here)
        assert got_here == bodies
        await eventually(lambda: got_there == bodies)


async def check_streams_do_not_wait_for_each_other(world: World) -> None:
    async with talking(world, never_read) as (one, other, stuck), trio.open_nursery() as nursery:

        async def push() -> None:
            while True:
                await stuck.send(bytes(100_000))

        nursery.start_soon(push)
        await trio.sleep(SILENCE_S)
        other.handle_streams("/dfl/other/1.0.0", repeat, max_message_bytes=MIB)
        free = await one.open_stream(
            other.peer_id, "/dfl/other/1.0.0", max_message_bytes=MIB, timeout_s=PATIENCE_S
        )
        await free.send(b"past it")
        assert await free.receive() == b"past it"
        nursery.cancel_scope.cancel()


async def check_a_slow_reader_holds_the_sender_back(world: World) -> None:
    reads = trio.Event()
    listener = Listener()

    async def read_late(peer: Peer, stream: MessageStream) -> None:
        await reads.wait()
        await listener.handle(peer, stream)

    bodies = [b"%d" % number + bytes(100_000) for number in range(200)]
    sent: list[bytes] = []
    async with talking(world, read_late) as (_, _, stream), trio.open_nursery() as nursery:

        async def send_all() -> None:
            for body in bodies:
                await stream.send(body)
                sent.append(body)

        nursery.start_soon(send_all)
        await trio.sleep(SILENCE_S)
        assert 0 < len(sent) <= 20
        reads.set()
        await eventually(lambda: listener.heard == bodies)


async def check_a_cancelled_receive_loses_nothing(world: World) -> None:
    bodies = messages_of((300_000, 1_000, 700_000, 5, 900_000)) * 3

    async def send_all(peer: Peer, stream: MessageStream) -> None:
        for body in bodies:
            await stream.send(body)

    async with talking(world, send_all) as (_, _, stream):
        for body in bodies:
            got = None
            while got is None:
                with trio.move_on_after(0.0002):
                    got = await stream.receive()
            assert got == body


async def check_a_cancelled_send_ends_the_stream_and_nothing_else(world: World) -> None:
    reads = trio.Event()
    listener = Listener()

    async def read_late(peer: Peer, stream: MessageStream) -> None:
        await reads.wait()
        await listener.handle(peer, stream)

    async with talking(world, read_late) as (one, other, stream):
        await stream.send(b"whole")
        with trio.move_on_after(SILENCE_S) as scope:
            while True:
                await stream.send(bytes(MIB))
        assert scope.cancelled_caught
        for call in (stream.send(b"x"), stream.receive()):
            with pytest.raises(PeerUnreachable):
                await call
        reads.set()
        await eventually(lambda: listener.end is not None)
        assert isinstance(listener.end, PeerUnreachable)
        assert listener.heard[0] == b"whole"
        assert set(listener.heard[1:]) <= {bytes(MIB)}
        await still_talking(one, other)


async def check_a_silent_peer_is_waited_for_as_long_as_one_likes(world: World) -> None:
    async with talking(world, repeat) as (_, _, stream):
        with trio.move_on_after(SILENCE_S) as scope:
            await stream.receive()
        assert scope.cancelled_caught
        await stream.send(b"awake")
        assert await stream.receive() == b"awake"


async def check_a_stream_ends_with_its_handler(world: World) -> None:
    async def say_two(peer: Peer, stream: MessageStream) -> None:
        await stream.send(b"one")
        await stream.send(bytes(100_000))  # fits into the window: nobody need read it first

    async with talking(world, say_two) as (one, other, stream):
        await trio.sleep(SILENCE_S)
        with pytest.raises(PeerUnreachable):
            await endlessly(lambda: stream.send(b"nobody reads this"))
        assert await stream.receive() == b"one"
        assert await stream.receive() == bytes(100_000)
        for _ in range(2):
            with pytest.raises(PeerUnreachable):
                await stream.receive()
        await stream.aclose()
        await still_talking(one, other)


async def check_what_was_sent_before_closing_arrives(world: World) -> None:
    listener = Listener()
    bodies = messages_of((1, 100_000, 30, 100_000))
    async with talking(world, listener.handle) as (one, other, stream):
        for body in bodies:
            await stream.send(body)
        await stream.aclose()
        await stream.aclose()
        await eventually(lambda: listener.end is not None)
        assert listener.heard == bodies
        assert isinstance(listener.end, PeerUnreachable)
        for call in (stream.send(b"x"), stream.receive()):
            with pytest.raises(PeerUnreachable):
                await call
        await still_talking(one, other)


async def check_closing_wakes_who_waits_on_the_stream(world: World) -> None:
    async with talking(world, never_read) as (_, _, stream):
        ended: list[str] = []

        async def waits(name: str, call: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(PeerUnreachable):
                await endlessly(call)
            ended.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits, "receive", stream.receive)
            nursery.start_soon(waits, "send", lambda: stream.send(bytes(MIB)))
            await trio.sleep(SILENCE_S)
            assert ended == []
            await stream.aclose()
        assert sorted(ended) == ["receive", "send"]


async def check_a_message_over_the_limit_is_misbehaviour(world: World) -> None:
    listener = Listener()
    async with talking(world, listener.handle, max_message_bytes=10) as (one, other, stream):
        await stream.send(bytes(10))
        await stream.send(bytes(11))
        with pytest.raises(PeerUnreachable):
            await stream.receive()
        await eventually(lambda: listener.end is not None)
        assert listener.heard == [bytes(10)]
        assert isinstance(listener.end, PeerMisbehaved)
        await still_talking(one, other)


async def check_ones_own_limit_is_kept(world: World) -> None:
    async with talking(world, repeat) as (one, other, _):
        stream = await open_talk(one, other, max_message_bytes=10)
        with pytest.raises(UsageError):
            await stream.send(bytes(11))
        await stream.send(bytes(10))
        assert await stream.receive() == bytes(10)


async def check_a_failing_stream_handler_hangs_up(world: World) -> None:
    async def fail(peer: Peer, stream: MessageStream) -> None:
        await stream.receive()
        raise RuntimeError("a bug")

    async with talking(world, fail) as (one, other, stream):
        await stream.send(b"x")
        with pytest.raises(PeerUnreachable):
            await stream.receive()
        await still_talking(one, other)
        again = await open_talk(one, other)
        await again.send(b"x")
        with pytest.raises(PeerUnreachable):
            await again.receive()


async def check_streams_to_nobody_and_for_nothing(world: World) -> None:
    async with world.open(3) as (one, other, unknown):
        unknown.handle_streams(TALK, repeat, max_message_bytes=10)
        await one.connect(other.multiaddrs[0])
        for nobody in (unknown, other):
            with pytest.raises(PeerUnreachable):
                await open_talk(one, nobody)
        with pytest.raises(UsageError):
            other.handle_streams("/ours/talk/1.0.0", repeat, max_message_bytes=10)


async def check_streams_of_one_peer_are_limited(world: World) -> None:
    async with talking(world, repeat) as (one, other, stream):
        streams = [stream, *[await open_talk(one, other) for _ in range(MAX_STREAMS - 1)]]
        refused = await open_talk(one, other)
        with pytest.raises(PeerUnreachable):
            await refused.receive()
        for known in streams:
            await known.send(b"x")
            assert await known.receive() == b"x"
        await streams.pop().aclose()

        async def served() -> bool:
            again = await open_talk(one, other)
            try:
                await again.send(b"x")
                return await again.receive() == b"x"
            except PeerUnreachable:  # the place is not free yet
                return False

        while not await served():  # noqa: ASYNC110 - the network sets no event
            await trio.sleep(0.005)


async def check_who_leaves_ends_its_streams(world: World) -> None:
    async with world.open(1) as (one,):
        one.handle_streams(TALK, repeat, max_message_bytes=10)
        async with world.open(1) as (other,):
            listener = Listener()
            other.handle_streams(TALK, listener.handle, max_message_bytes=10)
            await one.connect(other.multiaddrs[0])
            await eventually(lambda: len(other.peers()) == 1)
            ours, theirs = await open_talk(one, other), await open_talk(other, one)
            await theirs.send(b"x")
            assert await theirs.receive() == b"x"
            await ours.send(b"x")
            await eventually(lambda: listener.heard == [b"x"])
        with trio.fail_after(2.0):
            with pytest.raises(PeerUnreachable):
                await ours.receive()
            with pytest.raises(PeerUnreachable):
                await ours.send(b"x")


CHECKS: tuple[Callable[[World], Awaitable[None]], ...] = (
    check_messages_arrive_whole_and_in_order,
    check_a_handler_knows_who_calls,
    check_both_ends_send_and_receive_at_once,
    check_streams_do_not_wait_for_each_other,
    check_a_slow_reader_holds_the_sender_back,
    check_a_cancelled_receive_loses_nothing,
    check_a_cancelled_send_ends_the_stream_and_nothing_else,
    check_a_silent_peer_is_waited_for_as_long_as_one_likes,
    check_a_stream_ends_with_its_handler,
    check_what_was_sent_before_closing_arrives,
    check_closing_wakes_who_waits_on_the_stream,
    check_a_message_over_the_limit_is_misbehaviour,
    check_ones_own_limit_is_kept,
    check_a_failing_stream_handler_hangs_up,
    check_streams_to_nobody_and_for_nothing,
    check_streams_of_one_peer_are_limited,
    check_who_leaves_ends_its_streams,
)
