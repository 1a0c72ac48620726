"""Message streams over libp2p: one libp2p stream each, as long as two peers have things to tell each other.

A request pays for a stream's opening, some 10 ms of computing, with every message; a stream pays once.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamClosed

from dfl_ledger.errors import DflError, PeerMisbehaved, PeerUnreachable, TimedOut

from .channel import MessageStream, Peer, PeerId, StreamHandler
from .host import NodeHost
from .peerbook import PeerBook
from .requests import OnViolation
from .services import shielded
from .wire import FrameReader, WireError, check_message, ended, write_frame

log = structlog.get_logger(__name__)


class Libp2pStream:
    """See `MessageStream`."""

    def __init__(
        self, stream: INetStream, peer: Peer, max_message_bytes: int, on_violation: OnViolation
    ) -> None:
        self._stream = stream
        self._peer = peer
        self._max_message_bytes = max_message_bytes
        self._on_violation = on_violation
        self._frames = FrameReader(stream, max_message_bytes)
        self._sending = trio.Lock()
        self._receiving = trio.Lock()
        self._over = ""  # why this side ended the stream

    @property
    def peer(self) -> Peer:
        return self._peer

    async def send(self, body: bytes) -> None:
        check_message(body, self._max_message_bytes)
        async with self._sending:
            self._check_open()
            try:
                await write_frame(self._stream, body)
            except StreamClosed as closed:
                # By the other side: what it sent before can still be received.
                raise ended(self._peer.peer_id, "the other side has closed it") from closed
            except BaseException as error:
                await self._end("a message was cut off while it was sent")
                if isinstance(error, Exception):
                    raise ended(self._peer.peer_id, repr(error)[:200]) from error
                raise

    async def receive(self) -> bytes:
        async with self._receiving:
            self._check_open()
            try:
                return await self._frames.read()
            except WireError as bad:
                await self._end(str(bad))
                await self._on_violation(self._peer.peer_id, str(bad))
                raise PeerMisbehaved(self._peer.peer_id, str(bad)) from bad
            except Exception as error:
                await self._end("the other side has closed it, or the connection is lost")
                raise ended(self._peer.peer_id, self._over) from error

    async def aclose(self) -> None:
        if not self._over:
            with shielded(1.0), suppress(Exception):
                if not self._sending.locked():
                    await self._stream.close()  # behind what was sent
            await self._end("this side has closed it")

    def _check_open(self) -> None:
        if self._over:
            raise ended(self._peer.peer_id, self._over)

    async def _end(self, why: str) -> None:
        self._over = self._over or why
        with shielded(1.0):
            await self._stream.reset()


class Streams:
    """Opens and serves them. Only verified peers reach a handler: `NodeHost` sees to that."""

    def __init__(self, host: NodeHost, book: PeerBook, on_violation: OnViolation) -> None:
        self._host = host
        self._book = book
        self._on_violation = on_violation
        self._serving: Counter[PeerId] = Counter()

    async def open(
        self, peer: PeerId, protocol: str, *, max_message_bytes: int, timeout_s: float
    ) -> MessageStream:
        """Raises PeerUnreachable, TimedOut."""
        known = self._book.verified.get(peer)
        if known is None:
            raise PeerUnreachable(
                f"peer {peer} is not connected", help_command="dfl-node peers", why="no verified connection"
            )
        with trio.move_on_after(timeout_s):
            stream = await self._host.open_to(peer, protocol)
            return Libp2pStream(stream, known, max_message_bytes, self._on_violation)
        raise TimedOut(f"peer {peer} opened no stream for {protocol}", why=f"waited {timeout_s:g} s")

    def handle(self, protocol: str, handler: StreamHandler, *, max_message_bytes: int) -> None:
        """Serve a protocol from now on."""

        async def serve(stream: INetStream) -> None:
            peer = PeerId(str(stream.muxed_conn.peer_id))
            known = self._book.verified.get(peer)
            if known is None or self._serving[peer] >= self._host.limits.max_message_streams_per_peer:
                log.debug("stream refused", peer=peer, protocol=protocol, serving=self._serving[peer])
                await stream.reset()
                return
            self._serving[peer] += 1
            served = Libp2pStream(stream, known, max_message_bytes, self._on_violation)
            try:
                await handler(known, served)
            except DflError as error:
                log.debug("stream ended", peer=peer, protocol=protocol, why=str(error))
            except Exception as error:
                log.info("stream handler failed", peer=peer, protocol=protocol, error=repr(error)[:300])
            finally:
                self._serving[peer] -= 1
                if not self._serving[peer]:
                    del self._serving[peer]
                await served.aclose()

        self._host.set_stream_handler(TProtocol(protocol), serve)
