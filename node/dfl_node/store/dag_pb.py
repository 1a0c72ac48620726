"""The two small protobuf messages a UnixFS file is made of: DAG-PB nodes and UnixFS data. Pure.

Written by hand because a DAG-PB block is hashed: its links come before its data, while generated protobuf
code writes fields by number (data first) and would give another CID. Reading by hand also lets every length
be checked against the block before anything is copied.

https://ipld.io/specs/codecs/dag-pb/spec/ and https://specs.ipfs.tech/unixfs/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dfl_ledger.records import Cid

MAX_LINKS = 8192  # in one node; Kubo writes 174, or 1024 on demand
_MAX_VARINT = (1 << 64) - 1
_RAW, _FILE = 0, 2  # UnixFS data types that are bytes
_TYPE_NAMES = {1: "a directory", 3: "metadata", 4: "a symbolic link", 5: "a sharded directory"}


@dataclass(frozen=True, slots=True)
class Link:
    cid: Cid
    file_bytes: int  # bytes of the file below this link (UnixFS `blocksizes`)
    dag_bytes: int = 0  # bytes of all blocks below it (DAG-PB `Tsize`): a hint, never trusted


@dataclass(frozen=True, slots=True)
class FileNode:
    """One node of a file: `data` comes first, then what the links name."""

    size: int  # bytes of the file at and below this node
    data: bytes
    links: tuple[Link, ...]


def varint(value: int) -> bytes:
    """An unsigned LEB128 number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(buffer: bytes | bytearray | memoryview, at: int) -> tuple[int, int]:
    """(number, position behind it). Raises ValueError when it is cut off or longer than 64 bits."""
    value = shift = 0
    while True:
        if at >= len(buffer):
            raise ValueError("a number is cut off")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
    if value > _MAX_VARINT:
        raise ValueError("a number is longer than 64 bits")
    return value, at


def encode_file_node(links: Sequence[Link], size: int) -> bytes:
    """The block of an inner node of a file, as Kubo would write it."""
    block = bytearray()
    for link in links:
        target = bytes(link.cid)
        body = b"\x0a" + varint(len(target)) + target + b"\x12\x00\x18" + varint(link.dag_bytes)
        block += b"\x12" + varint(len(body)) + body
    data = bytearray(b"\x08\x02\x18") + varint(size)
    for link in links:
        data += b"\x20" + varint(link.file_bytes)
    block += b"\x0a" + varint(len(data)) + data
    return bytes(block)


def decode_links(block: bytes) -> tuple[Cid, ...]:
    """Where a DAG-PB block points, whatever it holds. Raises ValueError."""
    return tuple(_parse(block)[0])


def decode_file_node(block: bytes) -> FileNode:
    """A node of a UnixFS file with every size consistent. Raises ValueError naming what is wrong."""
    targets, raw = _parse(block)
    if raw is None:
        raise ValueError("a DAG-PB node without UnixFS data")
    kind: int | None = None
    data = b""
    declared: int | None = None
    sizes: list[int] = []
    for number, value in fields(raw):
        match number, value:
            case 1, int():
                kind = value
            case 2, memoryview():
                data = bytes(value)
            case 3, int():
                declared = value
            case 4, int():
                sizes.append(value)
            case 4, memoryview():  # the packed form
                at = 0
                while at < len(value):
                    one, at = read_varint(value, at)
                    sizes.append(one)
            case _:
                pass  # mode, mtime: of no meaning to a file's bytes
    if kind not in (_RAW, _FILE):
        raise ValueError(f"{_TYPE_NAMES.get(kind or 0, 'no UnixFS type we know')}, not a file")
    if len(sizes) != len(targets):
        raise ValueError(f"{len(targets)} links but {len(sizes)} block sizes")
    if 0 in sizes:
        raise ValueError("a link to nothing")  # such links would make a tree of any size out of no bytes
    size = len(data) + sum(sizes)
    if declared is not None and declared != size:
        raise ValueError(f"declares {declared} bytes but its parts have {size}")
    links = tuple(Link(cid, file_bytes) for cid, file_bytes in zip(targets, sizes, strict=True))
    return FileNode(size, data, links)


def _parse(block: bytes) -> tuple[list[Cid], memoryview | None]:
    targets: list[Cid] = []
    data: memoryview | None = None
    for number, value in fields(memoryview(block)):
        match number, value:
            case 2, memoryview():
                if len(targets) == MAX_LINKS:
                    raise ValueError(f"more than {MAX_LINKS} links in one node")
                targets.append(_target(value))
            case 1, memoryview() if data is None:
                data = value
            case _:
                raise ValueError("not a DAG-PB node")
    return targets, data


def _target(link: memoryview) -> Cid:
    for number, value in fields(link):
        if number == 1 and isinstance(value, memoryview):
            return Cid.from_bytes(bytes(value[:64]))
    raise ValueError("a link without a CID")


def fields(buffer: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, varint or bytes) of a protobuf message; other wire types are refused."""
    at = 0
    while at < len(buffer):
        key, at = read_varint(buffer, at)
        value, at = read_varint(buffer, at)
        match key & 7:
            case 0:
                yield key >> 3, value
            case 2:
                if value > len(buffer) - at:
                    raise ValueError("a field is longer than its message")
                yield key >> 3, buffer[at : at + value]
                at += value
            case wire:
                raise ValueError(f"protobuf wire type {wire}")
