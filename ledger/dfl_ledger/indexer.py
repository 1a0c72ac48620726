"""From the chain's events to SQLite: resumable at any instruction, and right again after a reorganisation.

Each step writes raw events, everything derived from them and the cursor in one transaction, so that a process
killed at any point goes on without a gap or a duplicate.

What a reorganisation can change and how it is seen. Blocks below the cursor are read again at every new head:
the last `finality_blocks` of them whole and, if they hold no event of ours, the block of the newest event
before them. A block's hash commits to all its ancestors, so an event that is still there under the same hash
vouches for everything before it; an event that is gone, or new, or in a block of another hash is where the
chains part. Not seen: a reorganisation deeper than `finality_blocks` that leaves our newest event in place
and puts new events of ours between it and the last `finality_blocks`. Nor is one seen before the new chain's
height differs from the old one's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import structlog

from dfl_ledger import projection, schema
from dfl_ledger.errors import ChainUnreachable, TimedOut, VerificationFailed, WrongChain
from dfl_ledger.evidence import Evidence
from dfl_ledger.ledger import Ledger
from dfl_ledger.records import Address, Cid, Event, JobId, Leaf, Settlement

log = structlog.get_logger(__name__)

DEFAULT_SPAN_BLOCKS = 2_000
DEFAULT_FINALITY_BLOCKS = 12


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
        self._seen_head = -1
        self._lock = threading.Lock()
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
        Raises ChainUnreachable, and VerificationFailed for events that our contracts cannot have emitted.
        """
        with self._lock:
            head = self._ledger.head()
            if head == self._seen_head and head < self._next:
                return []
            # all reading comes first, so that the transaction never waits for the chain
            window_start = max(self._start, self._next - self._finality)
            to_block = min(head, self._next + self._span - 1)
            events = self._read(window_start, to_block)
            fork = self._fork(events, window_start, min(head, self._next - 1))
            first_new = self._next
            if fork is not None:
                first_new = fork
                to_block = min(head, fork + self._max_span - 1)
                events = self._read(fork, to_block)
            new = [event for event in events if event.block >= first_new]
            if self._write(fork, new, to_block + 1):
                self._seen_head = head
                return new
            return []

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

    def _fork(self, events: list[Event], from_block: int, to_block: int) -> int | None:
        """The first block whose events are not those we hold, None if all agree.

        `events` are what the chain has now from `from_block` on; compared up to `to_block`.
        """
        ours = set(
            self._db.execute(
                "SELECT block, block_hash, log_index FROM events WHERE seq >= ? AND seq < ?",
                (projection.first_seq(from_block), projection.first_seq(to_block + 1)),
            )
        )
        theirs = {(e.block, e.block_hash, e.log_index) for e in events if e.block <= to_block}
        differing = [block for block, _, _ in ours ^ theirs]
        if differing and any(block < min(differing) for block, _, _ in ours):
            fork: int | None = min(differing)
        elif not differing and ours:
            return None
        else:  # nothing we hold in these blocks vouches for those before them
            fork = self._fork_before(min(from_block, to_block + 1), min(differing, default=None))
        if fork is not None:
            log.warning("chain reorganised", from_block=fork, indexed=self.indexed)
        return fork

    def _fork_before(self, before: int, fork: int | None) -> int | None:
        """Go back over the events we hold, in growing leaps, to one that the chain still has.

        The chains part somewhere behind that one; `fork` is where they differ so far, None if nowhere.
        """
        leap = self._finality
        while True:
            row = self._db.execute(
                "SELECT block FROM events WHERE seq < ? ORDER BY seq DESC LIMIT 1",
                (projection.first_seq(before),),
            ).fetchone()
            if row is None:
                return None if fork is None else self._start
            block = int(row[0])
            ours = self._db.execute(
                "SELECT block_hash, log_index FROM events WHERE seq >= ? AND seq < ?",
                (projection.first_seq(block), projection.first_seq(block + 1)),
            )
            theirs = {(e.block_hash, e.log_index) for e in self._read(block, block)}
            if set(ours) == theirs:
                return None if fork is None else block + 1
            fork, before, leap = block, block - leap, leap * 2

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

    def _write(self, fork: int | None, events: Iterable[Event], next_block: int) -> bool:
        """One transaction. False, and nothing written, if another process moved the cursor meanwhile."""
        next_block = max(next_block, self._next if fork is None else fork)
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
            schema.write_meta(self._db, "next_block", next_block)
        self._next = next_block
        return True

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
        self._check_against_chain(evidence)
        evidence.check(settlement, self._previous_leaves(settlement))
        key = (settlement.job, settlement.round)
        rewards = {leaf.account: leaf.reward_wei for leaf in evidence.leaves if leaf.asset == 0}
        self._db.executemany(
            "UPDATE contributions SET score = ?, reward_wei = ?, accepted = ?, why = ? "
            "WHERE job = ? AND round = ? AND idx = ?",
            [
                (str(e.score), str(rewards[e.node]), e.accepted, e.why, *key, e.index)
                for e in evidence.entries
            ],
        )
        self._db.execute("DELETE FROM leaves WHERE job = ? AND round = ?", key)
        self._db.executemany(
            "INSERT INTO leaves VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (*key, x.account, str(x.asset), str(x.score), str(x.reward_wei), str(x.cumulative_wei))
                for x in evidence.leaves
            ],
        )
        self._db.execute("UPDATE settlements SET verified = 1 WHERE job = ? AND round = ?", key)

    def _check_against_chain(self, evidence: Evidence) -> None:
        """The round's models, budget and contributions are those the chain has."""
        key = (evidence.job, evidence.round)
        stated = [(str(evidence.parent), str(evidence.model), str(evidence.round_budget_wei))]
        indexed = self._db.execute(
            "SELECT r.parent, r.model, round_budget_wei FROM rounds r JOIN jobs USING (job) "
            "WHERE job = ? AND r.round = ?",
            key,
        ).fetchall()
        what = f"evidence of job {evidence.job} round {evidence.round} contradicts the chain"
        if indexed != stated:
            raise VerificationFailed(what, why="another parent, model or budget")
        entries = [(e.index, e.node, str(e.cid), str(e.samples)) for e in evidence.entries]
        contributions = self._db.execute(
            "SELECT idx, node, cid, samples FROM contributions WHERE job = ? AND round = ? ORDER BY idx", key
        ).fetchall()
        if entries != contributions:
            raise VerificationFailed(what, why="its entries are not the contributions revealed")

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
        rows = self._db.execute(
            "SELECT account, asset, score, reward_wei, cumulative_wei FROM leaves "
            "WHERE job = ? AND round = ?",
            (settlement.job, previous[0]),
        )
        return tuple(Leaf(Address(row[0]), *map(int, row[1:])) for row in rows)

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


_SELECT_SETTLEMENTS = "SELECT job, round, root, total_wei, evidence FROM settlements"


def _settlement(row: tuple[int, int, str, str, str]) -> Settlement:
    job, round_, root, total_wei, evidence = row
    return Settlement(
        JobId(job), round_, bytes.fromhex(root.removeprefix("0x")), int(total_wei), Cid.parse(evidence)
    )
