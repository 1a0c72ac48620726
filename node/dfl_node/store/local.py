"""`LocalStore`: the node's own blocks, completed from peers. The embedded default: nothing to install."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial

import structlog
import trio

from dfl_ledger.errors import BlobNotFound, StoreUnavailable
from dfl_ledger.records import Cid
from dfl_node.store.blob_store import BlobInfo, Traffic
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.exchange import Fetch, Fetcher, fetch_file
from dfl_node.store.listing import Listing
from dfl_node.store.unixfs import Assembly, build

log = structlog.get_logger(__name__)

PIN_TIMEOUT_S = 600.0
PIN_ATTEMPTS = 3


class LocalStore:
    """Files in `BlockFiles`; what is missing comes through the fetchers, in their order.

    Callers that want the same CID share one fetch: the second waits and then finds it here.
    """

    def __init__(self, blocks: BlockFiles, fetchers: Sequence[Fetcher] = ()) -> None:
        self.blocks = blocks
        self._fetchers = tuple(fetchers)
        self._locks: weakref.WeakValueDictionary[Cid, trio.Lock] = weakref.WeakValueDictionary()

    async def put(self, data: bytes, *, pin: bool = True) -> Cid:
        return await trio.to_thread.run_sync(self._put, data, pin)

    async def get(
        self, cid: Cid, *, max_bytes: int, timeout_s: float = 30.0, providers: Sequence[str] = ()
    ) -> bytes:
        assembly = Assembly(cid, max_bytes)
        if not await self._complete(assembly, timeout_s, providers):
            with suppress(StoreUnavailable):  # the disk is full: what came is right all the same
                await self._record(assembly, pin=False)
        return await trio.to_thread.run_sync(assembly.data)

    async def has(self, cid: Cid) -> bool:
        return await trio.to_thread.run_sync(self.blocks.complete, cid)

    def ls(self) -> AsyncIterator[BlobInfo]:
        return Listing(partial(trio.to_thread.run_sync, self.blocks.files))

    async def pin(self, cid: Cid) -> None:
        for _ in range(PIN_ATTEMPTS):
            assembly = Assembly(cid, self.blocks.max_store_bytes, keep=False)
            await self._complete(assembly, PIN_TIMEOUT_S, (), must_save=True)
            if await self._record(assembly, pin=True):  # else collected in between: once more
                return
        raise StoreUnavailable(
            "the block store is full",
            why=f"no room for {cid} beside what is pinned in {self.blocks.max_store_bytes} bytes",
            help_command="dfl-node blob unpin CID",
        )

    async def unpin(self, cid: Cid) -> None:
        if not await trio.to_thread.run_sync(self.blocks.unpin, cid):
            raise BlobNotFound(f"file {cid}", why="it is not pinned", help_command="dfl-node blob ls")

    async def collect(self) -> int:
        return await trio.to_thread.run_sync(self.blocks.collect)

    def traffic(self) -> Traffic:
        return self.blocks.meter.traffic()

    def _put(self, data: bytes, pin: bool) -> Cid:
        built = build(data)
        self.blocks.add(built.blocks, root=built.root, size=built.size, pin=pin, durable=True)
        return built.root

    async def _complete(
        self, assembly: Assembly, timeout_s: float, providers: Sequence[str], *, must_save: bool = False
    ) -> bool:
        """Fill the assembly from disk, then from peers; True if all of it was on disk."""
        await trio.to_thread.run_sync(self.blocks.fill, assembly)
        if assembly.done:
            return True

        async def save(blocks: Sequence[tuple[Cid, bytes]]) -> None:
            try:
                await trio.to_thread.run_sync(self.blocks.add, blocks)
            except StoreUnavailable as full:
                if must_save:
                    raise
                log.warning("fetched blocks are not kept", file=str(assembly.root), why=str(full))

        fetch = Fetch(assembly, save, self.blocks.meter)
        lock = self._locks.setdefault(assembly.root, trio.Lock())
        deadline = trio.current_time() + timeout_s
        with trio.move_on_at(deadline):
            async with lock:
                await trio.to_thread.run_sync(
                    self.blocks.fill, assembly
                )  # another caller may have fetched it
                await fetch_file(fetch, self._fetchers, providers, max(0.0, deadline - trio.current_time()))
        if not fetch.done:
            raise fetch.gave_up(timeout_s)
        return False

    async def _record(self, assembly: Assembly, *, pin: bool) -> bool:
        def record() -> bool:
            return self.blocks.record(assembly.root, assembly.size or 0, assembly.cids(), pin=pin)

        return await trio.to_thread.run_sync(record)
