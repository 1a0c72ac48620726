"""What block stores and the ways to peers need of one another, and one fetch from start to end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog
import trio

from dfl_ledger.errors import BlobNotFound, CidMismatch, PeerMisbehaved
from dfl_ledger.records import Cid
from dfl_node.store.blob_store import Traffic
from dfl_node.store.unixfs import Assembly, verify

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
_HASH_IN_THREAD_BYTES = 1 << 17  # below, hashing is quicker than a thread's hand-over


class Meter:
    """Counts bytes on the wire."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0

    def traffic(self) -> Traffic:
        return Traffic(self.sent, self.received)


class BlockSource(Protocol):
    """Blocks that are here, for the gateway and bitswap to serve."""

    @property
    def meter(self) -> Meter: ...

    async def block(self, cid: Cid) -> bytes | None:
        """The block, checked against its digest; None if it is not here. Never asks the network."""
        ...

    async def has_block(self, cid: Cid) -> bool: ...


Save = Callable[[Sequence[tuple[Cid, bytes]]], Awaitable[None]]


class Fetch:
    """One file on its way here. Every way to peers delivers into the same one, so a switch loses nothing."""

    def __init__(self, assembly: Assembly, save: Save, meter: Meter) -> None:
        self.assembly = assembly
        self.meter = meter
        self.dropped: set[str] = set()  # peers that lied, stalled or broke off: not asked again for this file
        self._lie = ""  # who sent wrong bytes
        self._trouble = ""  # the last other reason why a peer was dropped
        self._save = save
        self.change = trio.Event()  # set, and replaced, at each delivery: take it first, look, then wait

    @property
    def root(self) -> Cid:
        return self.assembly.root

    @property
    def done(self) -> bool:
        return self.assembly.done

    async def deliver(self, peer: str, blocks: Sequence[tuple[Cid, bytes]]) -> int:
        """Check, keep and place blocks a peer sent; returns how many of them were wanted.

        Raises PeerMisbehaved for bytes that are not what their CID names, UpdateRefused when the file itself
        (whoever sends it) is too large or no file.
        """
        if sum(len(block) for _, block in blocks) > _HASH_IN_THREAD_BYTES:
            wrong = await trio.to_thread.run_sync(_first_wrong, blocks)
        else:
            wrong = _first_wrong(blocks)
        if wrong is not None:
            lie = PeerMisbehaved(peer, f"sent other bytes than {wrong} names")
            self._lie = str(lie)
            self.drop(peer, lie.why)
            raise lie
        fresh: list[tuple[Cid, bytes]] = []
        for cid, block in blocks:
            if self.assembly.wants(cid):  # asked each time anew: a node makes its children wanted
                self.assembly.give(cid, block)
                fresh.append((cid, block))
        if fresh:
            await self._save(fresh)
            self.nudge()
        return len(fresh)

    def drop(self, peer: str, why: str) -> None:
        """Ask this peer no more for this file."""
        self.dropped.add(peer)
        self._trouble = f"peer {peer}: {why}"
        log.warning("peer dropped for this file", peer=peer, file=str(self.root), why=why)

    def nudge(self) -> None:
        """Wake those who wait for a change."""
        self.change.set()
        self.change = trio.Event()

    def gave_up(self, timeout_s: float) -> BlobNotFound | CidMismatch:
        """The error for a file that did not arrive."""
        missing = len(self.assembly.wanted())
        why = f"no peer delivered {missing} missing block(s) within {timeout_s:g} s"
        if self._lie or self._trouble:
            why += f"; {self._lie or self._trouble}"
        kind = CidMismatch if self._lie else BlobNotFound
        return kind(f"file {self.root}", why=why, help_command="dfl-node peers")


class Fetcher(Protocol):
    """A way to get blocks from peers."""

    async def fetch(self, fetch: Fetch, providers: Sequence[str]) -> None:
        """Deliver what can be had now, the hinted providers first; return when the file is complete or nobody
        reached this way can help at present. A peer's fault is never raised; UpdateRefused is."""
        ...


async def fetch_file(
    fetch: Fetch, fetchers: Sequence[Fetcher], providers: Sequence[str], timeout_s: float
) -> None:
    """Try each way in turn, again and again, until the file is complete or `timeout_s` is over.

    Raises BlobNotFound, or CidMismatch when somebody sent wrong bytes, and UpdateRefused.
    """
    if fetch.done:
        return
    pause_s = FIRST_PAUSE_S
    with trio.move_on_after(timeout_s):
        while fetchers:
            for fetcher in fetchers:
                await fetcher.fetch(fetch, providers)
                if fetch.done:
                    return
            await trio.sleep(pause_s)  # peers come and publish; ask again
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    if not fetch.done:
        raise fetch.gave_up(timeout_s)


def _first_wrong(blocks: Sequence[tuple[Cid, bytes]]) -> Cid | None:
    return next((cid for cid, block in blocks if not verify(cid, block)), None)
