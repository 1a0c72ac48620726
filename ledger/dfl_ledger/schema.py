"""The ledger's database: raw events, what follows from them, and the evidence that fills in scores.

Raw events are the source; every other table except `evidence` is derived from them (see projection.py) and
can be thrown away. Numbers beyond 63 bits are decimal TEXT, CIDs and addresses are TEXT as people read them,
and addresses compare without regard to the case of their checksum.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfl_ledger.errors import NodeNotRunning, StoreUnavailable, UsageError
from dfl_ledger.tables import PROTOCOL_TABLES

SCHEMA_VERSION = 5
APPLICATION_ID = 0x64666C31  # "dfl1", in the file's header
BUSY_TIMEOUT_S = 10.0
LOG_INDEX_BITS = 20  # of `seq`, the place of an event in the chain: block << 20 | log index

_TABLES = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- where each step of the last blocks ended: what a reorganisation is seen by
CREATE TABLE blocks (
    number INTEGER PRIMARY KEY,
    hash TEXT NOT NULL,
    timestamp INTEGER NOT NULL  -- Unix seconds
) STRICT;

-- seq holds one event per (block, log index), hence also per (block hash, log index)
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    block INTEGER NOT NULL,
    block_hash TEXT NOT NULL,
    log_index INTEGER NOT NULL,
    tx TEXT NOT NULL,
    contract TEXT NOT NULL,
    name TEXT NOT NULL,
    args TEXT NOT NULL,  -- JSON
    job INTEGER,  -- whose derived rows the event touches
    node TEXT,  -- or which node's
    asset INTEGER  -- or which asset's
) STRICT;
CREATE INDEX events_by_job ON events (job) WHERE job IS NOT NULL;
CREATE INDEX events_by_node ON events (node) WHERE node IS NOT NULL;
CREATE INDEX events_by_asset ON events (asset) WHERE asset IS NOT NULL;

CREATE TABLE nodes (
    node TEXT PRIMARY KEY COLLATE NOCASE,
    peer_key TEXT NOT NULL,  -- 0x hex
    stake_wei TEXT NOT NULL,
    boot_addrs TEXT NOT NULL,  -- JSON list of multiaddrs
    state TEXT NOT NULL CHECK (state IN ('bonded', 'unbonding', 'withdrawn')),
    unbond_at INTEGER NOT NULL,  -- Unix seconds, 0 while bonded
    registered_block INTEGER NOT NULL,
    evaluator_weight TEXT NOT NULL DEFAULT '0'  -- wei, 0 if it is no evaluator
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    job INTEGER PRIMARY KEY,
    requester TEXT NOT NULL COLLATE NOCASE,
    spec TEXT NOT NULL,
    model TEXT NOT NULL,  -- the newest accepted model
    mode INTEGER NOT NULL,
    rounds INTEGER NOT NULL,
    quorum INTEGER NOT NULL,
    min_nodes INTEGER NOT NULL,
    target INTEGER NOT NULL,
    round_budget_wei TEXT NOT NULL,
    required_stake_wei TEXT NOT NULL,
    terms TEXT NOT NULL,  -- JSON list in the order of struct JobTerms
    phase INTEGER NOT NULL,
    round INTEGER NOT NULL,
    deadline INTEGER NOT NULL,  -- Unix seconds
    completed INTEGER NOT NULL,
    cancel_requested INTEGER NOT NULL,
    refunded_wei TEXT NOT NULL,
    tx TEXT NOT NULL,
    created_block INTEGER NOT NULL,
    ended_block INTEGER
) STRICT;

CREATE TABLE rounds (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    round INTEGER NOT NULL,
    parent TEXT,
    expected INTEGER NOT NULL DEFAULT 0,
    commits INTEGER NOT NULL DEFAULT 0,
    contributions INTEGER NOT NULL DEFAULT 0,
    model TEXT,
    aggregator TEXT COLLATE NOCASE,
    opened_block INTEGER,
    published_block INTEGER,
    voided_block INTEGER,
    settled_block INTEGER,
    payees INTEGER,  -- that the job had when the model was published
    PRIMARY KEY (job, round)
) STRICT, WITHOUT ROWID;

CREATE TABLE contributions (
    seq INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    round INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    node TEXT NOT NULL COLLATE NOCASE,
    kind INTEGER NOT NULL,
    cid TEXT NOT NULL,
    parent TEXT NOT NULL,
    samples TEXT NOT NULL,
    tx TEXT NOT NULL,
    block INTEGER NOT NULL,
    score TEXT,  -- this and the next three come from the evidence
    reward_wei TEXT,
    accepted INTEGER,
    why TEXT,
    FOREIGN KEY (job, round) REFERENCES rounds ON DELETE CASCADE
) STRICT;
CREATE UNIQUE INDEX contributions_by_job ON contributions (job, round, idx);
-- each of these ends with seq by itself, so that the newest rows come first without sorting
CREATE INDEX contributions_by_node ON contributions (node);
CREATE INDEX contributions_by_node_job ON contributions (node, job);
CREATE INDEX contributions_by_round ON contributions (round);
CREATE INDEX contributions_by_kind ON contributions (kind);

CREATE TABLE settlements (
    job INTEGER NOT NULL,
    round INTEGER NOT NULL,
    settler TEXT NOT NULL COLLATE NOCASE,
    root TEXT NOT NULL,  -- 0x hex
    total_wei TEXT NOT NULL,
    score_root TEXT NOT NULL,  -- 0x hex
    weights TEXT NOT NULL,
    payees INTEGER NOT NULL,  -- lines of its reward tree
    evidence TEXT NOT NULL,
    claimable_at INTEGER NOT NULL,  -- Unix seconds
    tx TEXT NOT NULL,
    block INTEGER NOT NULL,
    verified INTEGER NOT NULL DEFAULT 0,  -- 1 once its evidence was checked and its leaves stored
    PRIMARY KEY (job, round),
    FOREIGN KEY (job, round) REFERENCES rounds ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX settlements_unverified ON settlements (evidence) WHERE verified = 0;

CREATE TABLE leaves (
    job INTEGER NOT NULL,
    round INTEGER NOT NULL,
    place INTEGER NOT NULL,  -- the payee's number
    account TEXT NOT NULL COLLATE NOCASE,  -- the zero address for an asset
    asset INTEGER NOT NULL,
    score TEXT NOT NULL,
    reward_wei TEXT NOT NULL,
    cumulative_wei TEXT NOT NULL,
    PRIMARY KEY (job, round, place),
    FOREIGN KEY (job, round) REFERENCES settlements ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX leaves_by_account ON leaves (account, asset, job, round);

CREATE TABLE claims (
    seq INTEGER PRIMARY KEY,
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    round INTEGER NOT NULL,
    account TEXT NOT NULL COLLATE NOCASE,  -- who was paid: for an asset, its owner
    asset TEXT NOT NULL,
    amount_wei TEXT NOT NULL,
    tx TEXT NOT NULL,
    block INTEGER NOT NULL
) STRICT;
CREATE INDEX claims_by_job ON claims (job);
CREATE INDEX claims_by_account ON claims (account, job, asset);
CREATE INDEX claims_by_asset ON claims (asset, job) WHERE asset <> '0';

-- files as published, by CID: outlives a rollback, and the settlement it belongs to
CREATE TABLE evidence (
    cid TEXT PRIMARY KEY,
    job INTEGER NOT NULL,
    round INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
"""


