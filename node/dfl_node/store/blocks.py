"""Block files on disk, with an index in SQLite: which blocks, which files, which pins.

    <folder>/blocks/<last two hex digits>/<sha-256 in hex>    one file a block, whatever its codec
    <folder>/corrupt/                                         blocks whose bytes no longer match
    <folder>/index.sqlite                                     sizes, files, pins

Truth about a block is its file: it is read without the index and checked against its digest every time. All
writing happens inside one SQLite write transaction, which therefore is the lock between processes as well:
no collection can run between a block's arrival and its pin.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
import trio

from dfl_ledger.errors import StoreUnavailable
from dfl_ledger.records import DAG_PB, Cid
from dfl_node.store.blob_store import BlobInfo
from dfl_node.store.dag_pb import decode_links
from dfl_node.store.exchange import Meter
from dfl_node.store.unixfs import MAX_BLOCK_BYTES, MAX_NODES, Assembly, Block, verify

log = structlog.get_logger(__name__)

DEFAULT_MAX_STORE_BYTES = 10 << 30
_BUSY_S = 20.0  # how long a write waits for another process's
_UNFINISHED = ".tmp"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (digest BLOB PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    cid BLOB PRIMARY KEY, size INTEGER NOT NULL, pinned INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    cid BLOB NOT NULL REFERENCES files (cid) ON DELETE CASCADE, digest BLOB NOT NULL,
    PRIMARY KEY (cid, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS parts_by_digest ON parts (digest);
"""


def block_path(folder: Path, digest: bytes) -> Path:
    """Where a store keeps a block."""
    name = digest.hex()
    return folder / "blocks" / name[-2:] / name


