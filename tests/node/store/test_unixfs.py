"""Files to DAGs and back; DAGs as other implementations write them; DAGs as an attacker writes them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfl_ledger.errors import UpdateRefused
from dfl_ledger.records import DAG_PB, RAW, Cid
from dfl_node.store import unixfs
from dfl_node.store.dag_pb import Link, decode_file_node, encode_file_node, read_varint, varint
from dfl_node.store.unixfs import MAX_DEPTH, Assembly, build

PLENTY = 1 << 40


def node(links: list[Link], data: bytes = b"", kind: int = 2, size: int | None = None) -> tuple[Cid, bytes]:
    """A DAG-PB block as other implementations may write it: inline data, data before links."""
    total = len(data) + sum(link.file_bytes for link in links) if size is None else size
    inner = b"\x08" + varint(kind) + (b"\x12" + varint(len(data)) + data if data else b"")
    inner += b"\x18" + varint(total) + b"".join(b"\x20" + varint(link.file_bytes) for link in links)
    block = b"\x0a" + varint(len(inner)) + inner
    for link in links:
        target = link.cid.digest if link.cid.codec == DAG_PB else bytes(link.cid)
        target = b"\x12\x20" + target if link.cid.codec == DAG_PB else target  # version 0, as Kubo's default
        body = b"\x0a" + varint(len(target)) + target
        block += b"\x12" + varint(len(body)) + body
    return Cid.of(block, DAG_PB), block


def read(root: Cid, blocks: dict[Cid, bytes], max_bytes: int = PLENTY) -> bytes:
    assembly = Assembly(root, max_bytes)
    give_all(assembly, blocks)
    return assembly.data()


def give_all(assembly: Assembly, blocks: dict[Cid, bytes]) -> None:
    while not assembly.done:
        for cid in assembly.wanted():
            assembly.give(cid, blocks[cid])


@given(st.integers(0, 2000), st.integers(1, 7), st.integers(2, 5))
def test_any_size_comes_back_in_any_tree(size: int, chunk: int, width: int) -> None:
    data = hashlib.shake_128(bytes(4)).digest(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unixfs, "CHUNK_BYTES", chunk)
        patch.setattr(unixfs, "LINKS_PER_NODE", width)
        built = build(data)
    blocks = {cid: bytes(block) for cid, block in built.blocks}
    assert built.root.codec == DAG_PB
    assert len(blocks) == len(built.blocks)
    assert read(built.root, blocks, size) == data


def test_blocks_may_come_in_any_order() -> None:
    built = build(bytes(range(256)) * 20_000)
    blocks = {cid: bytes(block) for cid, block in built.blocks}
    assembly = Assembly(built.root, PLENTY)
    while not assembly.done:
        last = assembly.wanted()[-1]
        assembly.give(last, blocks[last])
    assert assembly.data() == bytes(range(256)) * 20_000


def test_version_0_dag_with_inline_leaves_at_two_depths() -> None:
    left_cid, left = node([], b"hello ")
    right_cid, right = node([], b"world", kind=0)  # leaves of old are of type Raw
    inner_cid, inner = node([Link(left_cid, 6), Link(right_cid, 5)], b">> ")
    root_cid, root = node([Link(inner_cid, 14), Link(right_cid, 5)])
    blocks = {left_cid: left, right_cid: right, inner_cid: inner, root_cid: root}
    assert read(root_cid, blocks) == b">> hello worldworld"


def test_packed_block_sizes_and_mode_are_read() -> None:
    leaf = Cid.of(b"abc")
    inner = b"\x08\x02\x18\x06\x22\x02\x03\x03\x38\xa4\x03"
    link = b"\x0a\x24" + bytes(leaf)
    block = (b"\x12" + varint(len(link)) + link) * 2 + b"\x0a" + varint(len(inner)) + inner
    assert read(Cid.of(block, DAG_PB), {Cid.of(block, DAG_PB): block, leaf: b"abc"}) == b"abcabc"


def refused(root: Cid, blocks: dict[Cid, bytes], why: str, max_bytes: int = PLENTY) -> None:
    with pytest.raises(UpdateRefused, match=why):
        read(root, blocks, max_bytes)


def test_declared_size_is_refused_before_anything_else_is_wanted() -> None:
    leaf = Cid.of(b"x" * 10)
    cid, block = node([Link(leaf, 1 << 39)])
    assembly = Assembly(cid, 1 << 30)
    with pytest.raises(UpdateRefused, match="more than the"):
        assembly.give(cid, block)


def test_a_leaf_of_another_size_than_declared() -> None:
    leaf = Cid.of(b"twelve bytes")
    cid, block = node([Link(leaf, 5)])
    refused(cid, {cid: block, leaf: b"twelve bytes"}, "12 bytes where 5 were declared")


def test_a_size_that_does_not_add_up() -> None:
    leaf = Cid.of(b"abc")
    cid, block = node([Link(leaf, 3)], size=1)
    refused(cid, {cid: block}, "declares 1 bytes")


@pytest.mark.parametrize(
    ("kind", "name"), [(1, "a directory"), (4, "symbolic link"), (5, "sharded"), (9, "no UnixFS")]
)
def test_what_is_no_file(kind: int, name: str) -> None:
    cid, block = node([], kind=kind)
    refused(cid, {cid: block}, name)


def test_fan_out_bomb_of_few_blocks() -> None:
    """Eight small blocks that unfold into 174^7 leaves."""
    leaf = b"x"
    level, size = Cid.of(leaf), 1
    blocks = {level: leaf}
    for _ in range(7):
        size *= 174
        level, block = node([Link(level, size // 174)] * 174)
        blocks[level] = block
    refused(level, blocks, "more than", max_bytes=1 << 30)
    assembly = Assembly(level, PLENTY << 20, keep=False)
    with pytest.raises(UpdateRefused, match="more than 65536 nodes"):
        give_all(assembly, blocks)


def test_bomb_of_links_to_nothing() -> None:
    empty = Cid.of(b"")
    cid, block = node([Link(empty, 0)] * 100)
    refused(cid, {cid: block, empty: b""}, "link to nothing")


def test_too_many_links_in_one_node() -> None:
    leaf = Cid.of(b"x")
    cid, block = node([Link(leaf, 1)] * 8193)
    refused(cid, {cid: block, leaf: b"x"}, "more than 8192 links")


def test_endless_chain() -> None:
    cid, block = node([], b"x")
    blocks = {cid: block}
    for _ in range(MAX_DEPTH + 1):
        cid, block = node([Link(cid, 1)])
        blocks[cid] = block
    refused(cid, blocks, "deeper than")


def test_giant_block_is_refused_even_if_it_hashes_right() -> None:
    giant = bytes(unixfs.MAX_BLOCK_BYTES + 1)
    assert not unixfs.verify(Cid.of(giant), giant)
    refused(Cid.of(giant), {Cid.of(giant): giant}, "block")


@given(st.binary(max_size=200))
def test_garbage_raises_nothing_but_value_error(garbage: bytes) -> None:
    try:
        decode_file_node(garbage)
    except ValueError:
        return


@given(st.integers(0, (1 << 64) - 1))
def test_varint(value: int) -> None:
    assert read_varint(varint(value) + b"rest", 0) == (value, len(varint(value)))


@pytest.mark.parametrize("bad", [b"", b"\x80", b"\xff" * 9 + b"\x02", b"\x80" * 11])
def test_bad_varint(bad: bytes) -> None:
    with pytest.raises(ValueError, match="number"):
        read_varint(bad, 0)


def test_an_encoded_node_is_read_back() -> None:
    links = (Link(Cid.of(b"a", RAW), 7), Link(Cid.of(b"b", DAG_PB), 1 << 40))
    decoded = decode_file_node(encode_file_node(links, 7 + (1 << 40)))
    assert decoded.links == links
    assert decoded.size == 7 + (1 << 40)
