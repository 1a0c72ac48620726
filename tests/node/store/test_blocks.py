"""Block files: permissions, corruption, quota, a full disk, crashes, two processes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import trio

from dfl_ledger.errors import StoreUnavailable
from dfl_ledger.records import Cid
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.local import LocalStore
from dfl_node.store.unixfs import CHUNK_BYTES, build
from tests.conformance.blob_store import content, listed
from tests.node.store.support import WITHIN_S, over_gateway

MIB = 1 << 20


def block_path(folder: Path, cid: Cid) -> Path:
    return folder / "blocks" / cid.digest.hex()[-2:] / cid.digest.hex()


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def python(script: str, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def put(files: BlockFiles, data: bytes, *, pin: bool = True) -> Cid:
    return trio.run(lambda: LocalStore(files).put(data, pin=pin))


def get(files: BlockFiles, cid: Cid) -> bytes:
    return trio.run(lambda: LocalStore(files).get(cid, max_bytes=1 << 30))


def test_nobody_else_can_read_the_store(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        put(BlockFiles(tmp_path / "store"), content(2 * MIB))
    finally:
        os.umask(before)
    for path in (tmp_path / "store", *(tmp_path / "store").rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_files_survive_a_restart(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path)
    cid = put(files, content(MIB + 1))
    files.close()
    again = BlockFiles(tmp_path)
    assert get(again, cid) == content(MIB + 1)
    assert [(info.cid, info.pinned) for info in again.files()] == [(cid, True)]


def test_a_corrupt_block_is_set_aside_and_fetched_anew(tmp_path: Path) -> None:
    here, there = BlockFiles(tmp_path / "here"), BlockFiles(tmp_path / "there")
    data = content(3 * MIB)
    built = build(data)
    leaf = built.blocks[0][0]

    async def story() -> None:
        with trio.fail_after(WITHIN_S):
            async with over_gateway(there) as fetcher:
                store = LocalStore(here, [fetcher])
                cid = await store.put(data)
                await LocalStore(there).put(data)
                spoilt = block_path(tmp_path / "here", leaf)
                spoilt.write_bytes(b"!" + spoilt.read_bytes()[1:])
                assert await store.get(cid, max_bytes=len(data)) == data
                assert (tmp_path / "here" / "corrupt" / spoilt.name).exists()
                assert await store.has(cid)
                assert here.meter.received < 2 * MIB  # only the spoilt block

    trio.run(story)


def test_putting_again_heals_a_corrupt_block(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path)
    data = content(1000)
    cid = put(files, data)
    block_path(tmp_path, cid).write_bytes(b"rotten")
    assert put(files, data) == cid
    assert get(files, cid) == data
    files.collect()
    assert not list((tmp_path / "corrupt").iterdir())


def test_a_truncated_block_is_not_served(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path)
    cid = put(files, content(1000))
    block_path(tmp_path, cid).write_bytes(b"")
    assert files.read(cid) is None
    assert not files.complete(cid)


def test_quota_drops_what_is_unpinned_and_then_refuses(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path, max_store_bytes=4 * MIB)
    pinned = put(files, content(MIB, 1))
    cached = put(files, content(2 * MIB, 2), pin=False)
    newer = put(files, content(2 * MIB, 3))
    assert not files.complete(cached)
    with pytest.raises(StoreUnavailable, match="max_store_bytes is 4194304") as full:
        put(files, content(2 * MIB, 4))
    assert full.value.help_command == "dfl-node blob unpin CID"
    assert get(files, pinned) == content(MIB, 1)
    assert get(files, newer) == content(2 * MIB, 3)
    assert files.used_bytes() <= 4 * MIB


def test_a_file_that_arrives_at_a_full_store_is_delivered_but_not_kept(tmp_path: Path) -> None:
    here, there = BlockFiles(tmp_path / "here", max_store_bytes=2 * MIB), BlockFiles(tmp_path / "there")

    async def story() -> None:
        with trio.fail_after(WITHIN_S):
            async with over_gateway(there) as fetcher:
                store = LocalStore(here, [fetcher])
                cid = await LocalStore(there).put(content(2 * MIB))
                assert await store.get(cid, max_bytes=2 * MIB) == content(2 * MIB)
                assert not await store.has(cid)
                with pytest.raises(StoreUnavailable, match="full"):
                    await store.pin(cid)

    trio.run(story)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = BlockFiles(tmp_path)
    kept = put(files, content(MIB + 1, 1))
    before = files_in(tmp_path)
    real, written = os.fdopen, 0

    def full_after_two(fd: int, *args: Any, **kwargs: Any) -> Any:
        nonlocal written
        written += 1
        if written > 2:
            os.close(fd)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, *args, **kwargs)

    monkeypatch.setattr(os, "fdopen", full_after_two)
    with pytest.raises(StoreUnavailable, match="No space left"):
        put(files, content(5 * MIB, 2))
    monkeypatch.undo()
    assert files_in(tmp_path) == before
    assert get(files, kept) == content(MIB + 1, 1)
    assert get(files, put(files, content(5 * MIB, 2))) == content(5 * MIB, 2)


def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: every write beyond it fails in the kernel, SQLite's too."""
    script = f"""
        import resource, trio
        from pathlib import Path
        from dfl_ledger.errors import StoreUnavailable
        from dfl_node.store.blocks import BlockFiles
        from dfl_node.store.local import LocalStore
        store = LocalStore(BlockFiles(Path({str(tmp_path)!r})))
        small = trio.run(store.put, b"small")
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            trio.run(store.put, bytes(range(256)) * 4096)
        except StoreUnavailable as full:
            print(type(full).__name__)
        print(trio.run(lambda: store.get(small, max_bytes=10)).decode())
    """
    output, errors = python(script).communicate(timeout=WITHIN_S)
    assert output.split() == ["StoreUnavailable", "small"], errors
    assert [info.size for info in BlockFiles(tmp_path).files()] == [5]
    assert not list(tmp_path.rglob("*.tmp"))


