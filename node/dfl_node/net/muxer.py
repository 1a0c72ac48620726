"""Yamux that bounds what a peer makes us hold, and whose calls may be cancelled at any point.

https://github.com/hashicorp/yamux/blob/master/spec.md. Frames and streams are the library's; how bytes enter
and leave a connection is ours, because of what the library (py-libp2p 0.8.1) does:

- a write that is cancelled half-way leaves a torn TLS record behind, which ends the connection for everybody
  on it. Here one task a connection writes, and only waiting for it can be cancelled;
- a read that is cancelled while it gives credit back loses the bytes it took;
- a writer that found no window polls for it, and fails after five seconds. A slow reader is no error;
- every read sends a window update of its own.
"""

from __future__ import annotations

import struct
from collections import deque
from contextlib import suppress

import structlog
import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux as library
from libp2p.stream_muxer.yamux.yamux import GO_AWAY_NORMAL, TYPE_DATA, TYPE_WINDOW_UPDATE, Yamux, YamuxStream
from multiaddr import Multiaddr

from .config import NetLimits
from .gate import Seat
from .services import shielded

log = structlog.get_logger(__name__)

_HEADER = struct.Struct(library.YAMUX_HEADER_FORMAT)  # version, type, flags, stream id, length
_BODY_BYTES = library.MAX_MESSAGE_SIZE - _HEADER.size  # of one frame
_BATCH_BYTES = library.MAX_MESSAGE_SIZE  # frames that are written together
_QUEUE_BYTES = 4 * _BATCH_BYTES  # a connection's frames that wait for its socket
_OVERDUE_BYTES = 64 << 10  # of answers to a peer that only asks and never reads
_GOODBYE_S = 0.3
_QUICK_RTTS = 4  # a window that is used up faster than this is too small (as in go-yamux)


class BufferBudget:
    """Unread bytes of all connections together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._connections: set[BoundedYamux] = set()

    def add(self, connection: BoundedYamux) -> None:
        self._connections.add(connection)

    def remove(self, connection: BoundedYamux) -> None:
        self._connections.discard(connection)

    def allows(self, more_bytes: int) -> bool:
        held = sum(connection.buffered_bytes() for connection in self._connections)
        return held + more_bytes <= self._max_bytes


class WindowedStream(YamuxStream):
    """A stream whose writer sleeps until there is window, and whose reads lose nothing."""

    conn: BoundedYamux

    def __init__(self, stream_id: int, conn: BoundedYamux, is_initiator: bool) -> None:
        self._changed = trio.lowlevel.ParkingLot()
        self._uncredited = 0  # bytes read since the last window update
        super().__init__(stream_id, conn, is_initiator)

    # The library's frame loop sets these two; a writer waits for either.

    @property
    def send_window(self) -> int:
        return self._send_window

    @send_window.setter
    def send_window(self, value: int) -> None:
        self._send_window = value
        self._changed.unpark_all()

    @property
    def closed(self) -> bool:
        return self._closed

    @closed.setter
    def closed(self, value: bool) -> None:
        self._closed = value
        self._changed.unpark_all()

    async def write(self, data: bytes) -> None:
        """Returns when everything is queued. Cancelled or failed, it may have sent a part."""
        view = memoryview(data)
        sent = 0
        while sent < len(view):
            await self.conn.room()
            if self.closed or self.send_closed or self.conn.is_speechless:
                raise MuxedStreamClosed("the stream is closed for sending")
            size = min(self.send_window, _BODY_BYTES, len(view) - sent)
            if size <= 0:
                await self._changed.park()
                continue
            header = _HEADER.pack(0, TYPE_DATA, 0, self.stream_id, size)
            self.conn.enqueue(b"".join((header, view[sent : sent + size])))
            self._send_window -= size
            sent += size

    async def read(self, n: int | None = -1) -> bytes:
        """Up to n bytes as soon as there are any; what had arrived before the stream's end still comes."""
        await trio.lowlevel.checkpoint()
        while True:
            buffer = self.conn.stream_buffers.get(self.stream_id)
            if buffer:
                return self._take(buffer, len(buffer) if n is None or n < 0 else n)
            if self.reset_received:
                raise MuxedStreamReset("the stream was reset")
            event = self.conn.stream_events.get(self.stream_id)
            if buffer is None or event is None or self.recv_closed:
                raise MuxedStreamEOF("the stream has ended")
            if self.closed:
                raise MuxedStreamReset("the stream is closed")
            await event.wait()
            if self.stream_id in self.conn.stream_events:
                self.conn.stream_events[self.stream_id] = trio.Event()

    async def reset(self) -> None:
        event = self.conn.stream_events.get(self.stream_id)
        await super().reset()
        if event is not None:
            event.set()  # a reader of ours, which the library forgets

    def _take(self, buffer: bytearray, n: int) -> bytes:
        # Nothing in here waits: bytes that have left the buffer reach the caller.
        data = bytes(memoryview(buffer)[:n])
        del buffer[:n]
        self._uncredited += len(data)
        if self._uncredited >= self.target_recv_window // 2 and not self.recv_closed:
            self._give_credit()
        return data

    def _give_credit(self) -> None:
        now = trio.current_time()
        credit = self._uncredited
        if now - self.epoch_start < _QUICK_RTTS * self._effective_rtt():
            grown = min(2 * self.target_recv_window, self.conn.limits.max_window_bytes)
            credit += grown - self.target_recv_window
            self.target_recv_window = grown
        self.epoch_start = now
        self._uncredited = 0
        self.recv_window += credit
        with suppress(RawConnError):  # nobody is left to tell
            self.conn.enqueue(_HEADER.pack(0, TYPE_WINDOW_UPDATE, 0, self.stream_id, credit))


