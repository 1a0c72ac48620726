"""`MemoryStore`: the twin of the real stores; through a `MemorySwarm` several of them share files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from enum import Enum

import trio

from dfl_ledger.errors import BlobNotFound, CidMismatch
from dfl_ledger.records import Cid
from dfl_node.store.blob_store import BlobInfo, Traffic
from dfl_node.store.exchange import Meter
from dfl_node.store.listing import Listing
from dfl_node.store.unixfs import Assembly, build, verify

POLL_S = 0.05


class Fault(Enum):
    """How a store misbehaves towards the others; to its own node it is honest."""

    MISSING = "has nothing for anybody"
    CORRUPT = "flips a byte"
    SLOW = "waits ten seconds before each block"


class MemorySwarm:
    """Stores that reach one another, by peer id."""

    def __init__(self) -> None:
        self.stores: dict[str, MemoryStore] = {}

    def store(self, peer_id: str) -> MemoryStore:
        """A new node's store."""
        return MemoryStore(peer_id, self)


class MemoryStore:
    """Same CIDs, same errors, same answers as `LocalStore`; nothing survives the process."""

    def __init__(self, peer_id: str = "alone", swarm: MemorySwarm | None = None) -> None:
        self.peer_id = peer_id
        self.fault: Fault | None = None
        self.meter = Meter()
        self._blocks: dict[bytes, bytes] = {}  # by digest
        self._files: dict[Cid, tuple[BlobInfo, frozenset[bytes]]] = {}
        self._swarm = swarm or MemorySwarm()
        self._swarm.stores[peer_id] = self

    async def put(self, data: bytes, *, pin: bool = True) -> Cid:
        await trio.lowlevel.checkpoint()
        built = build(data)
        self._blocks |= {cid.digest: bytes(block) for cid, block in built.blocks}
        self._record(built.root, built.size, [cid for cid, _ in built.blocks], pin)
        return built.root

    async def get(
        self, cid: Cid, *, max_bytes: int, timeout_s: float = 30.0, providers: Sequence[str] = ()
    ) -> bytes:
        assembly = Assembly(cid, max_bytes)
        if await self._fill(assembly, timeout_s, providers):
            self._record(cid, assembly.size or 0, assembly.cids(), False)
        return assembly.data()

    async def has(self, cid: Cid) -> bool:
        await trio.lowlevel.checkpoint()
        assembly = Assembly(cid, 1 << 62, keep=False)
        self._fill_here(assembly)
        return assembly.done

    def ls(self) -> AsyncIterator[BlobInfo]:
        return Listing(self._listed)

    async def _listed(self) -> list[BlobInfo]:
        await trio.lowlevel.checkpoint()
        return sorted((info for info, _ in self._files.values()), key=lambda info: info.cid)

    async def pin(self, cid: Cid) -> None:
        assembly = Assembly(cid, 1 << 62, keep=False)
        await self._fill(assembly, 30.0, ())
        self._record(cid, assembly.size or 0, assembly.cids(), True)

    async def unpin(self, cid: Cid) -> None:
        await trio.lowlevel.checkpoint()
        info, parts = self._files.get(cid, (BlobInfo(cid, 0, False), frozenset()))
        if not info.pinned:
            raise BlobNotFound(f"file {cid}", why="it is not pinned", help_command="dfl-node blob ls")
        self._files[cid] = (BlobInfo(cid, info.size, False), parts)

    async def collect(self) -> int:
        await trio.lowlevel.checkpoint()
        self._files = {cid: file for cid, file in self._files.items() if file[0].pinned}
        kept = frozenset[bytes]().union(*(parts for _, parts in self._files.values()))
        dropped = self._blocks.keys() - kept
        return sum(len(self._blocks.pop(digest)) for digest in dropped)

    def traffic(self) -> Traffic:
        return self.meter.traffic()

    async def block(self, cid: Cid) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._blocks.get(cid.digest)

    async def has_block(self, cid: Cid) -> bool:
        await trio.lowlevel.checkpoint()
        return cid.digest in self._blocks

    async def _serve(self, cid: Cid) -> bytes | None:
        """A block for another store, with this one's fault."""
        await trio.lowlevel.checkpoint()
        block = self._blocks.get(cid.digest)
        if block is None or self.fault is Fault.MISSING:
            return None
        if self.fault is Fault.SLOW:
            await trio.sleep(10)
        self.meter.sent += len(block)
        return bytes((block[0] ^ 1,)) + block[1:] if self.fault is Fault.CORRUPT and block else block

    async def _fill(self, assembly: Assembly, timeout_s: float, providers: Sequence[str]) -> bool:
        """Fill from here and the swarm; True if others had to help."""
        self._fill_here(assembly)
        if assembly.done:
            return False
        liars: set[str] = set()
        with trio.move_on_after(timeout_s):
            while not assembly.done:
                others = [peer for peer in self._swarm.stores if peer != self.peer_id]
                for peer in sorted(others, key=lambda peer: peer not in providers):
                    if peer not in liars:
                        await self._fill_from(peer, assembly, liars)
                if not assembly.done:
                    await trio.sleep(POLL_S)
        if assembly.done:
            return True
        if liars:
            raise CidMismatch(f"file {assembly.root}", why=f"wrong bytes from {', '.join(sorted(liars))}")
        raise BlobNotFound(f"file {assembly.root}", why=f"no peer delivered it within {timeout_s:g} s")

    async def _fill_from(self, peer: str, assembly: Assembly, liars: set[str]) -> None:
        while todo := assembly.wanted():
            for cid in todo:
                block = await self._swarm.stores[peer]._serve(cid)
                if block is None:
                    return
                if not verify(cid, block):
                    liars.add(peer)
                    return
                self.meter.received += len(block)
                self._blocks[cid.digest] = block
                assembly.give(cid, block)

    def _fill_here(self, assembly: Assembly) -> None:
        while todo := [cid for cid in assembly.wanted() if cid.digest in self._blocks]:
            for cid in todo:
                assembly.give(cid, self._blocks[cid.digest])

    def _record(self, root: Cid, size: int, cids: Iterable[Cid], pin: bool) -> None:
        before = root in self._files and self._files[root][0].pinned
        self._files[root] = (BlobInfo(root, size, pin or before), frozenset(cid.digest for cid in cids))
