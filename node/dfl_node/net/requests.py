"""One request, one reply, on a stream of its own; every size and every wait is bounded on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol

from dfl_ledger.errors import PeerMisbehaved, PeerUnreachable, TimedOut

from .channel import Handler, PeerId
from .host import NodeHost
from .peerbook import PeerBook
from .services import shielded
from .wire import WireError, read_frame, write_frame

log = structlog.get_logger(__name__)

OnViolation = Callable[[PeerId, str], Awaitable[None]]


class Requests:
    """Asks and serves. Only verified peers reach a handler: `NodeHost` sees to that."""

    def __init__(self, host: NodeHost, book: PeerBook, on_violation: OnViolation) -> None:
        self._host = host
        self._book = book
        self._on_violation = on_violation
        self._limits = host.limits
        self._serving: Counter[PeerId] = Counter()

    async def ask(
        self,
        peer: PeerId,
        protocol: str,
        body: bytes,
        *,
        max_reply_bytes: int,
        timeout_s: float,
    ) -> bytes:
        """Raises PeerUnreachable, PeerMisbehaved (a reply over the limit, or cut off), TimedOut."""
        if peer not in self._book.verified:
            raise PeerUnreachable(
                f"peer {peer} is not connected", help_command="dfl-node peers", why="no verified connection"
            )
        try:
            with trio.fail_after(timeout_s):
                return await self._ask(peer, protocol, body, max_reply_bytes)
        except trio.TooSlowError:
            raise TimedOut(
                f"peer {peer} did not answer {protocol}", why=f"waited {timeout_s:g} s for its reply"
            ) from None

    async def _ask(self, peer: PeerId, protocol: str, body: bytes, max_reply_bytes: int) -> bytes:
        stream = await self._host.open_to(peer, protocol)
        answered = False
        try:
            await write_frame(stream, body)
            reply = await read_frame(stream, max_reply_bytes)
            answered = True
        except WireError as bad:
            await self._on_violation(peer, str(bad))
            raise PeerMisbehaved(peer, f"{protocol}: {bad}") from bad
        except Exception as error:
            raise PeerUnreachable(
                f"peer {peer} hung up", why=f"before it answered {protocol}: {error!r:.200}"
            ) from error
        finally:
            with shielded(1.0):
                await (stream.close() if answered else stream.reset())
        return reply

    def handle(self, protocol: str, handler: Handler, *, max_request_bytes: int) -> None:
        """Serve a protocol from now on."""

        async def serve(stream: INetStream) -> None:
            peer = PeerId(str(stream.muxed_conn.peer_id))
            if self._serving[peer] >= self._limits.max_requests_per_peer:
                log.debug("too many requests at once", peer=peer, protocol=protocol)
                await stream.reset()
                return
            self._serving[peer] += 1
            try:
                await self._serve(stream, peer, protocol, handler, max_request_bytes)
            finally:
                self._serving[peer] -= 1
                if not self._serving[peer]:
                    del self._serving[peer]

        self._host.set_stream_handler(TProtocol(protocol), serve)

    async def _serve(
        self, stream: INetStream, peer: PeerId, protocol: str, handler: Handler, max_request_bytes: int
    ) -> None:
        answered = False
        try:
            with trio.fail_after(self._limits.request_s):
                body = await read_frame(stream, max_request_bytes)
            known = self._book.verified.get(peer)
            if known is None:
                return
            with trio.fail_after(self._limits.serve_s):
                await write_frame(stream, await handler(known, body))
            answered = True
        except WireError as bad:
            log.info("bad request", peer=peer, protocol=protocol, why=str(bad))
            await self._on_violation(peer, str(bad))
        except trio.TooSlowError:
            log.info("request given up", peer=peer, protocol=protocol, why="too slow")
        except Exception as error:
            log.info("request failed", peer=peer, protocol=protocol, error=repr(error)[:300])
        finally:
            with shielded(1.0):
                await (stream.close() if answered else stream.reset())
