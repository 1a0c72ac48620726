"""What the ledger says: who contributed what, what it was worth, what was paid. Reads the indexer's database.

Works whether or not a node runs on it. Rows are frozen and have `to_json()`: plain JSON with EIP-55
addresses, CIDs as text and wei as decimal strings.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfl_ledger import round_facts, schema
from dfl_ledger.errors import UsageError
from dfl_ledger.merkle import RewardTree
from dfl_ledger.query_rewards import RewardRows
from dfl_ledger.records import NOBODY, Address, Cid, JobId, Kind, Leaf, Mode, Phase, Settlement
from dfl_ledger.rows import (
    SETTLEMENT_COLUMNS,
    Claimable,
    ClaimRow,
    ContributionRow,
    Earnings,
    IndexState,
    JobRow,
    NodeRow,
    RoundRow,
    SettlementRow,
    read_contribution,
    read_job,
    read_node,
    read_rounds,
    read_settlement,
)

__all__ = [
    "ClaimRow",
    "Claimable",
    "ContributionRow",
    "Earnings",
    "IndexState",
    "JobRow",
    "LedgerRows",
    "NodeRow",
    "RoundRow",
    "SettlementRow",
    "open_ledger",
]

_CONTRIBUTION_ID = re.compile(r"(\d{1,18})\.(\d{1,18})\.(\d{1,18})", re.ASCII)


def open_ledger(path: Path) -> LedgerRows:
    """Raises NodeNotRunning if there is no ledger yet, UsageError if the file is something else."""
    return LedgerRows(path)


class LedgerRows(RewardRows):
    """Reads a ledger's database; usable from any thread. Raises StoreUnavailable if SQLite cannot read."""

    def __init__(self, path: Path) -> None:
        self._db = schema.open_to_read(path)
        self._lock = threading.Lock()

    def __enter__(self) -> LedgerRows:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the database for all that is read inside."""
        with self._lock, schema.transaction(self._db, write=False):
            yield self._db

    # -- contributions --------------------------------------------------------------------------------
    def contributions(
        self,
        node: str | None = None,
        job: int | None = None,
        round_: int | None = None,
        kind: Kind | str | None = None,
        limit: int | None = 1000,
    ) -> tuple[ContributionRow, ...]:
        """The newest `limit` (None: all) that match, in chain order. Raises UsageError for no such kind."""
        if isinstance(kind, str):
            kind = _kind(kind)
        wanted = {"node": node, "job": job, "round": round_, "kind": kind}
        wanted = {column: value for column, value in wanted.items() if value is not None}
        where = " AND ".join(f"{column} = ?" for column in wanted) or "TRUE"
        index, order = _plan(wanted)
        with self.reading() as db:
            rows = db.execute(
                f"{_SELECT_CONTRIBUTIONS} {index} WHERE {where} ORDER BY {order} LIMIT ?",
                (*wanted.values(), -1 if limit is None else limit),
            ).fetchall()
        return tuple(read_contribution(row) for row in reversed(rows))

    def contribution(self, id_: str) -> ContributionRow | None:
        """By JOB.ROUND.INDEX. Raises UsageError if `id_` is not of this form."""
        match = _CONTRIBUTION_ID.fullmatch(id_)
        if match is None:
            raise UsageError(
                f"{id_!r:.60} is not a contribution",
                why="it is named JOB.ROUND.INDEX, like 1.3.0",
                help_command="dfl-node ledger query",
            )
        with self.reading() as db:
            row = db.execute(
                f"{_SELECT_CONTRIBUTIONS} WHERE job = ? AND round = ? AND idx = ?",
                tuple(map(int, match.groups())),
            ).fetchone()
        return None if row is None else read_contribution(row)

    def revealed(self, job: int, round_: int) -> tuple[ContributionRow, ...]:
        """Every contribution of a round in the order of reveal."""
        return self.contributions(job=job, round_=round_, limit=None)

    # -- jobs and rounds ------------------------------------------------------------------------------
    def jobs(self) -> tuple[JobRow, ...]:
        """Every job, oldest first."""
        with self.reading() as db:
            return tuple(read_job(row) for row in db.execute(f"{_SELECT_JOBS} ORDER BY job").fetchall())

    def job(self, job: int) -> JobRow | None:
        """One job with its rounds."""
        with self.reading() as db:
            row = db.execute(f"{_SELECT_JOBS} WHERE job = ?", (job,)).fetchone()
            if row is None:
                return None
            rounds = db.execute(f"{_SELECT_ROUNDS} WHERE r.job = ? ORDER BY r.round", (job,)).fetchall()
        return read_job(row, read_rounds(rounds))

    def open_jobs(self) -> tuple[JobId, ...]:
        """Jobs that have not ended, oldest first."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT job FROM jobs WHERE phase < ? ORDER BY job", (int(Phase.COMPLETED),)
            ).fetchall()
        return tuple(JobId(job) for (job,) in rows)

    def awaited(self, job: int) -> tuple[Address, ...]:
        """The nodes whose commitment, hop or reveal the current phase waits for; empty in any other phase."""
        with self.reading() as db:
            found = db.execute("SELECT phase, round, mode, target FROM jobs WHERE job = ?", (job,)).fetchone()
            if found is None or found[0] not in (Phase.COMMIT, Phase.REVEAL):
                return ()
            phase, round_, mode, target = found
            if mode == Mode.CHAINED:
                return _leaseholder(db, job, round_)
            committed = _nodes_of(db, job, round_, "ContributionCommitted")
            if phase == Phase.REVEAL:
                return tuple(sorted(committed - _nodes_of(db, job, round_, "ContributionRevealed")))
            if target:
                return tuple(sorted(set(_joined_by(db, job, round_)) - committed))
            # who revealed in the last round is a member of this one without joining again
            members = _nodes_of(db, job, round_, "NodeJoined")
            members |= _nodes_of(db, job, round_ - 1, "ContributionRevealed")
            return tuple(sorted(members - committed))

    def members(self, job: int, round_: int) -> tuple[Address, ...]:
        """Who had joined by a round, in the order of joining: the standing members of a job with a target."""
        with self.reading() as db:
            return _joined_by(db, job, round_)

    def models(self, job: int, round_: int) -> tuple[Cid, Cid]:
        """A published round's parent and model. Raises UsageError if it was not published."""
        with self.reading() as db:
            row = db.execute(
                "SELECT parent, model FROM rounds WHERE job = ? AND round = ? AND model IS NOT NULL",
                (job, round_),
            ).fetchone()
        if row is None:
            raise UsageError(
                f"job {job} round {round_} has no model",
                why="the ledger knows of no publication",
                help_command=f"dfl-node job status {job}",
            )
        return Cid.parse(row[0]), Cid.parse(row[1])

    def lineage(self, job: int, round_: int, limit: int | None = None) -> tuple[Cid, ...]:
        """The model a round starts from and the models before it, newest first, the job's first one last.

        Empty if the ledger does not know that the round has opened.
        """
        with self.reading() as db:
            rows = db.execute(
                "SELECT round, parent FROM rounds WHERE job = ? AND parent IS NOT NULL "
                "AND (round = ? OR round < ? AND published_block IS NOT NULL) ORDER BY round DESC LIMIT ?",
                (job, round_, round_, -1 if limit is None else limit),
            ).fetchall()
        known = bool(rows) and rows[0][0] == round_
        return tuple(Cid.parse(parent) for _, parent in rows) if known else ()

    def delivered(self, job: int, node: str, limit: int) -> tuple[Cid, ...]:
        """A node's newest pieces in rounds that have a model, newest first."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT cid FROM contributions c JOIN rounds r ON r.job = c.job AND r.round = c.round "
                "WHERE c.job = ? AND c.node = ? AND r.published_block IS NOT NULL ORDER BY seq DESC LIMIT ?",
                (job, node, limit),
            ).fetchall()
        return tuple(Cid.parse(cid) for (cid,) in rows)

    def delivered_in(self, job: int, cid: Cid, before: int) -> int | None:
        """The first round before another that has a model and had this piece, whoever revealed it."""
        with self.reading() as db:
            row = db.execute(
                "SELECT c.round FROM contributions c INDEXED BY contributions_by_job "
                "JOIN rounds r ON r.job = c.job AND r.round = c.round "
                "WHERE c.job = ? AND c.round < ? AND c.cid = ? AND r.published_block IS NOT NULL "
                "ORDER BY c.round LIMIT 1",
                (job, before, str(cid)),
            ).fetchone()
        return None if row is None else int(row[0])

    def unsettled_rounds(self, job: int) -> tuple[int, ...]:
        """Published rounds without a settlement, oldest first."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT round FROM rounds WHERE job = ? AND published_block IS NOT NULL "
                "AND settled_block IS NULL ORDER BY round",
                (job,),
            ).fetchall()
        return tuple(round_ for (round_,) in rows)

    # -- money ----------------------------------------------------------------------------------------
    def settlements(self, job: int) -> list[dict[str, Any]]:
        """Every settlement of a job with its leaves, oldest first, as plain JSON."""
        with self.reading() as db:
            rows = db.execute(f"{_SELECT_SETTLEMENTS} WHERE job = ? ORDER BY round", (job,)).fetchall()
            return [read_settlement(row, round_facts.leaves(db, job, row[1])).to_json() for row in rows]

    def leaves(self, job: int, round_: int) -> tuple[Leaf, ...]:
        """A settlement's leaves; none before its evidence was checked."""
        with self.reading() as db:
            return round_facts.leaves(db, job, round_)

    def settled_before(self, job: int, round_: int) -> Settlement | None:
        """The job's last settlement of a round before this one."""
        with self.reading() as db:
            row = db.execute(
                f"{_SELECT_SETTLEMENTS} WHERE job = ? AND round < ? ORDER BY round DESC LIMIT 1",
                (job, round_),
            ).fetchone()
        if row is None:
            return None
        found = read_settlement(row, ())
        return found.settlement()

    def claimable(self, account: str, now: int) -> tuple[Claimable, ...]:
        """What can be claimed at `now` (Unix seconds of the chain): one a job and asset, the newest leaf."""
        with self.reading() as db:
            return _claimable(db, account, now)

    def claims(self, account: str) -> tuple[ClaimRow, ...]:
        """Every payment to an account, in chain order."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT job, round, account, asset, amount_wei, tx, block FROM claims "
                "WHERE account = ? ORDER BY seq",
                (account,),
            ).fetchall()
        return tuple(
            ClaimRow(JobId(job), round_, Address(to), int(asset), int(amount), tx, block)
            for job, round_, to, asset, amount, tx, block in rows
        )

    def earnings(self, account: str) -> Earnings:
        """What an account earned, was paid, and has left to claim once the challenge windows have passed."""
        with self.reading() as db:
            newest = _newest_leaves(db, account, None)
            return Earnings(
                account=Address(account),
                earned_wei=sum(cumulative_wei for _, _, cumulative_wei, _, _ in newest),
                claimed_wei=sum(_claimed(db, account).values()),
                claimable=_claimable(db, account, None),
            )

    # -- nodes and the index itself -------------------------------------------------------------------
    def nodes(self) -> tuple[NodeRow, ...]:
        """Every node that ever registered, by address."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT node, peer_key, stake_wei, unbond_at, boot_addrs, state, registered_block "
                "FROM nodes ORDER BY node"
            ).fetchall()
        return tuple(read_node(row) for row in rows)

    def indexed_block(self) -> int:
        """The newest block whose events are here."""
        return self.index_state().indexed_block

    def index_state(self) -> IndexState:
        with self.reading() as db:
            meta = schema.read_meta(db)
            newest = db.execute("SELECT timestamp FROM blocks ORDER BY number DESC LIMIT 1").fetchone()
            missing = db.execute("SELECT count(*) FROM settlements WHERE verified = 0").fetchone()[0]
        indexed, indexed_time = int(meta["next_block"]) - 1, newest[0] if newest else 0
        head = int(meta.get("head_block", indexed))
        return IndexState(
            chain_id=int(meta["chain_id"]),
            deployment_key=meta["deployment_key"],
            start_block=int(meta["start_block"]),
            indexed_block=indexed,
            head_block=head,
            behind_blocks=max(0, head - indexed),
            behind_s=max(0, int(meta.get("head_time", indexed_time)) - indexed_time),
            indexed_time=indexed_time,
            missing_evidence=missing,
        )


