"""py-libp2p's services, run so that no exception in one of their tasks can end more than that task.

A service's manager cancels the whole service (and with it the swarm, or all of gossip) when any of its tasks
raises, and a stranger's bytes can make one raise. Here a failing task is logged with its name and ends alone;
a daemon task, which must not end, starts again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog
import trio
from libp2p.tools.anyio_service.trio_manager import TrioManager

log = structlog.get_logger(__name__)

_DAEMON_PAUSE_S = 1.0
_STOP_S = 0.5


class ContainedManager(TrioManager):
    """A manager whose tasks fail alone."""

    def run_task(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        daemon: bool = False,
        name: str | None = None,
        _internal: bool = False,
    ) -> None:
        task_name = name or getattr(async_fn, "__qualname__", repr(async_fn))

        async def contained() -> None:
            while True:
                try:
                    await async_fn(*args)
                    return
                except Exception as error:
                    log.warning(
                        "a libp2p task failed", task=task_name, error=repr(error)[:300], restarted=daemon
                    )
                if not daemon:
                    return
                await trio.sleep(_DAEMON_PAUSE_S)

        super().run_task(contained, daemon=daemon, name=task_name, _internal=_internal)


class Tasks:
    """A nursery whose tasks end alone when they fail, and say so."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._nursery.start_soon(self._contained, async_fn, args)

    async def _contained(self, async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        try:
            await async_fn(*args)
        except Exception as error:
            name = getattr(async_fn, "__qualname__", repr(async_fn))
            log.warning("a background task failed", task=name, error=repr(error)[:300])


@contextmanager
def shielded(seconds: float) -> Iterator[None]:
    """For cleaning up: not interrupted from outside, and never longer than this."""
    with trio.move_on_after(seconds) as scope:
        scope.shield = True
        yield


@asynccontextmanager
async def running(service: Any) -> AsyncIterator[None]:
    """Run a service while the context is open."""
    manager = ContainedManager(service)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.run)
        await manager.wait_started()
        try:
            yield
        finally:
            with shielded(_STOP_S):
                await manager.stop()
            nursery.cancel_scope.cancel()


class _ToDebug(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.debug("libp2p", logger=record.name, level=record.levelname, message=record.getMessage()[:300])


_BRIDGE = _ToDebug(logging.WARNING)


def quiet_libp2p() -> None:
    """Turn what py-libp2p warns about into our debug messages.

    It logs at ERROR what is daily life between strangers: a refused dial, a peer that hung up. It also calls
    `logging.debug()` itself, which would install a handler on a root logger that has none.
    """
    libp2p = logging.getLogger("libp2p")
    libp2p.setLevel(logging.WARNING)
    libp2p.propagate = False
    if _BRIDGE not in libp2p.handlers:
        libp2p.addHandler(_BRIDGE)
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())
