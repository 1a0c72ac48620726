"""The twin's message streams: two queues, with the window, the order and the ends of the real ones."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import trio

from dfl_ledger.errors import PeerMisbehaved

from .channel import Peer, PeerId
from .memory_links import Links
from .wire import check_message, ended

WINDOW_BYTES = 256 << 10  # unread bytes beyond which a sender waits


@dataclass(slots=True, eq=False)
class Pipe:
    """One direction."""

    source: PeerId
    target: PeerId
    arriving: deque[tuple[float, bytes | None]] = field(default_factory=deque)  # (due at, message or end)
    unread_bytes: int = 0
    reader_gone: bool = False
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class Wire:
    """What the two ends of one stream share."""

    def __init__(self, links: Links, one: PeerId, other: PeerId) -> None:
        self.links = links
        self.peers = (one, other)
        self.pipes = (Pipe(one, other), Pipe(other, one))
        self.broken = ""  # why nothing more can be sent
        self.lossy = False  # a message is missing: what follows may not be read

    def end_for(self, me: PeerId, peer: Peer, max_message_bytes: int) -> MemoryStream:
        out, into = self.pipes if me == self.peers[0] else self.pipes[::-1]
        return MemoryStream(self, out, into, peer, max_message_bytes)

    @property
    def is_over(self) -> bool:
        """Nobody waits for anything on it."""
        silent = bool(self.broken) and not any(pipe.arriving for pipe in self.pipes)
        return silent or all(pipe.reader_gone for pipe in self.pipes)

    def carry(self, pipe: Pipe, body: bytes | None) -> None:
        pipe.unread_bytes += len(body or b"")
        if self.links.lose(pipe.source, pipe.target):
            self.lossy = True
            return
        due_s = trio.current_time() + self.links.delay_s(pipe.source, pipe.target)
        if pipe.arriving:
            due_s = max(due_s, pipe.arriving[-1][0])
        pipe.arriving.append((due_s, body))
        pipe.changed.unpark_all()

    def tear(self, why: str) -> None:
        """Nothing more can be sent either way; what was sent whole still arrives."""
        self.broken = self.broken or why
        self.wake()

    def cut(self, why: str) -> None:
        """The connection is gone, with what was under way."""
        for pipe in self.pipes:
            pipe.arriving.clear()
        self.tear(why)

    def wake(self) -> None:
        for pipe in self.pipes:
            pipe.changed.unpark_all()


class MemoryStream:
    """See `MessageStream`."""

    def __init__(self, wire: Wire, out: Pipe, into: Pipe, peer: Peer, max_message_bytes: int) -> None:
        self._wire = wire
        self._out = out
        self._into = into
        self._peer = peer
        self._max_message_bytes = max_message_bytes
        self._sending = trio.Lock()
        self._receiving = trio.Lock()

    @property
    def peer(self) -> Peer:
        return self._peer

    async def send(self, body: bytes) -> None:
        check_message(body, self._max_message_bytes)
        async with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_writable()
            self._wire.carry(self._out, body)
            try:
                while self._out.unread_bytes > WINDOW_BYTES:
                    await self._out.changed.park()
                    self._check_writable()
            except trio.Cancelled:
                if self._out.arriving and self._out.arriving[-1][1] is body:
                    self._out.arriving.pop()
                self._end("a message was cut off while it was sent")
                raise

    async def receive(self) -> bytes:
        async with self._receiving:
            await trio.lowlevel.checkpoint()
            while True:
                self._check_mine()
                if self._into.arriving and not self._is_held:
                    due_s = self._into.arriving[0][0]
                    if due_s <= trio.current_time():
                        return self._take()
                    with trio.move_on_at(due_s):
                        await self._into.changed.park()
                    continue
                if self._wire.broken and not self._into.arriving:
                    raise ended(self._peer.peer_id, self._wire.broken)
                await self._into.changed.park()

    async def aclose(self) -> None:
        if not self._into.reader_gone:
            if self._sending.locked():
                self._end("a message was cut off while it was sent")
            self._into.reader_gone = True
            self._wire.carry(self._out, None)
            self._wire.wake()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _take(self) -> bytes:
        body = self._into.arriving[0][1]
        if body is None:
            raise ended(self._peer.peer_id, "the other side has closed it")
        if len(body) > self._max_message_bytes:
            why = f"a frame of {len(body)} bytes where at most {self._max_message_bytes} are allowed"
            self._end(why)
            raise PeerMisbehaved(self._peer.peer_id, why)
        self._into.arriving.popleft()
        self._into.unread_bytes -= len(body)
        self._into.changed.unpark_all()
        return body

    def _end(self, why: str) -> None:
        self._into.reader_gone = True
        self._wire.tear(why)

    @property
    def _is_held(self) -> bool:
        return self._wire.links.hold(*self._wire.peers)

    def _check_mine(self) -> None:
        if self._into.reader_gone:
            raise ended(self._peer.peer_id, self._wire.broken or "this side has closed it")

    def _check_writable(self) -> None:
        self._check_mine()
        if self._wire.broken:
            raise ended(self._peer.peer_id, self._wire.broken)
        told = not self._is_held and not self._wire.links.lose(*self._wire.peers)
        if self._out.reader_gone and told:
            raise ended(self._peer.peer_id, "the other side has closed it")
