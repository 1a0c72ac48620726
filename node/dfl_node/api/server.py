"""Serve an ASGI application in the node's own trio loop.

hypercorn speaks HTTP; the accept loop is ours, because hypercorn's neither limits connections nor can be
stopped while a client that does not read holds a response: its sends are shielded from cancellation.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from dfl_ledger.errors import UsageError

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = structlog.get_logger(__name__)

_BACKLOG = 128
_SLICE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What clients may take. Seconds and bytes."""

    max_connections: int = 256
    max_connections_per_ip: int = 128
    idle_s: float = 15.0  # for a request's head to arrive, and between requests
    stall_s: float = 30.0  # for a MiB of a response to be taken
    max_head_bytes: int = 16 * 1024


class HttpServer:
    """A socket bound at once, so that the port is known before anything is served."""

    def __init__(self, host: str, port: int, limits: ServerLimits | None = None) -> None:
        """Raises UsageError when the address cannot be bound."""
        self.limits = limits or ServerLimits()
        self._streams: set[_PatientStream] = set()
        self._socket = _bind(host, port)
        self.host = host
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """For clients on this machine."""
        address = ipaddress.ip_address(self.host)
        if address.is_unspecified:
            address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
        return f"http://[{address}]:{self.port}" if address.version == 6 else f"http://{address}:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._streams)

    def close(self) -> None:
        """Free the port of a server that never served."""
        self._socket.close()

    async def serve(self, app: ASGIApp, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled, which ends every connection at once."""
        limits = self.limits
        config = Config()
        config.errorlog = config.accesslog = None
        config.include_server_header = False
        config.keep_alive_timeout = limits.idle_s
        config.h11_max_incomplete_size = limits.max_head_bytes
        asgi = wrap_app(cast(Any, app), 0, "asgi")
        context = WorkerContext(None)
        streams = self._streams
        per_ip: Counter[str] = Counter()

        async def connection(plain: trio.SocketStream) -> None:
            ip = _peer_ip(plain)
            if len(streams) >= limits.max_connections or per_ip[ip] >= limits.max_connections_per_ip:
                await trio.aclose_forcefully(plain)
                return
            with trio.CancelScope() as scope:
                stream = _PatientStream(plain, limits.stall_s, scope)
                streams.add(stream)
                per_ip[ip] += 1
                try:
                    # TCPServer asks its stream for little more than receive, send and close.
                    await TCPServer(asgi, config, context, ConnectionState({}), cast(Any, stream))
                except* Exception as failures:
                    # One client's trouble ends its connection, never the node.
                    log.debug("a connection failed", failures=[repr(e)[:200] for e in failures.exceptions])
                finally:
                    streams.discard(stream)
                    per_ip[ip] -= 1
                    if not per_ip[ip]:
                        del per_ip[ip]
                    await trio.aclose_forcefully(plain)

        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))
        async with trio.open_nursery() as handlers:
            task_status.started()
            try:
                await trio.serve_listeners(connection, [listener], handler_nursery=handlers)
            finally:
                for stream in tuple(streams):
                    stream.cut()


class _PatientStream:
    """A socket stream whose sends give up on a reader that does not read, and end the connection."""

    def __init__(self, stream: trio.SocketStream, stall_s: float, connection: trio.CancelScope) -> None:
        self._stream = stream
        self._stall_s = stall_s
        self._connection = connection
        self.socket = stream.socket

    def cut(self) -> None:
        """End the connection now, whatever it is doing."""
        self._connection.cancel()
        self.socket.close()  # wakes a send, which the cancellation does not reach

    async def send_all(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            for start in range(0, len(view), _SLICE):
                # A scope of its own: hypercorn shields its sends from every other one.
                with trio.fail_after(self._stall_s):
                    await self._stream.send_all(view[start : start + _SLICE])
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as gone:
            # Told of a failed send only, hypercorn would wait for the next request for ever.
            self.cut()
            raise trio.BrokenResourceError("the client does not read") from gone

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _peer_ip(stream: trio.SocketStream) -> str:
    with contextlib.suppress(OSError):
        return str(stream.socket.getpeername()[0])
    return ""


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError as bad:
        raise UsageError(f"cannot serve HTTP on {host!r}", why="it is not an IP address") from bad
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind((host, port))
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except (OSError, OverflowError) as bad:
        bound.close()
        why = bad.strerror if isinstance(bad, OSError) and bad.strerror else str(bad)
        raise UsageError(
            f"cannot serve HTTP on {host} port {port}", why=why, help_command="dfl-node start --http-port 0 …"
        ) from bad
    return bound
