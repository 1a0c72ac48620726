"""What a wallet has sent and does not know the end of: kept on disk before it is sent.

A process that is killed between sending a transaction and hearing of it would otherwise make the same call
again. With the journal it finds the call, its nonce and the signed bytes, and sees that one to its end
instead: the bytes sent again are the same transaction. Nothing in here is secret: keys and the endpoint's URL
never come here, and a signed transaction is as public as the chain it is for.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dfl_ledger.errors import StoreUnavailable
from dfl_ledger.records import Address, TxHash

KEPT = 500  # settled ones, for whoever wonders what was sent
_BUSY_S = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sent (
    id INTEGER PRIMARY KEY,
    chain TEXT NOT NULL, -- hash of its first block: a development chain begun anew is another one
    sender TEXT NOT NULL,
    call TEXT NOT NULL,
    target TEXT, -- NULL: creates a contract
    data BLOB NOT NULL,
    value_wei TEXT NOT NULL,
    gas INTEGER NOT NULL,
    nonce INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'mined', 'dropped')),
    at REAL NOT NULL -- Unix seconds
) STRICT;
CREATE INDEX IF NOT EXISTS sent_open ON sent (chain, sender, nonce) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS offers ( -- the same call under the same nonce, each for a higher fee
    id INTEGER NOT NULL REFERENCES sent ON DELETE CASCADE,
    tx TEXT NOT NULL,
    raw TEXT NOT NULL,
    max_fee_wei TEXT NOT NULL,
    tip_wei TEXT NOT NULL,
    PRIMARY KEY (id, tx)
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Call:
    """What a transaction does. Two equal ones are the same call, made again."""

    name: str  # the contract's function
    to: Address | None  # None creates a contract
    data: bytes
    value_wei: int


@dataclass(frozen=True, slots=True)
class Offer:
    """One signed transaction. Fees in wei per gas."""

    tx: TxHash
    raw: str  # 0x hex
    max_fee_wei: int
    tip_wei: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A call on its way, under one nonce; at most one of its offers can be mined."""

    id: int
    call: Call
    gas: int
    nonce: int
    offers: tuple[Offer, ...]  # oldest first


class SentJournal:
    """One wallet's open transactions on one chain. Threads may share it; `path` None keeps it in memory.

    Raises StoreUnavailable when SQLite cannot work: disk full, damaged, locked too long.
    """

    def __init__(self, path: Path | None, *, chain: str, sender: Address) -> None:
        self._shown = str(path or "in memory")
        self._chain, self._sender = chain, sender
        self._lock = threading.Lock()
        with self._explained():
            if path is not None:
                path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(
                path or ":memory:", timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def begin(self, call: Call, gas: int, nonce: int, offer: Offer) -> int:
        """Keep a call before its first offer is sent; its id."""
        with self._transaction() as db:
            made = db.execute(
                "INSERT INTO sent (chain, sender, call, target, data, value_wei, gas, nonce, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(self._chain, self._sender, call.name, call.to, call.data, str(call.value_wei)),
                    *(gas, nonce, time.time()),
                ),
            ).lastrowid
            assert made is not None  # of an INSERT that worked  # noqa: S101
            _keep(db, made, offer)
        return made

    def raised(self, id_: int, offer: Offer) -> None:
        """Keep a higher offer before it is sent."""
        with self._transaction() as db:
            _keep(db, id_, offer)

    def mined(self, id_: int) -> None:
        """It is on chain, whether it succeeded there or not."""
        self._close(id_, "mined")

    def dropped(self, id_: int) -> None:
        """The chain will never take it: it was refused, or another transaction has its nonce."""
        self._close(id_, "dropped")

    def open(self) -> tuple[Sent, ...]:
        """Whose end is not known, by nonce."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT id, call, target, data, value_wei, gas, nonce FROM sent "
                "WHERE chain = ? AND sender = ? AND state = 'open' ORDER BY nonce, id",
                (self._chain, self._sender),
            ).fetchall()
            return tuple(
                Sent(
                    id_,
                    Call(name, None if to is None else Address(to), bytes(data), int(value_wei)),
                    gas,
                    nonce,
                    _offers(db, id_),
                )
                for id_, name, to, data, value_wei, gas, nonce in rows
            )

    def _close(self, id_: int, state: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE sent SET state = ? WHERE id = ? AND state = 'open'", (state, id_))
            db.execute(
                "DELETE FROM sent WHERE state != 'open' AND id < (SELECT max(id) FROM sent) - ?", (KEPT,)
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as bad:
            raise StoreUnavailable(
                f"the journal of transactions {self._shown} does not work", why=str(bad)
            ) from bad


def _keep(db: sqlite3.Connection, id_: int, offer: Offer) -> None:
    db.execute(
        "INSERT OR IGNORE INTO offers VALUES (?, ?, ?, ?, ?)",
        (id_, offer.tx, offer.raw, str(offer.max_fee_wei), str(offer.tip_wei)),
    )


def _offers(db: sqlite3.Connection, id_: int) -> tuple[Offer, ...]:
    rows = db.execute("SELECT tx, raw, max_fee_wei, tip_wei FROM offers WHERE id = ? ORDER BY rowid", (id_,))
    return tuple(Offer(TxHash(tx), raw, int(most), int(tip)) for tx, raw, most, tip in rows.fetchall())