def open_to_write(path: Path) -> sqlite3.Connection:
    """The database for its one writer, with its tables; created if it is missing.

    The connection may be used from any thread, by one at a time. Raises UsageError if the file is something
    else or of another version.
    """
    with _explained(path):
        db = _connect(f"{path.absolute().as_uri()}?mode=rwc")
        try:
            _check_header(db, path, may_be_new=True)
            db.execute("PRAGMA journal_mode = WAL")
            # a power cut may cost the last transactions, never consistency; the chain still has them
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA cache_size = -16384")  # KiB: new rows go to many places of the indexes
            with transaction(db):
                if db.execute("PRAGMA application_id").fetchone()[0] == 0:
                    _create(db)
        except BaseException:
            db.close()
            raise
    return db


def open_to_read(path: Path) -> sqlite3.Connection:
    """The database read-only, while a node writes it or after. Usable from any thread, by one at a time.

    Raises NodeNotRunning if there is none yet, UsageError if the file is something else or of another
    version.
    """
    if not path.is_file():
        raise NodeNotRunning(
            f"no ledger at {path}",
            why="no node has ever indexed the chain here",
            help_command="dfl-node start --wallet key.json",
        )
    uri = path.absolute().as_uri()
    with _explained(path):
        db = _connect(f"{uri}?mode=ro")
        try:
            try:
                _check_header(db, path, may_be_new=False)
            except sqlite3.OperationalError:
                # WAL wants a file of shared memory beside the database, which a read-only folder refuses;
                # without a log there is nothing in it to miss
                if path.with_name(path.name + "-wal").exists():
                    raise
                db.close()
                db = _connect(f"{uri}?immutable=1")
                _check_header(db, path, may_be_new=False)
            db.execute("PRAGMA query_only = ON")
        except BaseException:
            db.close()
            raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection, *, write: bool = True) -> Iterator[None]:
    """All or nothing. A reading one sees one state of the database throughout.

    Raises StoreUnavailable when SQLite cannot work: disk full, locked too long, damaged.
    """
    try:
        db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
    except sqlite3.DatabaseError as bad:
        raise StoreUnavailable("the ledger's database does not work", why=str(bad)) from bad


def read_meta(db: sqlite3.Connection) -> dict[str, str]:
    return dict(db.execute("SELECT key, value FROM meta").fetchall())


def write_meta(db: sqlite3.Connection, key: str, value: object) -> None:
    db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, str(value)))


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )


def _create(db: sqlite3.Connection) -> None:
    # one statement at a time: executescript would commit before it starts
    for statement in (_TABLES + PROTOCOL_TABLES).split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _check_header(db: sqlite3.Connection, path: Path, *, may_be_new: bool) -> None:
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application == APPLICATION_ID:
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"the ledger at {path} is of another version",
                why=f"it has version {version}, not {SCHEMA_VERSION}; a node builds it anew from the chain",
                help_command=f"mv {path} {path}.old",
            )
    elif application != 0 or tables != 0:
        raise UsageError(f"{path} is not a ledger", why="it is another program's database")
    elif not may_be_new:
        raise NodeNotRunning(
            f"the ledger at {path} is empty",
            why="its node has not started yet",
            help_command="dfl-node start --wallet key.json",
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as bad:
        raise UsageError(f"{path} cannot be opened as a ledger", why=str(bad)) from bad
