"""The lines of every run on this node: who calls in is connected to the run it means.

A control line goes from a conductor to a member, a data line to a port of a stage. Both are persistent
message streams of the `Channel`; between a node and itself they are a pair of queues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import structlog
import trio

from dfl_ledger.errors import DflError, PeerUnreachable, VerificationFailed
from dfl_ledger.records import Address, JobId
from dfl_node.modes.pipeline import frames, messages
from dfl_node.modes.pipeline.messages import Ask, Call, Offer, Opening, pack, unpack
from dfl_node.modes.pipeline.plan import Finish, RunId
from dfl_node.net.channel import Channel, MessageStream, Peer

log = structlog.get_logger(__name__)

CONTROL = "/dfl/pipeline/control/1.0.0"
DATA = "/dfl/pipeline/data/1.0.0"
OPENING_S = 10.0  # for a caller's first message, and for the run it means to begin here
DIAL_S = 10.0
MAX_REMEMBERED = 16  # ended runs whose end we can still tell


class Line(Protocol):
    """Whole messages, in order, both ways. Raises DflError once the other end is gone."""

    async def send(self, body: bytes) -> None: ...

    async def receive(self) -> bytes: ...

    async def aclose(self) -> None: ...


class Attendant(Protocol):
    """A run's ear on this node. The line ends when the call returns."""

    async def on_control(self, node: Address, ask: Ask, line: Line) -> None: ...

    async def on_data(self, node: Address, call: Call, line: Line) -> None: ...


class Lines:
    """One per node."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._attendants: dict[RunId, Attendant] = {}
        self._ends: dict[RunId, Finish] = {}
        self._ended: deque[RunId] = deque()
        self._begun = trio.Event()
        channel.handle_streams(CONTROL, self._on_control, max_message_bytes=messages.MAX_CONTROL_BYTES)
        channel.handle_streams(DATA, self._on_data, max_message_bytes=frames.MAX_FRAME_BYTES)

    # -- our own calls --------------------------------------------------------------------------------
    def connected(self) -> frozenset[Address]:
        return frozenset(peer.address for peer in self._channel.peers())

    async def open(self, node: Address, opening: Opening) -> Line:
        """Call a connected node. Raises DflError."""
        for peer in self._channel.peers():
            if peer.address == node:
                protocol, limit = (
                    (CONTROL, messages.MAX_CONTROL_BYTES)
                    if isinstance(opening, Ask)
                    else (DATA, frames.MAX_FRAME_BYTES)
                )
                line = await self._channel.open_stream(
                    peer.peer_id, protocol, max_message_bytes=limit, timeout_s=DIAL_S
                )
                try:
                    await line.send(pack(opening))
                except BaseException:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                        await line.aclose()
                    raise
                return line
        raise PeerUnreachable(f"node {node} is not connected", why="no verified connection")

    # -- calls from others ----------------------------------------------------------------------------
    @contextmanager
    def attend(self, run: RunId, attendant: Attendant) -> Iterator[None]:
        """Calls for this run go to `attendant` as long as the context is open."""
        self._attendants[run] = attendant
        self._begun.set()
        self._begun = trio.Event()
        try:
            yield
        finally:
            del self._attendants[run]

    def remember(self, run: RunId, finish: Finish) -> None:
        """How a run ended, for a conductor that has not heard of it."""
        if run not in self._ends:
            self._ended.append(run)
            if len(self._ended) > MAX_REMEMBERED:
                del self._ends[self._ended.popleft()]
        self._ends[run] = finish

    def ended(self, run: RunId) -> Finish | None:
        return self._ends.get(run)

    async def _on_control(self, peer: Peer, stream: MessageStream) -> None:
        await self._answer(peer, stream, Ask)

    async def _on_data(self, peer: Peer, stream: MessageStream) -> None:
        await self._answer(peer, stream, Call)

    async def _answer(self, peer: Peer, stream: MessageStream, expected: type[Ask] | type[Call]) -> None:
        """Never raises DflError: what a caller does wrong ends its call and nothing else."""
        try:
            opening = None
            with trio.move_on_after(OPENING_S):
                opening = unpack(await stream.receive())
            if opening is None:
                return
            if not isinstance(opening, expected):
                raise VerificationFailed("a call begins with another message", why=type(opening).__name__)
            run = RunId(JobId(opening.job), opening.round, opening.parent)
            attendant = await self._wait_for(run)
            if attendant is None:
                if isinstance(opening, Ask) and run in self._ends:
                    await self._tell_end(stream, self._ends[run])
            elif isinstance(opening, Ask):
                await attendant.on_control(peer.address, opening, stream)
            else:
                await attendant.on_data(peer.address, opening, stream)
        except DflError as failure:
            log.debug("a pipeline's line ended", peer=peer.peer_id, why=str(failure))

    async def _wait_for(self, run: RunId) -> Attendant | None:
        """A conductor may be a moment ahead of us in seeing the round open."""
        with trio.move_on_after(OPENING_S):
            while run not in self._attendants and run not in self._ends:
                await self._begun.wait()
        return self._attendants.get(run)

    async def _tell_end(self, stream: MessageStream, finish: Finish) -> None:
        offer = Offer(
            epoch=finish.epoch, memory_bytes=0, speed=0.0, point=finish.point, finish=finish, turns=()
        )
        await stream.send(pack(offer))
        with trio.move_on_after(OPENING_S):
            await stream.receive()  # until the caller has read it and hangs up


class _LocalLine:
    """One end of a line between a node and itself."""

    def __init__(self, out: trio.MemorySendChannel[bytes], into: trio.MemoryReceiveChannel[bytes]) -> None:
        self._out, self._in = out, into

    async def send(self, body: bytes) -> None:
        try:
            await self._out.send(body)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as gone:
            raise _hung_up() from gone

    async def receive(self) -> bytes:
        try:
            return await self._in.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as gone:
            raise _hung_up() from gone

    async def aclose(self) -> None:
        self._out.close()
        self._in.close()
        await trio.lowlevel.checkpoint()


def local_pair(buffered: int = 8) -> tuple[Line, Line]:
    """Both ends of a line that stays on this node."""
    here, there = trio.open_memory_channel[bytes](buffered), trio.open_memory_channel[bytes](buffered)
    return _LocalLine(here[0], there[1]), _LocalLine(there[0], here[1])


def _hung_up() -> PeerUnreachable:
    return PeerUnreachable("the other end of a line on this node hung up")


async def close(line: Line) -> None:
    """Hang up, within a second, also when cancelled."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1), suppress(DflError):
        await line.aclose()