# -- SQL --------------------------------------------------------------------------------------------------
_SELECT_CONTRIBUTIONS = (
    "SELECT job, round, idx, node, kind, cid, parent, samples, score, reward_wei, accepted, why, tx, block "
    "FROM contributions"
)
_SELECT_JOBS = (
    "SELECT job, requester, spec, model, mode, phase, round, completed, rounds, quorum, min_nodes, "
    "round_budget_wei, required_stake_wei, refunded_wei, cancel_requested, deadline, created_block, "
    "ended_block, tx, "
    "(SELECT total_wei FROM settlements s WHERE s.job = jobs.job ORDER BY s.round DESC LIMIT 1), "
    "(SELECT sum(contributions) FROM rounds r WHERE r.job = jobs.job) FROM jobs"
)
_SELECT_ROUNDS = (
    "SELECT r.round, parent, model, aggregator, expected, commits, contributions, opened_block, "
    "published_block, voided_block, settled_block, evidence, claimable_at, total_wei "
    "FROM rounds r LEFT JOIN settlements s ON s.job = r.job AND s.round = r.round"
)
_SELECT_SETTLEMENTS = f"SELECT {SETTLEMENT_COLUMNS} FROM settlements"  # noqa: S608


def _plan(wanted: Mapping[str, object]) -> tuple[str, str]:
    """Which index to use, and chain order backwards as that index gives it without sorting.

    Said here because the planner has no statistics: it may take the index of `kind`, which most rows share.
    """
    backwards = "seq DESC"
    match ("node" in wanted, "job" in wanted, "round" in wanted, "kind" in wanted):
        case (False, True, _, _) | (True, True, True, _):
            return "INDEXED BY contributions_by_job", "round DESC, idx DESC"
        case (True, True, False, _):
            return "INDEXED BY contributions_by_node_job", backwards
        case (True, False, _, _):
            return "INDEXED BY contributions_by_node", backwards
        case (False, False, True, _):
            return "INDEXED BY contributions_by_round", backwards
        case (False, False, False, True):
            return "INDEXED BY contributions_by_kind", backwards
        case _:
            return "NOT INDEXED", backwards


