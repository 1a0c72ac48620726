"""Files for whoever only reads: through the running node, or from the disk of one that has stopped.

Both are the half of a `BlobStore` that recomputing needs. `put` says what CID a file would have and keeps
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from dfl_ledger.errors import BlobNotFound, CidMismatch, NodeNotRunning, UpdateRefused
from dfl_ledger.records import Cid
from dfl_node.api.client import NodeClient
from dfl_node.store.blocks import block_path
from dfl_node.store.unixfs import MAX_BLOCK_BYTES, Assembly, build, verify

MOST_S = 60.0  # that one file is waited for


class Shelf:
    """The root of both: what is made here stays here."""

    async def put(self, data: bytes, *, pin: bool = True) -> Cid:
        return build(data).root


class NodeShelf(Shelf):
    """Asks the operator's own node, which asks its peers and checks each block against its CID."""

    def __init__(self, node: NodeClient) -> None:
        self._node = node
        self._turn = trio.Lock()  # one connection

    async def get(
        self, cid: Cid, *, max_bytes: int, timeout_s: float = 30.0, providers: Sequence[str] = ()
    ) -> bytes:
        async with self._turn:
            data = await trio.to_thread.run_sync(self._get, cid)
        if len(data) > max_bytes:
            raise UpdateRefused(f"file {cid}", why=f"{len(data)} bytes, at most {max_bytes} are taken")
        return data

    def _get(self, cid: Cid) -> bytes:
        with TemporaryDirectory() as folder:
            path = Path(folder, "file")
            self._node.get_blob(str(cid), path)
            return path.read_bytes()


class DiskShelf(Shelf):
    """Reads the blocks in a data directory and writes nothing there."""

    def __init__(self, datadir: Path) -> None:
        self._folder = datadir / "store"

    async def get(
        self, cid: Cid, *, max_bytes: int, timeout_s: float = 30.0, providers: Sequence[str] = ()
    ) -> bytes:
        return await trio.to_thread.run_sync(self._get, cid, max_bytes)

    def _get(self, cid: Cid, max_bytes: int) -> bytes:
        assembly = Assembly(cid, max_bytes)
        while not assembly.done:
            for wanted in assembly.wanted():
                assembly.give(wanted, self._block(wanted, of=cid))
        return assembly.data()

    def _block(self, cid: Cid, *, of: Cid) -> bytes:
        try:
            with block_path(self._folder, cid.digest).open("rb") as file:
                block = file.read(MAX_BLOCK_BYTES + 1)
        except OSError as gone:
            raise BlobNotFound(
                f"file {of}",
                why="not all of it is in this data directory; a running node would ask its peers",
                help_command="dfl-node start --wallet key.json",
            ) from gone
        if not verify(cid, block):
            raise CidMismatch(f"file {of}", why=f"block {cid} on the disk is damaged")
        return block


@contextmanager
def open_shelf(datadir: Path, *, timeout_s: float) -> Iterator[NodeShelf | DiskShelf]:
    """The files that this data directory gives access to."""
    try:
        client = NodeClient(datadir, timeout_s=min(timeout_s, MOST_S))
    except NodeNotRunning:
        yield DiskShelf(datadir)
        return
    with client:
        yield NodeShelf(client)
