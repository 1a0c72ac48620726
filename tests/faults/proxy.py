"""A TCP proxy that can be far away, or down: latency and outages, which no kernel here can make for us."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

CHUNK = 1 << 16
JOIN_S = 5.0


class Proxy:
    """Listens on `host`, any port, and passes bytes on to `target` and back, `delay_s` later each way."""

    def __init__(self, target: tuple[str, int], *, host: str = "127.0.0.1") -> None:
        self.delay_s = 0.0
        self._target = target
        self._listener = socket.create_server((host, 0))
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._is_down = False
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://{host}:{port}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing it alone wakes no `accept`
        self._listener.close()
        for thread in self._threads:
            thread.join(JOIN_S)

    def down(self) -> None:
        """Every connection breaks, and new ones are closed at once."""
        with self._lock:
            self._is_down = True
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def up(self) -> None:
        self._is_down = False

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                if self._is_down:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(self._target, timeout=5)
                except OSError:
                    client.close()
                    continue
                carrier = threading.Thread(target=self._carry, args=(client, server), daemon=True)
                self._threads.append(carrier)
                carrier.start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        """Both ways, until both have ended."""
        with client, server:
            with self._lock:
                if self._is_down:
                    return
                self._open |= {client, server}
            back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
            back.start()
            self._pump(client, server)
            back.join()
            with self._lock:
                self._open -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK):
                time.sleep(self.delay_s)
                sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