def _kind(name: str) -> Kind:
    try:
        return Kind[name.upper()]
    except KeyError:
        known = ", ".join(kind.name.lower() for kind in Kind)
        raise UsageError(f"{name!r:.40} is not a kind of contribution", why=f"known are {known}") from None


def _nodes_of(db: sqlite3.Connection, job: int, round_: int, event: str) -> set[Address]:
    """The nodes that an event of a round names."""
    rows = db.execute(
        "SELECT json_extract(args, '$.node') FROM events "
        "WHERE job = ? AND name = ? AND json_extract(args, '$.round') = ?",
        (job, event, round_),
    ).fetchall()
    return {Address(node) for (node,) in rows}


def _joined_by(db: sqlite3.Connection, job: int, round_: int) -> tuple[Address, ...]:
    """Who joined with a first round up to this one and was not shut out since, in the order of joining."""
    rows = db.execute(
        "SELECT json_extract(args, '$.node'), name FROM events WHERE job = ? AND (name = 'NodeJoined' "
        "AND json_extract(args, '$.round') <= ? OR name IN ('NodeBanned', 'NodeExpelled')) ORDER BY seq",
        (job, round_),
    ).fetchall()
    members: dict[Address, None] = {}
    for node, name in rows:
        if name == "NodeJoined":
            members[Address(node)] = None
        else:
            members.pop(Address(node), None)
    return tuple(members)


