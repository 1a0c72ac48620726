"""From the chain's events to SQLite: resumable at any instruction, and right again after a reorganisation.

Each step writes raw events, everything derived from them and the cursor in one transaction, so that a process
killed at any point goes on without a gap or a duplicate.

What a reorganisation is seen by. The hash of the block that a step ends with is kept; a block's hash commits
to all its ancestors, so that one that the chain still has vouches for everything up to it. Each look compares
the newest one. If it is gone, the newest before it that the chain still has is searched for, and what was
derived from later blocks is taken back. One is always kept that is `finality_blocks` old or older: if that is
gone too, more was replaced than counts as possible, and the indexer stops with ReorgTooDeep rather than go on
from a past that may have paid somebody.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import structlog

from dfl_ledger import projection, round_facts, schema
from dfl_ledger.errors import (
    ChainUnreachable,
    DflError,
    ReorgTooDeep,
    TimedOut,
    VerificationFailed,
    WrongChain,
)
from dfl_ledger.evidence import Evidence
from dfl_ledger.ledger import Ledger
from dfl_ledger.records import BlockRef, Cid, Event, JobId, Leaf, Settlement
from dfl_ledger.rewards import Pots, of_contribution

log = structlog.get_logger(__name__)

DEFAULT_SPAN_BLOCKS = 2_000
DEFAULT_FINALITY_BLOCKS = 64  # two epochs of Ethereum, after which a block is final there
_DATING = ("ShardUnsealed", "ModelPublished")  # what tells how late a shard was unsealed


class Indexer:
    """The one writer of a ledger's database. Calls block and may come from any thread.

    `deployment_key` names the contracts whose events these are; a database of another chain or deployment is
    refused with WrongChain, a file that is no ledger with UsageError.
    """

    def __init__(
        self,
        db_path: Path,
        ledger: Ledger,
        *,
        deployment_key: str,
        start_block: int,
        span_blocks: int = DEFAULT_SPAN_BLOCKS,
        finality_blocks: int = DEFAULT_FINALITY_BLOCKS,
    ) -> None:
        if span_blocks < 1 or finality_blocks < 1 or start_block < 0:
            raise ValueError("span_blocks and finality_blocks are at least 1, start_block at least 0")
        self._ledger = ledger
        self._start = start_block
        self._max_span = self._span = span_blocks
        self._finality = finality_blocks
        self._seen_tip = ""  # hash of the newest block when there was nothing left to read
        self._undated = True  # there may be unsealed shards of which it is not known how late they were
        self._lock = threading.Lock()
        self._path = db_path
        self._db = schema.open_to_write(db_path)
        try:
            with schema.transaction(self._db):
                self._next = self._claim(db_path, deployment_key)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @property
    def indexed(self) -> int:
        """The newest block whose events are in the database; start_block - 1 before the first step."""
        return self._next - 1

    def lag(self) -> int:
        """Blocks of the chain that are not indexed yet. Raises ChainUnreachable."""
        return max(0, self._ledger.head() - self.indexed)

    def step(self) -> list[Event]:
        """Index the next range of blocks and return its events in chain order; [] when there is nothing new.

        After a reorganisation the range starts where the chains part, so some events come a second time.
        Raises ChainUnreachable, VerificationFailed for events that our contracts cannot have emitted, and
        ReorgTooDeep, which no further step gets over.
        """
        with self._lock:
            if self._undated:
                self._date()
            tip = self._ledger.block()
            if tip.hash == self._seen_tip and tip.number < self._next:
                return []
            # all reading comes first, so that the transaction never waits for the chain
            fork = self._fork(tip)
            first = self._next if fork is None else fork
            if tip.number < first:  # an endpoint that lags
                self._seen_tip = tip.hash
                return []
            last = self._last_of_step(first, tip)
            events = self._read(first, last.number)
            if any(event.block == last.number and event.block_hash != last.hash for event in events):
                raise ChainUnreachable("the chain changed while it was read", why=f"block {last.number}")
            if not self._write(fork, events, last, tip):
                return []
            if last == tip:
                self._seen_tip = tip.hash
            if fork is not None or any(event.name in _DATING for event in events):
                self._date()
            return events

    def add_evidence(self, evidence: Evidence, cid: Cid) -> bool:
        """Fill in the scores and rewards of the round that was settled with this evidence.

        True if done; False if its settlement is not indexed yet: the step that brings it will do it.
        Raises VerificationFailed if the round was settled otherwise or the evidence does not support it; then
        nothing changes.
        """
        with self._lock, schema.transaction(self._db):
            found = self._db.execute(
                f"{_SELECT_SETTLEMENTS} WHERE job = ? AND round = ?", (evidence.job, evidence.round)
            ).fetchone()
            if found is not None:
                settlement = _settlement(found)
                if settlement.evidence != cid:
                    raise VerificationFailed(
                        f"job {evidence.job} round {evidence.round} was settled with other evidence",
                        why=f"{settlement.evidence}, not {cid}",
                    )
                self._apply(evidence, settlement)
            self._db.execute(
                "INSERT OR REPLACE INTO evidence VALUES (?, ?, ?, ?)",
                (str(cid), evidence.job, evidence.round, evidence.encode()),
            )
            if found is not None:
                self._check_successor(evidence)
            return found is not None

    def missing_evidence(self) -> list[Settlement]:
        """Settlements whose evidence has not been added, by job and round."""
        with self._lock:
            rows = self._db.execute(
                f"{_SELECT_SETTLEMENTS} WHERE verified = 0 ORDER BY job, round"
            ).fetchall()
        return [_settlement(row) for row in rows]

    # -- reading the chain ----------------------------------------------------------------------------
    def _read(self, from_block: int, to_block: int) -> list[Event]:
        """Events of the inclusive range in chain order, in as many requests as the endpoint wants."""
        events: dict[int, Event] = {}
        while from_block <= to_block:
            end = min(to_block, from_block + self._span - 1)
            try:
                batch = self._ledger.events(from_block, end)
            except (ChainUnreachable, TimedOut) as refused:
                if end == from_block:
                    raise
                self._ledger.head()  # raises if it was not the range but the endpoint
                self._span = (end - from_block + 1) // 2
                log.info("smaller block range", blocks=self._span, why=str(refused))
                continue
            for event in batch:
                if not from_block <= event.block <= end:
                    raise VerificationFailed(
                        "the chain's endpoint answers with events nobody asked for",
                        why=f"block {event.block} is not in {from_block}..{end}",
                    )
                events[projection.seq(event)] = event
            if end - from_block + 1 == self._span:
                self._span = min(self._max_span, self._span + max(1, self._span // 8))
            from_block = end + 1
        return [events[key] for key in sorted(events)]

    def _last_of_step(self, first: int, tip: BlockRef) -> BlockRef:
        """Where a step that begins with `first` ends.

        One always ends just outside the window in which blocks may be replaced. Taken before the events are
        read: if the chain changes in between, the next step sees it.
        """
        end = min(tip.number, first + self._max_span - 1)
        if first <= tip.number - self._finality:
            end = min(end, tip.number - self._finality)
        return tip if end == tip.number else self._ledger.block(end)

    def _fork(self, tip: BlockRef) -> int | None:
        """The first block that is not the one we read, None if none was replaced. Raises ReorgTooDeep."""
        # Events name blocks too: they make the search finer, and show below the window what is too deep.
        window = projection.first_seq(max(self._start, self._next - 2 * self._finality))
        ends = self._db.execute(
            "SELECT number, hash FROM blocks WHERE number <= ? "
            "UNION SELECT block, block_hash FROM events WHERE seq >= ? AND block <= ? ORDER BY 1",
            (tip.number, window, tip.number),
        ).fetchall()

        def stands(place: int) -> bool:
            number, digest = ends[place]
            found = tip if number == tip.number else self._ledger.block(number)
            return bool(found.hash == digest)

        if not ends or stands(-1):
            return None
        # those that stand come before those that do not
        low, high = 0, len(ends) - 1
        while low < high:
            middle = (low + high) // 2
            if stands(middle):
                low = middle + 1
            else:
                high = middle
        replaced, final = int(ends[low][0]), self.indexed - self._finality
        if replaced > final or final < self._start:
            fork = int(ends[low - 1][0]) + 1 if low else self._start
        else:
            raise ReorgTooDeep(
                f"the chain replaced block {replaced}, more than {self._finality} blocks below its head",
                why="the ledger takes back no more than that; what it says of later blocks may not be true",
                help_command=f"mv {self._path} {self._path}.old",
            )
        log.warning("chain reorganised", from_block=fork, indexed=self.indexed)
        return fork

    def _date(self) -> None:
        """Find out how late shards were unsealed. Events tell blocks; this is about seconds.

        What the chain does not tell now, a later step asks again: the events count without it.
        """
        self._undated, late = True, []
        try:
            for job, position, block in self._db.execute(
                "SELECT job, position, block FROM shard_keys WHERE late_s IS NULL"
            ).fetchall():
                found = self._db.execute(
                    "SELECT published_block FROM rounds WHERE job = ? AND published_block IS NOT NULL "
                    "ORDER BY round LIMIT 1 OFFSET ?",
                    (job, position),
                ).fetchone()
                if found is None:  # before its round is published; that will bring us here again
                    continue
                late_s = 0
                if block > found[0]:
                    late_s = self._ledger.block(block).timestamp - self._ledger.block(found[0]).timestamp
                late.append((max(0, late_s), job, position))
            if late:
                with schema.transaction(self._db):
                    self._db.executemany(
                        "UPDATE shard_keys SET late_s = ? WHERE job = ? AND position = ?", late
                    )
        except DflError as silent:
            log.warning("times of blocks not read", why=str(silent))
        else:
            self._undated = False

    # -- writing --------------------------------------------------------------------------------------
    def _claim(self, path: Path, deployment_key: str) -> int:
        """Name a new database's chain and contracts, or compare an old one's; gives the next block."""
        want = {
            "chain_id": str(self._ledger.chain_id),
            "deployment_key": deployment_key,
            "start_block": str(self._start),
        }
        have = schema.read_meta(self._db)
        if not have:
            for key, value in want.items():
                schema.write_meta(self._db, key, value)
            schema.write_meta(self._db, "next_block", self._start)
            return self._start
        for key, value in want.items():
            if have[key] != value:
                raise WrongChain(
                    f"the ledger at {path} is of another {key.replace('_', ' ')}",
                    why=f"it has {have[key]}, this node has {value}",
                    help_command="dfl-node start --datadir OTHER --wallet key.json",
                )
        return int(have["next_block"])

    def _write(self, fork: int | None, events: Iterable[Event], last: BlockRef, tip: BlockRef) -> bool:
        """One transaction. False, and nothing written, if another process moved the cursor meanwhile."""
        next_block = last.number + 1
        with schema.transaction(self._db):
            cursor = int(schema.read_meta(self._db)["next_block"])
            if cursor != self._next:
                self._next = cursor
                return False
            if fork is not None:
                projection.forget_from(self._db, fork)
            settled = fork is not None
            for event in events:
                projection.record(self._db, event)
                settled = settled or event.name == "Settled"
            if settled:
                self._apply_stored()
            self._mark(fork, last)
            schema.write_meta(self._db, "next_block", next_block)
            schema.write_meta(self._db, "head_block", tip.number)
            schema.write_meta(self._db, "head_time", tip.timestamp)
        self._next = next_block
        return True

    def _mark(self, fork: int | None, last: BlockRef) -> None:
        """Keep where this step ended, and of those before it what a reorganisation can need."""
        if fork is not None:
            self._db.execute("DELETE FROM blocks WHERE number >= ?", (fork,))
        self._db.execute("INSERT INTO blocks VALUES (?, ?, ?)", (last.number, last.hash, last.timestamp))
        self._db.execute(
            "DELETE FROM blocks WHERE number < (SELECT max(number) FROM blocks WHERE number <= ?)",
            (last.number - self._finality,),
        )

    def _apply_stored(self) -> None:
        """Evidence that came before its settlement, or whose settlement was rolled back and is here again."""
        rows = self._db.execute(f"{_SELECT_SETTLEMENTS} WHERE verified = 0 ORDER BY job, round").fetchall()
        for settlement in map(_settlement, rows):
            stored = self._stored(settlement.evidence)
            if stored is None:
                continue
            try:
                self._apply(stored, settlement)
            except VerificationFailed as bad:
                log.warning("evidence refused", job=settlement.job, round=settlement.round, why=str(bad))
                self._db.execute("DELETE FROM evidence WHERE cid = ?", (str(settlement.evidence),))

    def _apply(self, evidence: Evidence, settlement: Settlement) -> None:
        """Check and store; raises VerificationFailed before anything is written."""
        key = (settlement.job, settlement.round)
        evidence.check(settlement, self._previous_leaves(settlement), round_facts.read(self._db, *key))
        pot_wei, weights = Pots.of(evidence.shares).compute_wei, evidence.score_tree.total
        self._db.executemany(
            "UPDATE contributions SET score = ?, reward_wei = ?, accepted = ?, why = ? "
            "WHERE job = ? AND round = ? AND idx = ?",
            [
                (
                    str(e.score if e.accepted else 0),
                    str(of_contribution(pot_wei, evidence.score_tree.leaves[e.index].weight, weights)),
                    e.accepted,
                    e.why,
                    *key,
                    e.index,
                )
                for e in evidence.entries
            ],
        )
        self._db.execute("DELETE FROM leaves WHERE job = ? AND round = ?", key)
        self._db.executemany(
            "INSERT INTO leaves VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (*key, place, x.account, x.asset, str(x.score), str(x.reward_wei), str(x.cumulative_wei))
                for place, x in enumerate(evidence.leaves)
            ],
        )
        self._db.execute("UPDATE settlements SET verified = 1 WHERE job = ? AND round = ?", key)

    def _previous_leaves(self, settlement: Settlement) -> tuple[Leaf, ...] | None:
        """The leaves of the job's last settlement before this one; None if its evidence is not known."""
        previous = self._db.execute(
            "SELECT round, verified FROM settlements WHERE job = ? AND round < ? ORDER BY round DESC LIMIT 1",
            (settlement.job, settlement.round),
        ).fetchone()
        if previous is None:
            return ()
        if not previous[1]:
            return None
        return round_facts.leaves(self._db, settlement.job, previous[0])

    def _check_successor(self, evidence: Evidence) -> None:
        """Evidence of the round settled next may have come first; now it can be checked whole."""
        row = self._db.execute(
            f"{_SELECT_SETTLEMENTS} WHERE job = ? AND round > ? ORDER BY round LIMIT 1",
            (evidence.job, evidence.round),
        ).fetchone()
        if row is None:
            return
        successor = _settlement(row)
        stored = self._stored(successor.evidence)
        if stored is None:
            return
        try:
            self._apply(stored, successor)
        except VerificationFailed as bad:
            log.warning("evidence withdrawn", job=successor.job, round=successor.round, why=str(bad))
            key = (successor.job, successor.round)
            self._db.execute("DELETE FROM evidence WHERE cid = ?", (str(successor.evidence),))
            self._db.execute("DELETE FROM leaves WHERE job = ? AND round = ?", key)
            self._db.execute(
                "UPDATE contributions SET score = NULL, reward_wei = NULL, accepted = NULL, why = NULL "
                "WHERE job = ? AND round = ?",
                key,
            )
            self._db.execute("UPDATE settlements SET verified = 0 WHERE job = ? AND round = ?", key)

    def _stored(self, cid: Cid) -> Evidence | None:
        row = self._db.execute("SELECT body FROM evidence WHERE cid = ?", (str(cid),)).fetchone()
        return None if row is None else Evidence.decode(row[0])


_SELECT_SETTLEMENTS = "SELECT job, round, root, total_wei, evidence, score_root, weights FROM settlements"


def _settlement(row: tuple[int, int, str, str, str, str, str]) -> Settlement:
    job, round_, root, total_wei, evidence, score_root, weights = row
    return Settlement(
        JobId(job),
        round_,
        bytes.fromhex(root.removeprefix("0x")),
        int(total_wei),
        Cid.parse(evidence),
        bytes.fromhex(score_root.removeprefix("0x")),
        int(weights),
    )
