"""What this node must not forget: its own work and models, before the chain hears of them, and its rounds.

A commitment can only be revealed with its salt, so the work is on disk before the commitment is sent: a node
killed in between finds it again and neither loses nor repeats a round.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dfl_ledger.errors import StoreUnavailable
from dfl_ledger.records import Cid, JobId, Kind
from dfl_node.rounds.vocabulary import Work
from dfl_node.train.trainer import Verdict

_SCHEMA = """
CREATE TABLE IF NOT EXISTS work (
    job INTEGER NOT NULL, round INTEGER NOT NULL, parent TEXT NOT NULL, cid TEXT NOT NULL,
    samples INTEGER NOT NULL, salt BLOB NOT NULL, loss REAL NOT NULL, train_s REAL NOT NULL,
    kind INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, round, parent)
) STRICT;
CREATE TABLE IF NOT EXISTS promises ( -- asynchronous: which piece goes into a round
    job INTEGER NOT NULL, round INTEGER NOT NULL, parent TEXT NOT NULL, cid TEXT NOT NULL,
    samples INTEGER NOT NULL, salt BLOB NOT NULL, kind INTEGER NOT NULL,
    PRIMARY KEY (job, round)
) STRICT;
CREATE TABLE IF NOT EXISTS aggregates (
    job INTEGER NOT NULL, round INTEGER NOT NULL, model TEXT NOT NULL,
    refusals TEXT NOT NULL, -- JSON: why each update was refused, in the order of reveal; null = accepted
    PRIMARY KEY (job, round, model)
) STRICT;
CREATE TABLE IF NOT EXISTS scores ( -- what we as an evaluator are bound to, before the chain hears of it
    job INTEGER NOT NULL, round INTEGER NOT NULL, panel INTEGER NOT NULL,
    vector BLOB NOT NULL, salt BLOB NOT NULL, method TEXT NOT NULL,
    whys TEXT NOT NULL, -- JSON: index of a refused contribution -> why
    PRIMARY KEY (job, round, panel)
) STRICT;
CREATE TABLE IF NOT EXISTS seals ( -- as a requester: what the keys of a job's validation shards follow from
    anchor BLOB PRIMARY KEY, secret BLOB NOT NULL, shards INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS local_states (
    job INTEGER PRIMARY KEY, state BLOB NOT NULL -- safetensors; never leaves this node
) STRICT;
CREATE TABLE IF NOT EXISTS round_stats (
    job INTEGER NOT NULL, round INTEGER NOT NULL, opened_at REAL NOT NULL, closed_at REAL,
    bytes_sent INTEGER, PRIMARY KEY (job, round)
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class RoundStats:
    """One round as this node lived it. Times in Unix seconds of this node's clock, bytes of this node."""

    round: int
    opened_at: float
    closed_at: float | None
    bytes_sent: int | None
    train_s: float | None
    loss: float | None


@dataclass(frozen=True, slots=True)
class Scores:
    """Our scores of a round, as an evaluator."""

    vector: bytes  # 8 bytes a subject
    salt: bytes  # 32 bytes
    method: str  # that gave them: "shapley" ...
    whys: Mapping[int, str]  # reasons of refusals, by the contribution's index


class Journal:
    """SQLite with full durability. Calls block for a few milliseconds: run them in a thread.

    Raises StoreUnavailable when SQLite cannot work: disk full, damaged, locked too long.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch(mode=0o600, exist_ok=True)
        with self._transaction() as db:
            db.executescript(_SCHEMA)
            if "kind" not in {row[1] for row in db.execute("PRAGMA table_info(work)")}:  # of version 0.1.0
                db.execute("ALTER TABLE work ADD COLUMN kind INTEGER NOT NULL DEFAULT 0")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=10, isolation_level="IMMEDIATE")) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                with db:
                    yield db
        except sqlite3.Error as bad:
            raise StoreUnavailable(f"the journal {self._path} does not work", why=str(bad)) from bad

    def record(self, job: JobId, work: Work, *, loss: float, train_s: float) -> Work:
        """Keep work; the first record of a (job, round, parent) stands, and is what comes back.

        Its salt may be in a commitment already.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO work VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(job, work.round, str(work.parent), str(work.cid), work.samples),
                    *(work.salt, loss, train_s, int(work.kind)),
                ),
            )
            row = db.execute(
                f"{_SELECT_WORK} WHERE job = ? AND round = ? AND parent = ?",
                (job, work.round, str(work.parent)),
            ).fetchone()
        return _work(row)

    def work(self, job: JobId) -> Work | None:
        """The newest work recorded for a job."""
        with self._transaction() as db:
            row = db.execute(
                f"{_SELECT_WORK} WHERE job = ? ORDER BY round DESC, rowid DESC", (job,)
            ).fetchone()
        return None if row is None else _work(row)

    def work_of(self, job: JobId, cid: Cid) -> Work | None:
        """The work that gave a piece, by the round it was trained for."""
        with self._transaction() as db:
            row = db.execute(
                f"{_SELECT_WORK} WHERE job = ? AND cid = ? ORDER BY rowid DESC", (job, str(cid))
            ).fetchone()
        return None if row is None else _work(row)

    def promise(self, job: JobId, work: Work) -> Work:
        """Keep which piece goes into `work.round`; a round's first promise stands, and is what comes back.

        It may be in a commitment already.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO promises VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(job, work.round, str(work.parent), str(work.cid), work.samples),
                    *(work.salt, int(work.kind)),
                ),
            )
            row = db.execute(f"{_SELECT_PROMISE} WHERE job = ? AND round = ?", (job, work.round)).fetchone()
        return _work(row)

    def promised(self, job: JobId) -> Work | None:
        """What goes, or went, into the newest round for which something was promised."""
        with self._transaction() as db:
            row = db.execute(f"{_SELECT_PROMISE} WHERE job = ? ORDER BY round DESC", (job,)).fetchone()
        return None if row is None else _work(row)

    def local_state(self, job: JobId) -> bytes | None:
        """What this node keeps for itself in a job, as it was left last."""
        with self._transaction() as db:
            row = db.execute("SELECT state FROM local_states WHERE job = ?", (job,)).fetchone()
        return None if row is None else bytes(row[0])

    def keep_local_state(self, job: JobId, state: bytes) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO local_states VALUES (?, ?)", (job, state))

    def aggregated(self, job: JobId, round_: int, model: Cid, verdicts: Sequence[Verdict]) -> None:
        """Keep which updates a model was made of: one that arrives later must not change the judgement."""
        refusals = json.dumps([None if verdict.accepted else verdict.why for verdict in verdicts])
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO aggregates VALUES (?, ?, ?, ?)", (job, round_, str(model), refusals)
            )

    def verdicts(self, job: JobId, round_: int, model: Cid) -> tuple[Verdict, ...] | None:
        """What this node made the model of; None if it made none like it."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT refusals FROM aggregates WHERE job = ? AND round = ? AND model = ?",
                (job, round_, str(model)),
            ).fetchone()
        return row and tuple(Verdict(why is None, why or "") for why in json.loads(row[0]))

    def bind_scores(self, job: JobId, round_: int, panel: int, scores: Scores) -> Scores:
        """Keep our scores; the first ones of a panel stand, and are what comes back.

        They may be in a commitment already.
        """
        whys = json.dumps({str(index): why for index, why in scores.whys.items()})
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job, round_, panel, scores.vector, scores.salt, scores.method, whys),
            )
        bound = self.scores(job, round_, panel)
        return scores if bound is None else bound

    def scores(self, job: JobId, round_: int, panel: int = 0) -> Scores | None:
        """What we are bound to in a panel; None if we judged nothing."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT vector, salt, method, whys FROM scores WHERE job = ? AND round = ? AND panel = ?",
                (job, round_, panel),
            ).fetchone()
        if row is None:
            return None
        vector, salt, method, whys = row
        return Scores(vector, salt, method, {int(index): why for index, why in json.loads(whys).items()})

    def keep_seal(self, anchor: bytes, secret: bytes, shards: int) -> None:
        """Before the job that the anchor is of: without its secret no shard could ever be opened."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO seals VALUES (?, ?, ?)", (anchor, secret, shards))

    def seal(self, anchor: bytes) -> tuple[bytes, int] | None:
        """The secret and the number of shards of a job that we sealed."""
        with self._transaction() as db:
            row = db.execute("SELECT secret, shards FROM seals WHERE anchor = ?", (anchor,)).fetchone()
        return None if row is None else (bytes(row[0]), int(row[1]))

    def round_opened(self, job: JobId, round_: int, at: float) -> None:
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO round_stats (job, round, opened_at) VALUES (?, ?, ?)",
                (job, round_, at),
            )

    def round_closed(self, job: JobId, round_: int, at: float, bytes_sent: int) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE round_stats SET closed_at = ?, bytes_sent = ? "
                "WHERE job = ? AND round = ? AND closed_at IS NULL",
                (at, bytes_sent, job, round_),
            )

    def rounds(self, job: JobId) -> tuple[RoundStats, ...]:
        with self._transaction() as db:
            rows = db.execute(
                "SELECT s.round, opened_at, closed_at, bytes_sent, max(train_s), max(loss) "
                "FROM round_stats s "
                "LEFT JOIN work w ON w.job = s.job AND w.round = s.round "
                "WHERE s.job = ? GROUP BY s.round ORDER BY s.round",
                (job,),
            ).fetchall()
        return tuple(RoundStats(*row) for row in rows)


_SELECT_WORK = "SELECT round, parent, cid, samples, salt, kind FROM work"
_SELECT_PROMISE = "SELECT round, parent, cid, samples, salt, kind FROM promises"


def _work(row: tuple[int, str, str, int, bytes, int]) -> Work:
    round_, parent, cid, samples, salt, kind = row
    return Work(round_, Cid.parse(parent), Cid.parse(cid), samples, salt, Kind(kind))