def _leaseholder(db: sqlite3.Connection, job: int, round_: int) -> tuple[Address, ...]:
    """Whose hop is next in a lap that is under way."""
    row = db.execute(
        "SELECT json_extract(args, '$.node') FROM events WHERE job = ? AND name = 'HopLeased' "
        "AND json_extract(args, '$.round') = ? ORDER BY seq DESC LIMIT 1",
        (job, round_),
    ).fetchone()
    return () if row is None else (Address(row[0]),)


def _claimed(db: sqlite3.Connection, account: str) -> dict[tuple[int, int], int]:
    """(job, asset) -> wei paid so far: to the account for its work, and for its assets to whoever owned
    them.
    """
    paid: dict[tuple[int, int], int] = {}
    rows = db.execute(
        "SELECT job, asset, amount_wei FROM claims WHERE account = ? AND asset = '0' UNION ALL "
        "SELECT job, c.asset, amount_wei FROM assets a JOIN claims c ON c.asset = CAST(a.asset AS TEXT) "
        "WHERE a.owner = ? AND c.asset <> '0'",
        (account, account),
    ).fetchall()
    for job, asset, amount in rows:
        key = (job, int(asset))
        paid[key] = paid.get(key, 0) + int(amount)
    return paid


def _newest_leaves(
    db: sqlite3.Connection, account: str, now: int | None
) -> list[tuple[int, int, int, int, int]]:
    """(job, asset, cumulative wei, round, place) of what an account or one of its assets has earned so
    far.
    """
    # of columns outside max() SQLite gives those of the row that holds the maximum
    rows = db.execute(
        "SELECT l.job, l.asset, cumulative_wei, max(l.round), place FROM leaves l "
        "JOIN settlements s ON s.job = l.job AND s.round = l.round "
        "WHERE (account = ? AND l.asset = 0 OR account = ? AND l.asset IN "
        "(SELECT asset FROM assets WHERE owner = ?)) "
        "AND (? IS NULL OR claimable_at <= ?) GROUP BY l.job, l.asset",
        (account, NOBODY, account, now, now),
    ).fetchall()
    return [(job, asset, int(cumulative), round_, place) for job, asset, cumulative, round_, place in rows]


def _claimable(db: sqlite3.Connection, account: str, now: int | None) -> tuple[Claimable, ...]:
    """`now` None: whatever its challenge window."""
    paid = _claimed(db, account)
    claimable = []
    for job, asset, cumulative_wei, round_, place in _newest_leaves(db, account, now):
        amount_wei = cumulative_wei - paid.get((job, asset), 0)
        if amount_wei <= 0:
            continue
        tree = RewardTree(round_facts.leaves(db, job, round_))
        claimable.append(Claimable(JobId(job), round_, tree.leaves[place], tree.proof(place), amount_wei))
    return tuple(claimable)
