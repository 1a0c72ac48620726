"""Our end of yamux, in virtual time, over pipes that take a byte only when somebody reads it."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError
from trio.testing import MockClock, lockstep_stream_pair

from dfl_node.net.config import NetLimits
from dfl_node.net.muxer import BoundedYamux, BufferBudget, WindowedStream
from tests.node.net.support import seed_of

HEADER = struct.Struct("!BBHII")
DATA, WINDOW, PING = 0, 1, 2  # kinds of frames
SYN = 1
LIMITS = NetLimits(stalled_s=5.0)
BODY = seed_of(1) * (1 << 15)  # 1 MiB


class Secured:
    """What a multiplexer runs over, and how it was used."""

    def __init__(self, pipe: Any, is_initiator: bool) -> None:
        self.pipe = pipe
        self.is_initiator = is_initiator
        self.writes: list[bytes] = []
        self.closed = False

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.pipe.receive_some(n))

    async def write(self, data: bytes) -> None:
        self.writes.append(data)
        await self.pipe.send_all(data)

    async def close(self) -> None:
        self.closed = True
        await self.pipe.aclose()

    def frames(self, kind: int) -> int:
        """How many frames of a kind were written."""
        count, at, raw = 0, 0, b"".join(self.writes)
        while at < len(raw):
            _, found, _, _, length = HEADER.unpack_from(raw, at)
            count += found == kind
            at += HEADER.size + (length if found == DATA else 0)
        return count


def muxer(pipe: Any, *, is_initiator: bool) -> tuple[BoundedYamux, Secured]:
    secured = Secured(pipe, is_initiator)
    peer_id = ID(b"peer")
    budget = BufferBudget(LIMITS.max_buffered_bytes)
    return BoundedYamux(cast(Any, secured), peer_id, budget, LIMITS), secured


@asynccontextmanager
async def stream_pair() -> AsyncIterator[tuple[WindowedStream, WindowedStream, Secured]]:
    """Both ends of a stream, and what the second end's multiplexer wrote."""
    one_pipe, other_pipe = lockstep_stream_pair()
    (one, _), (other, secured) = muxer(one_pipe, is_initiator=True), muxer(other_pipe, is_initiator=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.start)
        nursery.start_soon(other.start)
        await one.event_started.wait()
        near = await one.open_stream()
        far = await other.accept_stream()
        yield cast(WindowedStream, near), cast(WindowedStream, far), secured
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def rude_peer() -> AsyncIterator[tuple[BoundedYamux, Secured, Any]]:
    """A multiplexer, and the bare pipe of a peer that reads only what the test reads."""
    ours, theirs = lockstep_stream_pair()
    mux, secured = muxer(ours, is_initiator=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        await mux.event_started.wait()
        yield mux, secured, theirs
        nursery.cancel_scope.cancel()


async def read_exactly(stream: WindowedStream, size: int) -> bytes:
    body = b""
    while len(body) < size:
        body += await stream.read(size - len(body))
    return body


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(10_000):
            await story()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_slow_reader_is_no_error() -> None:
    async def story() -> None:
        async with stream_pair() as (near, far, _), trio.open_nursery() as nursery:
            nursery.start_soon(near.write, BODY)
            await trio.sleep(3_600)
            assert await read_exactly(far, len(BODY)) == BODY
            assert trio.current_time() < 3_601

    run(story)


def test_a_window_bounds_what_nobody_reads() -> None:
    async def story() -> None:
        async with stream_pair() as (near, far, _), trio.open_nursery() as nursery:
            nursery.start_soon(near.write, BODY)
            await trio.sleep(60)
            assert far.conn.buffered_bytes() == 256 << 10
            nursery.cancel_scope.cancel()

    run(story)


def test_a_quick_reader_gets_a_larger_window_up_to_the_limit() -> None:
    async def story() -> None:
        async with stream_pair() as (near, far, _), trio.open_nursery() as nursery:
            nursery.start_soon(near.write, BODY * 12)
            await read_exactly(far, 12 * len(BODY))
            assert far.target_recv_window == LIMITS.max_window_bytes

    run(story)


def test_small_reads_do_not_each_tell_the_sender() -> None:
    async def story() -> None:
        async with stream_pair() as (near, far, secured), trio.open_nursery() as nursery:
            nursery.start_soon(near.write, BODY)
            for _ in range(1024):
                await read_exactly(far, 1024)
            assert secured.frames(WINDOW) <= 1 + 8  # the stream's acknowledgement, and half windows

    run(story)


def test_small_frames_that_wait_are_written_together() -> None:
    async def story() -> None:
        async with rude_peer() as (mux, secured, peer), trio.open_nursery() as nursery:
            stream = await mux.open_stream()
            for _ in range(100):
                await stream.write(bytes(1_000))
            nursery.start_soon(_drain, peer)
            await trio.sleep(1)
            assert secured.frames(DATA) == 100
            assert len(secured.writes) <= 4
            nursery.cancel_scope.cancel()

    run(story)


@pytest.mark.parametrize("steps", range(6))
def test_a_cancelled_read_loses_nothing(steps: int) -> None:
    """Cancelled after any number of turns of the event loop."""

    async def story() -> None:
        async with stream_pair() as (near, far, _), trio.open_nursery() as nursery:
            nursery.start_soon(near.write, BODY)
            got = b""
            while len(got) < len(BODY):
                with trio.CancelScope() as scope:
                    nursery.start_soon(_cancel_after, steps, scope)
                    got += await far.read(100_000)
                got += await far.read(1) if len(got) < len(BODY) else b""
            assert got == BODY

    run(story)


async def _cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def _drain(pipe: Any) -> None:
    while await pipe.receive_some(1 << 20):
        pass


def test_a_cancelled_write_tears_no_frame() -> None:
    async def story() -> None:
        async with rude_peer() as (mux, _, peer):
            stream = await mux.open_stream()
            with trio.move_on_after(1.0) as scope:
                await stream.write(BODY)
            assert scope.cancelled_caught
            raw = bytearray()
            with trio.move_on_after(1.0):
                while True:
                    raw += await peer.receive_some(1 << 20)
            at = sent = 0
            while at < len(raw):
                _, kind, _, _, length = HEADER.unpack_from(raw, at)
                at += HEADER.size + (length if kind == DATA else 0)
                sent += length if kind == DATA else 0
            assert at == len(raw)
            assert 0 < sent <= 256 << 10
            assert not mux.is_closed

    run(story)


def test_a_socket_that_takes_nothing_is_given_up() -> None:
    async def story() -> None:
        async with rude_peer() as (mux, secured, _):
            stream = await mux.open_stream()
            started = trio.current_time()
            with pytest.raises(MuxedStreamError):
                await stream.write(BODY)
            assert trio.current_time() - started == pytest.approx(LIMITS.stalled_s)
            await trio.sleep(1)
            assert secured.closed
            assert mux.is_closed

    run(story)


def test_a_peer_that_only_asks_and_never_reads_is_hung_up_on() -> None:
    async def story() -> None:
        async with rude_peer() as (_, secured, peer):
            started = trio.current_time()
            with pytest.raises(trio.BrokenResourceError):
                await peer.send_all(HEADER.pack(0, PING, SYN, 0, 1) * 100_000)
            assert secured.closed
            assert trio.current_time() - started < LIMITS.stalled_s

    run(story)


def test_closing_first_sends_what_is_queued() -> None:
    async def story() -> None:
        async with stream_pair() as (near, far, _):
            await near.write(BODY[:200_000])
            closing = near.conn.close
            async with trio.open_nursery() as nursery:
                nursery.start_soon(closing)
                assert await read_exactly(far, 200_000) == BODY[:200_000]

    run(story)