class BoundedYamux(Yamux):
    """A connection that bounds what it holds in both directions, and whose failure closes nothing else."""

    def __init__(self, conn: ISecureConn, peer_id: ID, budget: BufferBudget, limits: NetLimits) -> None:
        super().__init__(conn, peer_id, is_initiator=conn.is_initiator, on_close=_nothing)
        self.seat: Seat | None = None  # set for inbound sockets
        self.limits = limits
        self._budget = budget
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0  # what is being written included
        self._queued = trio.lowlevel.ParkingLot()  # the writer, when it has nothing to do
        self._written = trio.lowlevel.ParkingLot()  # who waits for room
        self.is_speechless = False  # nothing can be sent any more
        self._writer: trio.CancelScope | None = None

    def buffered_bytes(self) -> int:
        return sum(map(len, self.stream_buffers.values()))

    @property
    def raw_connection(self) -> IRawConnection | None:
        """What TLS or noise runs over: a socket, or a relay's stream."""
        return getattr(self.secured_conn, "raw_connection", None)

    @property
    def is_relayed(self) -> bool:
        raw = self.raw_connection
        return raw is not None and raw.get_connection_type() == ConnectionType.RELAYED

    def get_transport_addresses(self) -> list[Multiaddr]:
        raw = self.raw_connection
        return raw.get_transport_addresses() if raw is not None else []

    def get_connection_type(self) -> ConnectionType:
        raw = self.raw_connection
        return raw.get_connection_type() if raw is not None else ConnectionType.UNKNOWN

    async def start(self) -> None:
        self._budget.add(self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_queued)
                await super().start()
                nursery.cancel_scope.cancel()
        except Exception as error:
            with shielded(1.0):
                await self.close()
            raise RawConnError(f"multiplexer of {self.peer_id} failed: {error!r:.200}") from error
        finally:
            self._budget.remove(self)

    async def close(self, error_code: int = GO_AWAY_NORMAL) -> None:
        """Say goodbye behind whatever is still queued, if the peer takes it; then hang up."""
        if self._writer is not None and not self.is_speechless and not self.event_shutting_down.is_set():
            self.enqueue(_HEADER.pack(0, library.TYPE_GO_AWAY, 0, 0, error_code))
            with trio.move_on_after(_GOODBYE_S):
                while self._outgoing_bytes and not self.is_speechless:
                    await self._written.park()
        self._fall_silent()
        await super().close(error_code)

    # What goes out

    async def room(self) -> None:
        """Wait until the queue takes a frame, or none ever again."""
        await trio.lowlevel.checkpoint()
        while self._outgoing_bytes >= _QUEUE_BYTES and not self.is_speechless:
            await self._written.park()

    def enqueue(self, frame: bytes) -> None:
        """Frames with a body ask for `room` first; the others, twelve bytes each, need not."""
        if self.is_speechless:
            raise RawConnError("connection closed")
        self._outgoing.append(frame)
        self._outgoing_bytes += len(frame)
        self._queued.unpark()
        if self._outgoing_bytes > _QUEUE_BYTES + _BATCH_BYTES + _OVERDUE_BYTES and self._writer is not None:
            self._writer.cancel()  # a peer that makes us answer, and does not read

    async def _write_frame(self, data: bytes) -> None:
        # The library's own frames: they open and close streams, and answer pings.
        self.enqueue(data)

    async def _write_queued(self) -> None:
        try:
            with trio.CancelScope() as self._writer:
                while not self.is_speechless:
                    if not self._outgoing:
                        await self._queued.park()
                        continue
                    batch = self._next_batch()
                    with trio.fail_after(self.limits.stalled_s):
                        await self.secured_conn.write(batch)
                    self._outgoing_bytes -= len(batch)
                    self._written.unpark_all()
        except Exception as error:
            log.debug("cannot write to a peer", peer=str(self.peer_id), error=repr(error)[:200])
        finally:
            # A record may be torn: nothing more can be said on this connection. The frame loop, which reads,
            # finds the socket closed and tidies up.
            self._fall_silent()
            with shielded(1.0), suppress(Exception):
                await self.secured_conn.close()

    def _next_batch(self) -> bytes:
        batch = [self._outgoing.popleft()]
        size = len(batch[0])
        while self._outgoing and size + len(self._outgoing[0]) <= _BATCH_BYTES:
            batch.append(self._outgoing.popleft())
            size += len(batch[-1])
        return b"".join(batch) if len(batch) > 1 else batch[0]

    def _fall_silent(self) -> None:
        self.is_speechless = True
        self._outgoing.clear()
        self._queued.unpark_all()
        self._written.unpark_all()

    # What comes in

    async def _read_data_body(self, length: int) -> bytes:
        # The library only logs a peer that sends beyond its window, and keeps the bytes. It also logs an
        # error in here and reads on, taking the frame's body for headers: so hang up first.
        if length > self.limits.max_frame_bytes:
            await self._cleanup_on_error()
            raise RawConnError(f"a frame of {length} bytes")
        if not self._budget.allows(length):
            await self._cleanup_on_error()
            raise RawConnError("unread bytes fill the budget of all connections")
        return await super()._read_data_body(length)


async def _nothing() -> None:
    return


def _stream_of(stream_id: int, conn: Yamux, is_initiator: bool) -> YamuxStream:
    if isinstance(conn, BoundedYamux):
        return WindowedStream(stream_id, conn, is_initiator)
    return YamuxStream(stream_id, conn, is_initiator)


# The library makes its streams by this name in two places, and offers no other way to say which.
library.YamuxStream = _stream_of  # type: ignore[misc,assignment]
