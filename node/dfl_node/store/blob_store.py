"""The `BlobStore` Protocol: files by CID. `LocalStore` and `KuboStore` are real, `MemoryStore` their twin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dfl_ledger.records import Cid


@dataclass(frozen=True, slots=True)
class BlobInfo:
    cid: Cid
    size: int  # bytes of the file
    pinned: bool


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of blocks and messages on the wire since the store was opened."""

    sent: int
    received: int


class BlobStore(Protocol):
    """Files as UnixFS DAGs with CIDv1. What `put` returns has a DAG-PB root whatever the file's size, so
    that the chain can name it by 32 bytes; `get` reads any raw or UnixFS CID.

    Raises BlobNotFound, CidMismatch, StoreUnavailable. Passes tests/conformance/blob_store.py.
    """

    async def put(self, data: bytes, *, pin: bool = True) -> Cid:
        """Store a file. The same bytes always give the same CID."""
        ...

    async def get(
        self, cid: Cid, *, max_bytes: int, timeout_s: float = 30.0, providers: Sequence[str] = ()
    ) -> bytes:
        """The file's bytes, from here or from peers, checked against the CID block by block.

        `providers` are peer ids worth asking first; a store may ignore them. Raises CidMismatch for wrong
        bytes, BlobNotFound when nobody delivers in time, and UpdateRefused when the file is larger than
        max_bytes (before the memory is taken) or is no file.
        """
        ...

    async def has(self, cid: Cid) -> bool:
        """True if every block of the file is here."""
        ...

    def ls(self) -> AsyncIterator[BlobInfo]: ...

    async def pin(self, cid: Cid) -> None:
        """Keep the file; fetches it if it is not here."""
        ...

    async def unpin(self, cid: Cid) -> None:
        """Let `collect` drop the file. Raises BlobNotFound if it is not pinned."""
        ...

    async def collect(self) -> int:
        """Drop every block no pin reaches; returns the bytes freed."""
        ...

    def traffic(self) -> Traffic:
        """What this store has sent to peers and received from them."""
        ...