def test_after_a_crash_the_index_agrees_with_the_disk(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path)
    cid, lost = put(files, content(1000, 1)), put(files, content(1000, 2))
    files.close()
    # Killed between writing and committing, between deleting and committing, and half-way through a block.
    orphan = Cid.of(b"orphan")
    block_path(tmp_path, orphan).parent.mkdir(exist_ok=True)
    block_path(tmp_path, orphan).write_bytes(b"orphan")
    half = block_path(tmp_path, orphan).with_name(Cid.of(b"half").digest.hex() + ".tmp")
    half.write_bytes(b"ha")
    block_path(tmp_path, lost).unlink()

    again = BlockFiles(tmp_path)
    assert not half.exists()
    assert again.read(orphan) == b"orphan"
    assert not again.complete(lost)
    assert get(again, cid) == content(1000, 1)
    before = again.used_bytes()
    assert again.collect() == len(b"orphan")
    assert again.used_bytes() == before - len(b"orphan")


def test_two_processes_on_one_store(tmp_path: Path) -> None:
    """One puts pinned files while the other puts unpinned ones and collects: nothing pinned is ever lost."""
    BlockFiles(tmp_path).close()
    script = f"""
        import sys, trio
        from pathlib import Path
        from tests.conformance.blob_store import content
        from dfl_node.store.blocks import BlockFiles
        from dfl_node.store.local import LocalStore
        pin = sys.argv[1] == "pin"
        async def main():
            store = LocalStore(BlockFiles(Path({str(tmp_path)!r})))
            for number in range(40):
                print(await store.put(content(3000, number), pin=pin), flush=True)
                if not pin:
                    await store.collect()
        trio.run(main)
    """
    runs = [python(script, how) for how in ("pin", "collect")]
    for run in runs:
        _, errors = run.communicate(timeout=WITHIN_S)
        assert run.returncode == 0, errors
    files = BlockFiles(tmp_path)
    pinned = [info.cid for info in files.files() if info.pinned]
    assert len(pinned) == 40
    assert all(files.complete(cid) for cid in pinned)


def test_listing_may_be_left_early(tmp_path: Path) -> None:
    async def story() -> None:
        store = LocalStore(BlockFiles(tmp_path))
        for seed in range(3):
            await store.put(content(10, seed))
        async for _ in store.ls():
            break
        assert len(await listed(store)) == 3

    trio.run(story)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(StoreUnavailable, match="store"):
        BlockFiles(tmp_path / "store")


def test_speed_of_a_model_of_common_size(tmp_path: Path) -> None:
    """4.8 MB in few calls; the bound is loose, for a busy machine."""
    store = LocalStore(BlockFiles(tmp_path))
    data = content(4_800_000)

    async def story() -> float:
        began = trio.current_time()
        cid = await store.put(data)
        assert await store.get(cid, max_bytes=len(data)) == data
        return trio.current_time() - began

    assert min(trio.run(story) for _ in range(3)) < 0.5
    assert len(build(data).blocks) == -(-len(data) // CHUNK_BYTES) + 1
