"""Message streams on real sockets: strangers, dead connections, stopped processes."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.custom_types import TProtocol

from dfl_ledger.errors import PeerMisbehaved, PeerUnreachable, TimedOut
from dfl_node.net.channel import FoundBy, MessageStream, Peer
from dfl_node.net.config import NetLimits
from dfl_node.net.libp2p_channel import open_channel
from tests.conformance.channel import PATIENCE_S, eventually, introduce
from tests.conformance.channel_streams import TALK, Listener, endlessly, open_talk, repeat
from tests.node.net.attack import acquainted, dial, port_of, raw_host, resident_bytes, stream_ends
from tests.node.net.support import config_of
from tests.node.net.test_processes import node

MIB = 1 << 20


def test_its_bytes_are_counted() -> None:
    async def story() -> None:
        async with open_channel(config_of()) as one, open_channel(config_of()) as other:
            other.handle_streams(TALK, repeat, max_message_bytes=MIB)
            await introduce((one, other))
            stream = await open_talk(one, other)
            for _ in range(3):
                await stream.send(bytes(100_000))
                await stream.receive()
            for channel in (one, other):
                traffic = channel.traffic()[TALK]
                assert (traffic.sent, traffic.received) == (3 * 100_004, 3 * 100_004)

    trio.run(story)


def test_a_peer_that_breaks_the_limit_again_and_again_is_refused() -> None:
    async def story() -> None:
        limits = NetLimits(max_strikes=2)
        async with open_channel(config_of(limits=limits)) as victim, open_channel(config_of()) as rude:
            victim.handle_streams(TALK, repeat, max_message_bytes=10)
            await rude.connect(victim.multiaddrs[0], FoundBy.DHT)
            await eventually(lambda: len(victim.peers()) == 1)
            for _ in range(2):
                assert len(victim.peers()) == 1
                stream = await open_talk(rude, victim)
                await stream.send(bytes(11))
                with pytest.raises(PeerUnreachable):
                    await stream.receive()
            await eventually(lambda: victim.peers() == ())
            assert victim.book.refusal(rude.peer_id, trio.current_time())

    trio.run(story)


def test_who_answers_with_too_much_is_struck_too() -> None:
    async def story() -> None:
        async def flood(peer: Peer, stream: MessageStream) -> None:
            await stream.send(bytes(11))
            await stream.receive()

        limits = NetLimits(max_strikes=1)
        async with open_channel(config_of(limits=limits)) as victim, open_channel(config_of()) as rude:
            rude.handle_streams(TALK, flood, max_message_bytes=MIB)
            await victim.connect(rude.multiaddrs[0], FoundBy.DHT)
            stream = await open_talk(victim, rude, max_message_bytes=10)
            with pytest.raises(PeerMisbehaved):
                await stream.receive()
            await eventually(lambda: victim.peers() == ())

    trio.run(story)


def test_a_stranger_reaches_no_handler() -> None:
    async def story() -> None:
        async with open_channel(config_of(limits=NetLimits(hello_s=0.3))) as victim, raw_host() as attacker:
            listener = Listener()
            victim.handle_streams(TALK, listener.handle, max_message_bytes=100)
            target = await dial(attacker, victim)
            stream = await attacker.new_stream(target, [TProtocol(TALK)])
            await stream.write(b"\0\0\0\x01x")
            assert await stream_ends(stream)
            assert (listener.heard, listener.end) == ([], None)

    trio.run(story)


@pytest.mark.parametrize("announced", [b"\xff\xff\xff\xff", b"\x40\x00\x00\x00", b"\x00\x10\x00\x01"])
def test_an_announced_length_takes_no_memory(announced: bytes) -> None:
    async def story() -> None:
        async with acquainted(NetLimits()) as (victim, attacker, target):
            listener = Listener()
            victim.handle_streams(TALK, listener.handle, max_message_bytes=MIB)
            before = resident_bytes()
            stream = await attacker.new_stream(target, [TProtocol(TALK)])
            await stream.write(announced + bytes(100))
            assert await stream_ends(stream)
            assert isinstance(listener.end, PeerMisbehaved)
            assert resident_bytes() - before < 16 * MIB

    trio.run(story)


def test_a_message_that_never_ends_is_no_violation_and_blocks_nobody() -> None:
    async def story() -> None:
        async with acquainted(NetLimits(max_strikes=1)) as (victim, attacker, target):
            listener = Listener()
            victim.handle_streams(TALK, listener.handle, max_message_bytes=MIB)
            stream = await attacker.new_stream(target, [TProtocol(TALK)])
            await stream.write(b"\0\0\0\x0aabc")
            await stream.close()  # as a peer does whose sender was cancelled
            await eventually(lambda: listener.end is not None)
            assert isinstance(listener.end, PeerUnreachable)
            assert listener.heard == []
            assert len(victim.peers()) == 1

    trio.run(story)


class Cable:
    """A TCP connection that can be cut without a word: nothing more goes through, nobody is told."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.is_cut = False

    async def pass_on(self, client: trio.SocketStream) -> None:
        async with (
            await trio.open_tcp_stream("127.0.0.1", self.target_port) as server,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._pump, client, server)
            nursery.start_soon(self._pump, server, client)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for chunk in source:
                if self.is_cut:
                    await trio.sleep_forever()
                await sink.send_all(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await source.aclose()
        await sink.aclose()


@asynccontextmanager
async def connected_by_cable(limits: NetLimits) -> AsyncIterator[tuple[MessageStream, Cable]]:
    """A stream that goes through a cable to a peer that repeats; `limits` are those of the calling side."""
    async with (
        open_channel(config_of(limits=limits)) as one,
        open_channel(config_of()) as other,
        trio.open_nursery() as nursery,
    ):
        other.handle_streams(TALK, repeat, max_message_bytes=MIB)
        cable = Cable(port_of(other))
        listeners = await nursery.start(trio.serve_tcp, cable.pass_on, 0)
        port = listeners[0].socket.getsockname()[1]
        await one.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{other.peer_id}", FoundBy.DHT)
        stream = await open_talk(one, other)
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        yield stream, cable
        nursery.cancel_scope.cancel()


QUICK_PINGS = NetLimits(ping_s=0.2, ping_timeout_s=0.2)


def test_a_cut_connection_ends_its_streams_when_a_ping_is_lost() -> None:
    async def story() -> None:
        async with connected_by_cable(QUICK_PINGS) as (stream, cable):
            cable.is_cut = True
            with trio.fail_after(PATIENCE_S):
                with pytest.raises(PeerUnreachable):
                    await stream.receive()
                with pytest.raises(PeerUnreachable):
                    await stream.send(b"x")

    trio.run(story)


def test_a_time_limit_bounds_every_wait_on_a_cut_connection() -> None:
    async def story() -> None:
        async with connected_by_cable(NetLimits()) as (stream, cable):
            cable.is_cut = True
            for call in (stream.receive, lambda: stream.send(bytes(MIB)), stream.aclose):
                started = trio.current_time()
                with trio.move_on_after(0.2):
                    await call()
                assert trio.current_time() - started < 0.5

    trio.run(story)


def test_a_stopped_process_is_bounded_by_time_limits_and_found_out_by_pings() -> None:
    async def story() -> None:
        async with node(9_011) as other, open_channel(config_of(limits=QUICK_PINGS)) as channel:
            peer = await channel.connect((await other.says())["addr"], FoundBy.DHT)
            stream = await channel.open_stream(
                peer.peer_id, TALK, max_message_bytes=MIB, timeout_s=PATIENCE_S
            )
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            os.kill(other.process.pid, signal.SIGSTOP)
            started = trio.current_time()
            with trio.move_on_after(0.1):
                await stream.receive()
            with pytest.raises((TimedOut, PeerUnreachable)):
                await channel.open_stream(peer.peer_id, TALK, max_message_bytes=MIB, timeout_s=0.1)
            assert trio.current_time() - started < 0.5
            with trio.fail_after(PATIENCE_S), pytest.raises(PeerUnreachable):
                await endlessly(lambda: stream.send(bytes(MIB)))
            os.kill(other.process.pid, signal.SIGCONT)

    trio.run(story)


def test_a_killed_process_ends_its_streams_at_once() -> None:
    async def story() -> None:
        async with node(9_012) as other, open_channel(config_of()) as channel:
            peer = await channel.connect((await other.says())["addr"], FoundBy.DHT)
            stream = await channel.open_stream(
                peer.peer_id, TALK, max_message_bytes=MIB, timeout_s=PATIENCE_S
            )
            other.process.kill()
            with trio.fail_after(2.0), pytest.raises(PeerUnreachable):
                await stream.receive()
            with trio.fail_after(2.0), pytest.raises(PeerUnreachable):
                await stream.send(b"x")

    trio.run(story)