class BlockFiles:
    """The blocks of one data directory. Sync and thread-safe; `block` and `has_block` are for trio.

    Raises StoreUnavailable when the disk or the quota is full or the index cannot be used; what was stored
    before stays as it was.
    """

    def __init__(self, folder: Path, *, max_store_bytes: int = DEFAULT_MAX_STORE_BYTES) -> None:
        self.folder = folder
        self.max_store_bytes = max_store_bytes
        self.meter = Meter()
        self._blocks = folder / "blocks"
        self._corrupt = folder / "corrupt"
        self._lock = threading.RLock()
        with self._troubles():
            for part in (folder, self._blocks, self._corrupt):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            index = folder / "index.sqlite"
            os.close(os.open(index, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite would create it 0644
            self._db = sqlite3.connect(index, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA foreign_keys=ON")
            self._db.executescript(_SCHEMA)
            self._reconcile()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # Reading

    async def block(self, cid: Cid) -> bytes | None:
        return await trio.to_thread.run_sync(self.read, cid)

    async def has_block(self, cid: Cid) -> bool:
        return await trio.to_thread.run_sync(self.contains, cid)

    def contains(self, cid: Cid) -> bool:
        return self._path(cid.digest).exists()

    def read(self, cid: Cid) -> bytes | None:
        """The block, or None. One whose bytes do not match is set aside, so that it can be fetched anew."""
        path = self._path(cid.digest)
        try:
            with path.open("rb") as file:
                block = file.read(MAX_BLOCK_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as bad:
            raise _unavailable(self.folder, bad) from bad
        if verify(cid, block):
            return block
        log.warning("corrupt block set aside", block=str(cid), folder=str(self._corrupt))
        with self._troubles(), self._transaction():
            with suppress(FileNotFoundError):
                path.replace(self._corrupt / path.name)
            self._db.execute("DELETE FROM blocks WHERE digest = ?", (cid.digest,))
        return None

    def fill(self, assembly: Assembly) -> None:
        """Give an assembly every wanted block that is here."""
        absent: set[Cid] = set()
        while todo := [cid for cid in assembly.wanted() if cid not in absent]:
            for cid in todo:
                block = self.read(cid)
                if block is None:
                    absent.add(cid)
                else:
                    assembly.give(cid, block)

    def complete(self, root: Cid) -> bool:
        """True if every block below `root` is here. Leaves are looked for, not read."""
        todo, seen = [root], {root}
        while todo:
            cid = todo.pop()
            if cid.codec != DAG_PB:
                if not self.contains(cid):
                    return False
                continue
            block = self.read(cid)
            if block is None:
                return False
            try:
                links = decode_links(block)
            except ValueError:
                return False
            todo += (fresh := set(links) - seen)
            seen |= fresh
            if len(seen) > MAX_NODES:
                return False
        return True

    def files(self) -> list[BlobInfo]:
        """Every file that was put here, fetched or pinned, in the order of their CIDs."""
        with self._troubles(), self._lock:
            rows = self._db.execute("SELECT cid, size, pinned FROM files ORDER BY cid").fetchall()
        return [BlobInfo(Cid.from_bytes(cid), size, bool(pinned)) for cid, size, pinned in rows]

    def used_bytes(self) -> int:
        with self._troubles(), self._lock:
            return self._used()

    # Writing

    def add(
        self,
        blocks: Sequence[tuple[Cid, Block]],
        *,
        root: Cid | None = None,
        size: int = 0,
        pin: bool = False,
        durable: bool = False,
    ) -> None:
        """Write checked blocks; with `root`, they are a whole file of `size` bytes, listed and maybe pinned.

        All or nothing. When the quota is full, what no pin reaches is dropped first. durable=True survives a
        power cut too.
        """
        with self._troubles(), self._lock:
            if durable:
                for cid, _ in blocks:
                    self.read(cid)  # sets a corrupt copy aside, which would pass for stored otherwise
            try:
                self._add(blocks, root, size, pin, durable)
            except _Full:
                self.collect()
                try:
                    self._add(blocks, root, size, pin, durable)
                except _Full as full:
                    raise StoreUnavailable(
                        "the block store is full",
                        why=f"{full.used} bytes used and {full.need} more needed, "
                        f"but max_store_bytes is {self.max_store_bytes}",
                        help_command="dfl-node blob unpin CID",
                    ) from full

    def record(self, root: Cid, size: int, cids: Sequence[Cid], *, pin: bool) -> bool:
        """List a file whose blocks are here already; False if one of them is gone again."""
        with self._troubles(), self._transaction():
            if not all(self.contains(cid) for cid in cids):
                return False
            self._record(root, size, cids, pin)
            return True

    def unpin(self, root: Cid) -> bool:
        """False if it was not pinned."""
        with self._troubles(), self._transaction():
            done = self._db.execute("UPDATE files SET pinned = 0 WHERE cid = ? AND pinned", (bytes(root),))
            return done.rowcount > 0

    def collect(self) -> int:
        """Drop every block no pin reaches, and what was set aside as corrupt; returns the bytes freed."""
        with self._troubles(), self._transaction():
            self._db.execute("DELETE FROM files WHERE NOT pinned")
            rows = self._db.execute(
                "SELECT digest, size FROM blocks WHERE digest NOT IN (SELECT digest FROM parts)"
            ).fetchall()
            # Files go before the rows are committed: a crash in between leaves rows without files, which
            # `_reconcile` drops, and no other process can write one of these blocks meanwhile.
            for digest, _ in rows:
                self._path(digest).unlink(missing_ok=True)
            self._db.executemany("DELETE FROM blocks WHERE digest = ?", [(digest,) for digest, _ in rows])
            for broken in self._corrupt.iterdir():
                broken.unlink(missing_ok=True)
            return sum(size for _, size in rows)

    def _add(
        self, blocks: Sequence[tuple[Cid, Block]], root: Cid | None, size: int, pin: bool, durable: bool
    ) -> None:
        written: list[Path] = []
        try:
            with self._transaction():
                fresh = {cid.digest: block for cid, block in blocks if not self.contains(cid)}
                self._check_quota(sum(len(block) for block in fresh.values()))
                for digest, block in fresh.items():
                    path = self._path(digest)
                    _write(path, block, durable)
                    written.append(path)
                self._db.executemany(
                    "INSERT OR REPLACE INTO blocks VALUES (?, ?)",
                    [(digest, len(block)) for digest, block in fresh.items()],
                )
                if root is not None:
                    self._record(root, size, [cid for cid, _ in blocks], pin)
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise

    def _record(self, root: Cid, size: int, cids: Sequence[Cid], pin: bool) -> None:
        self._db.execute(
            "INSERT INTO files VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET pinned = max(pinned, excluded.pinned)",
            (bytes(root), size, pin),
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO parts VALUES (?, ?)", [(bytes(root), cid.digest) for cid in cids]
        )

    def _reconcile(self) -> None:
        """Make the index agree with the disk after a crash: half-written files go, others are listed."""
        with self._transaction():
            known = {digest for (digest,) in self._db.execute("SELECT digest FROM blocks")}
            found: dict[bytes, int] = {}
            for shard in self._blocks.iterdir():
                for entry in os.scandir(shard):
                    if entry.name.endswith(_UNFINISHED):
                        Path(entry.path).unlink(missing_ok=True)  # we hold the lock: its writer is gone
                    elif len(entry.name) == 64:
                        found[bytes.fromhex(entry.name)] = entry.stat().st_size
            self._db.executemany(
                "DELETE FROM blocks WHERE digest = ?", [(lost,) for lost in known - found.keys()]
            )
            self._db.executemany(
                "INSERT INTO blocks VALUES (?, ?)",
                [(digest, size) for digest, size in found.items() if digest not in known],
            )

    def _check_quota(self, need: int) -> None:
        used = self._used()
        if used + need > self.max_store_bytes:
            raise _Full(used, need)

    def _used(self) -> int:
        (used,) = self._db.execute("SELECT coalesce(sum(size), 0) FROM blocks").fetchone()
        return int(used)

    def _path(self, digest: bytes) -> Path:
        return block_path(self.folder, digest)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as bad:
            raise _unavailable(self.folder, bad) from bad


class _Full(Exception):
    def __init__(self, used: int, need: int) -> None:
        super().__init__(f"{used} bytes used, {need} more needed")
        self.used = used
        self.need = need


def _write(path: Path, block: Block, durable: bool) -> None:
    """Write under another name, then rename: a reader sees the whole block or none."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(path.name + _UNFINISHED)
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
            file.write(block)
            if durable:
                file.flush()
                os.fdatasync(file.fileno())
        temporary.replace(path)
        if durable:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name, too
            finally:
                os.close(folder)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _unavailable(folder: Path, bad: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the block store in {folder}", why=str(bad), help_command=f"df -h {folder}")
