"""A file as a Merkle DAG and back. Pure: no disk, no network, no clock.

We cut files into raw leaves of 1 MiB (Kubo takes blocks of up to 2 MiB over bitswap, but only up to 1 MiB
over its RPC) under a balanced tree of DAG-PB nodes, as `ipfs add --cid-version=1 --chunker=size-1048576`
does, with one difference: a file of one chunk has a DAG-PB root too, so that 32 bytes name it on the chain.

We read whatever Kubo writes: raw leaves or DAG-PB leaves with inline data, both CID versions, any depth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from dfl_ledger.errors import UpdateRefused
from dfl_ledger.records import DAG_CBOR, DAG_PB, RAW, Cid
from dfl_node.store.dag_pb import FileNode, Link, decode_file_node, encode_file_node

CHUNK_BYTES = 1 << 20
MAX_BLOCK_BYTES = 2 << 20  # what every IPFS implementation must accept, and the most we do
LINKS_PER_NODE = 174  # Kubo's width
MAX_DEPTH = 32
MAX_NODES = 65_536  # visits in one file: a node that is linked a thousand times counts a thousand times

Block = bytes | memoryview


@dataclass(frozen=True, slots=True)
class BuiltFile:
    root: Cid
    size: int  # bytes of the file
    blocks: tuple[tuple[Cid, Block], ...]  # each block once; the root last. Leaves are views into the data


def build(data: bytes) -> BuiltFile:
    """Cut and hash a file. The same bytes always give the same root."""
    blocks: dict[Cid, Block] = {}
    view = memoryview(data)
    level: list[Link] = []
    for start in range(0, len(data), CHUNK_BYTES):
        leaf = view[start : start + CHUNK_BYTES]
        cid = Cid(RAW, hashlib.sha256(leaf).digest())
        blocks[cid] = leaf
        level.append(Link(cid, len(leaf), len(leaf)))
    while True:
        groups = [level[at : at + LINKS_PER_NODE] for at in range(0, len(level), LINKS_PER_NODE)] or [[]]
        level = []
        for links in groups:
            size = sum(link.file_bytes for link in links)
            block = encode_file_node(links, size)
            cid = Cid.of(block, DAG_PB)
            blocks[cid] = block
            level.append(Link(cid, size, len(block) + sum(link.dag_bytes for link in links)))
        if len(level) == 1:
            return BuiltFile(level[0].cid, len(data), tuple(blocks.items()))


def verify(cid: Cid, block: Block) -> bool:
    """True if these bytes are what the CID names."""
    return len(block) <= MAX_BLOCK_BYTES and hashlib.sha256(block).digest() == cid.digest


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the file a wanted block belongs, and how many of the file's bytes stand there."""

    offset: int
    size: int | None  # None only for the root: nobody has declared it yet
    depth: int


@dataclass(frozen=True, slots=True)
class _Known:
    """A block that was given: enough to put it in a second place without its bytes."""

    size: int
    data_at: int  # where in the file its own bytes stand
    data_size: int
    links: tuple[Link, ...]


class Assembly:
    """Puts one file together from blocks that come in any order.

    Every size is declared before it is believed: the root's against `max_bytes` before the buffer is made, a
    child's against what its parent says. Depth and visits are capped, so a small DAG that unfolds into an
    endless tree is refused early. Blocks must have been checked against their CID (`verify`) before.
    """

    def __init__(self, root: Cid, max_bytes: int, *, keep: bool = True) -> None:
        """keep=False follows the tree without holding the file's bytes (to pin or to look)."""
        if root.codec == DAG_CBOR:
            raise _refused(root, "a DAG-CBOR block, not a file")
        self.root = root
        self.max_bytes = max_bytes
        self.size: int | None = None  # bytes of the file, once the root is known
        self._keep = keep
        self._buffer = bytearray()
        self._wanted: dict[Cid, list[_Place]] = {root: [_Place(0, None, 0)]}
        self._known: dict[Cid, _Known] = {}
        self._visits = 1

    @property
    def done(self) -> bool:
        return not self._wanted

    def wanted(self) -> tuple[Cid, ...]:
        """The blocks that are missing, each once, roughly in the order of the file."""
        return tuple(self._wanted)

    def missing(self) -> Iterator[Cid]:
        """As `wanted`, but lazily, for looks at the first few. Not across a `give`."""
        return iter(self._wanted)

    def wants(self, cid: Cid) -> bool:
        return cid in self._wanted

    def cids(self) -> tuple[Cid, ...]:
        """The blocks given so far."""
        return tuple(self._known)

    def give(self, cid: Cid, block: Block) -> None:
        """Take one block; one that is not wanted is left alone. Raises UpdateRefused."""
        places = self._wanted.pop(cid, None)
        if places is None:
            return
        node = self._decode(cid, block)
        if cid == self.root:
            if node.size > self.max_bytes:
                raise _refused(self.root, f"{node.size} bytes, more than the {self.max_bytes} allowed")
            self.size = node.size
            if self._keep:
                self._buffer = bytearray(node.size)
        self._known[cid] = _Known(node.size, places[0].offset, len(node.data), node.links)
        if self._keep:
            self._buffer[places[0].offset : places[0].offset + len(node.data)] = node.data
        todo = [(cid, place) for place in places]
        while todo:
            self._put(*todo.pop(), todo)

    def data(self) -> bytes:
        """The whole file. Only when `done`, and only with keep=True."""
        if self._wanted or not self._keep:
            raise RuntimeError("the file is not complete")
        return bytes(self._buffer)

    def _decode(self, cid: Cid, block: Block) -> FileNode:
        if len(block) > MAX_BLOCK_BYTES:
            raise _refused(self.root, f"block {cid} has {len(block)} bytes")
        if cid.codec == RAW:
            return FileNode(len(block), bytes(block), ())
        if cid.codec != DAG_PB:
            raise _refused(self.root, f"block {cid} is no part of a file")
        try:
            return decode_file_node(bytes(block))
        except ValueError as bad:
            raise _refused(self.root, f"block {cid}: {bad}") from bad

    def _put(self, cid: Cid, place: _Place, todo: list[tuple[Cid, _Place]]) -> None:
        """Put a known block in one of its places; its known children go on `todo`, the others are wanted."""
        known = self._known[cid]
        if place.size is not None and place.size != known.size:
            raise _refused(self.root, f"block {cid} has {known.size} bytes where {place.size} were declared")
        if known.links and place.depth >= MAX_DEPTH:
            raise _refused(self.root, f"a tree deeper than {MAX_DEPTH}")
        self._visits += len(known.links)
        if self._visits > MAX_NODES:
            raise _refused(self.root, f"a tree of more than {MAX_NODES} nodes")
        if self._keep and place.offset != known.data_at:
            end = known.data_at + known.data_size
            self._buffer[place.offset : place.offset + known.data_size] = self._buffer[known.data_at : end]
        offset = place.offset + known.data_size
        for link in known.links:
            child = _Place(offset, link.file_bytes, place.depth + 1)
            if link.cid in self._known:
                todo.append((link.cid, child))
            else:
                self._wanted.setdefault(link.cid, []).append(child)
            offset += link.file_bytes


def _refused(root: Cid, why: str) -> UpdateRefused:
    return UpdateRefused(f"file {root}", why=why, help_command=f"dfl-node blob get {root} -o FILE")
