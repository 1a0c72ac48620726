"""What every `BlobStore` does. One function a promise; each takes fresh stores.

A store may be slow to say that something is missing, so each wait here is short and bounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import pytest

from dfl_ledger.errors import BlobNotFound, UpdateRefused
from dfl_ledger.records import DAG_PB, RAW, Cid
from dfl_node.store.blob_store import BlobInfo, BlobStore
from dfl_node.store.unixfs import CHUNK_BYTES

UNKNOWN = Cid(DAG_PB, hashlib.sha256(b"nobody has this").digest())
WEIGHTS_CID = "bafybeihej5b4xwv57zn4kg5fy7evg46crqlluh4bpb4c6eqhiuktzzjhhe"
TWO_CHUNKS_CID = "bafybeic5efdba3fynm55qx4wqx7mb5x62ud642p4lwsvl4wfs2yadjw4se"
MISSING_S = 1.0
PLENTY = 1 << 30

Check = Callable[[BlobStore], Awaitable[None]]


def content(size: int, seed: int = 0) -> bytes:
    """Deterministic bytes that do not repeat within a chunk."""
    return hashlib.shake_128(f"{size} {seed}".encode()).digest(size)


async def listed(store: BlobStore) -> dict[Cid, BlobInfo]:
    return {info.cid: info async for info in store.ls()}


async def check_round_trip(store: BlobStore) -> None:
    for size in (0, 1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 7):
        data = content(size)
        cid = await store.put(data)
        assert cid.codec == DAG_PB
        assert Cid.from_digest(cid.digest) == cid
        assert await store.get(cid, max_bytes=size) == data
        assert await store.has(cid)


async def check_known_cids(store: BlobStore) -> None:
    """The CIDs are fixed: they are on the chain, and a second implementation must find the same."""
    assert str(await store.put(b"")) == "bafybeif7ztnhq65lumvvtr4ekcwd2ifwgm3awq4zfr3srh462rwyinlb4y"
    assert str(await store.put(b"weights")) == WEIGHTS_CID
    assert str(await store.put(content(CHUNK_BYTES + 1))) == TWO_CHUNKS_CID


async def check_same_bytes_same_cid(store: BlobStore) -> None:
    data = content(5000)
    assert await store.put(data) == await store.put(data, pin=False)
    assert (await listed(store))[await store.put(data)].pinned


async def check_repeating_content(store: BlobStore) -> None:
    """Equal chunks are one block; the file is whole all the same."""
    data = bytes(3 * CHUNK_BYTES + 5)
    assert await store.get(await store.put(data), max_bytes=PLENTY) == data


async def check_raw_leaf(store: BlobStore) -> None:
    data = content(1000)
    await store.put(data)
    leaf = Cid.of(data, RAW)
    assert await store.has(leaf)
    assert await store.get(leaf, max_bytes=1000) == data


async def check_missing(store: BlobStore) -> None:
    assert not await store.has(UNKNOWN)
    with pytest.raises(BlobNotFound, match=str(UNKNOWN)):
        await store.get(UNKNOWN, max_bytes=PLENTY, timeout_s=MISSING_S)


async def check_size_cap(store: BlobStore) -> None:
    cid = await store.put(content(2000))
    with pytest.raises(UpdateRefused, match="2000 bytes"):
        await store.get(cid, max_bytes=1999)
    leaf = Cid.of(content(2000), RAW)
    with pytest.raises(UpdateRefused, match="2000 bytes"):
        await store.get(leaf, max_bytes=1999)


async def check_not_a_file(store: BlobStore) -> None:
    """Bytes that hash right but are no file: asked for by a DAG-PB or DAG-CBOR name."""
    data = content(500)
    await store.put(data)
    with pytest.raises(UpdateRefused):
        await store.get(Cid.of(data, DAG_PB), max_bytes=PLENTY, timeout_s=MISSING_S)
    with pytest.raises(UpdateRefused):
        await store.get(Cid(0x71, hashlib.sha256(data).digest()), max_bytes=PLENTY, timeout_s=MISSING_S)


async def check_pins_and_collect(store: BlobStore) -> None:
    kept, dropped = content(CHUNK_BYTES + 100, 1), content(CHUNK_BYTES + 200, 2)
    kept_cid, dropped_cid = await store.put(kept), await store.put(dropped)
    rows = await listed(store)
    assert rows[kept_cid] == BlobInfo(kept_cid, len(kept), True)
    assert rows[dropped_cid].size == len(dropped)

    await store.unpin(dropped_cid)
    after = await listed(store)
    assert dropped_cid not in after or not after[dropped_cid].pinned
    assert await store.collect() >= len(dropped)
    assert not await store.has(dropped_cid)
    assert await store.get(kept_cid, max_bytes=PLENTY) == kept
    assert dropped_cid not in await listed(store)


async def check_pin_what_was_put_unpinned(store: BlobStore) -> None:
    data = content(3000)
    cid = await store.put(data, pin=False)
    await store.pin(cid)
    await store.collect()
    assert await store.get(cid, max_bytes=3000) == data
    assert (await listed(store))[cid].pinned


async def check_shared_blocks_survive(store: BlobStore) -> None:
    """Two files share a chunk; dropping one leaves the other whole."""
    shared = content(CHUNK_BYTES)
    first, second = shared + b"one", shared + b"two"
    first_cid, second_cid = await store.put(first), await store.put(second)
    await store.unpin(first_cid)
    await store.collect()
    assert await store.get(second_cid, max_bytes=PLENTY) == second


async def check_unpin_unknown(store: BlobStore) -> None:
    with pytest.raises(BlobNotFound, match="not pinned"):
        await store.unpin(UNKNOWN)


async def check_traffic_is_counted_from_zero(store: BlobStore) -> None:
    await store.put(content(100))
    assert (store.traffic().sent, store.traffic().received) == (0, 0)


CHECKS: tuple[Check, ...] = (
    check_round_trip,
    check_known_cids,
    check_same_bytes_same_cid,
    check_repeating_content,
    check_raw_leaf,
    check_missing,
    check_size_cap,
    check_not_a_file,
    check_pins_and_collect,
    check_pin_what_was_put_unpinned,
    check_shared_blocks_survive,
    check_unpin_unknown,
    check_traffic_is_counted_from_zero,
)


# For stores that reach peers: `here` fetches from `there`.


async def check_fetch_from_peer(here: BlobStore, there: BlobStore) -> None:
    data = content(2 * CHUNK_BYTES + 1)
    cid = await there.put(data)
    assert not await here.has(cid)
    assert await here.get(cid, max_bytes=len(data), timeout_s=20) == data
    assert await here.has(cid)
    assert here.traffic().received >= len(data)
    assert there.traffic().sent >= len(data)


async def check_peer_size_cap(here: BlobStore, there: BlobStore) -> None:
    cid = await there.put(content(CHUNK_BYTES + 1))
    with pytest.raises(UpdateRefused):
        await here.get(cid, max_bytes=CHUNK_BYTES, timeout_s=20)
    assert here.traffic().received < CHUNK_BYTES  # told by the root, before the leaves were fetched


async def check_pin_fetches(here: BlobStore, there: BlobStore) -> None:
    data = content(CHUNK_BYTES + 5)
    cid = await there.put(data)
    await here.pin(cid)
    assert (await listed(here))[cid] == BlobInfo(cid, len(data), True)


PEER_CHECKS: tuple[Callable[[BlobStore, BlobStore], Awaitable[None]], ...] = (
    check_fetch_from_peer,
    check_peer_size_cap,
    check_pin_fetches,
)
