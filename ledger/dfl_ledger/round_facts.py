"""What the ledger's rows say the chain fixed of a round."""

from __future__ import annotations

import json
import sqlite3

from dfl_ledger import terms
from dfl_ledger.errors import UsageError
from dfl_ledger.facts import Ballot, Piece, RoundFacts, Shares
from dfl_ledger.records import Address, Cid, JobId, JobTerms, Leaf, Payee


def read(db: sqlite3.Connection, job: int, round_: int) -> RoundFacts:
    """Raises UsageError for a round without a model.

    Before the round is settled the payees are those that a settlement made now would have to have; they stay
    the same once its panel is done and the round before is settled.
    """
    found = db.execute(
        "SELECT r.parent, r.model, r.payees, terms FROM rounds r JOIN jobs USING (job) "
        "WHERE job = ? AND r.round = ? AND r.model IS NOT NULL",
        (job, round_),
    ).fetchone()
    if found is None:
        raise UsageError(
            f"job {job} round {round_} has no model",
            why="the ledger knows of no publication",
            help_command=f"dfl-node job status {job}",
        )
    parent, model, published_payees, told = found
    promised = terms.from_args(json.loads(told))
    pieces = db.execute(
        "SELECT node, cid, samples FROM contributions WHERE job = ? AND round = ? ORDER BY idx", (job, round_)
    ).fetchall()
    subjects, ballots = _panel(db, job, round_)
    audits = min(promised.audits, len(pieces))
    measured = 0 if subjects is None else subjects - len(pieces) - audits - 1
    return RoundFacts(
        job=JobId(job),
        round=round_,
        parent=Cid.parse(parent),
        model=Cid.parse(model),
        shares=Shares.of(promised),
        contributions=tuple(
            Piece(Address(node), Cid.parse(cid), int(samples)) for node, cid, samples in pieces
        ),
        datasets=datasets(db, job)[:measured],
        audits=audits,
        ballots=ballots,
        payees=payees(db, job)[: _payee_count(db, job, round_, published_payees)],
    )


def payees(db: sqlite3.Connection, job: int) -> tuple[Payee, ...]:
    """By number."""
    rows = db.execute("SELECT account, asset FROM payees WHERE job = ? ORDER BY idx", (job,)).fetchall()
    return tuple(Payee(Address(account), asset) for account, asset in rows)


def datasets(db: sqlite3.Connection, job: int) -> tuple[int, ...]:
    """Assets, by place."""
    rows = db.execute(
        "SELECT DISTINCT place, asset FROM datasets WHERE job = ? ORDER BY place", (job,)
    ).fetchall()
    return tuple(asset for _, asset in rows)


def job_terms(db: sqlite3.Connection, job: int) -> JobTerms | None:
    row = db.execute("SELECT terms FROM jobs WHERE job = ?", (job,)).fetchone()
    return None if row is None else terms.from_args(json.loads(row[0]))


def leaves(db: sqlite3.Connection, job: int, round_: int) -> tuple[Leaf, ...]:
    """A settlement's lines by place; none before its evidence was checked."""
    rows = db.execute(
        "SELECT account, asset, score, reward_wei, cumulative_wei FROM leaves "
        "WHERE job = ? AND round = ? ORDER BY place",
        (job, round_),
    ).fetchall()
    return tuple(Leaf(Address(row[0]), *map(int, row[1:])) for row in rows)


def _panel(db: sqlite3.Connection, job: int, round_: int) -> tuple[int | None, tuple[Ballot, ...]]:
    """How many subjects a vector has (None: the panel was never drawn), and its seats."""
    row = db.execute(
        "SELECT subjects FROM panels WHERE job = ? AND round = ? AND panel = 0", (job, round_)
    ).fetchone()
    seats = db.execute(
        "SELECT evaluator, weight, vector FROM seats WHERE job = ? AND round = ? AND panel = 0 ORDER BY seat",
        (job, round_),
    ).fetchall()
    return None if row is None else int(row[0]), tuple(
        Ballot(Address(evaluator), int(weight), vector) for evaluator, weight, vector in seats
    )


def _payee_count(db: sqlite3.Connection, job: int, round_: int, published: int) -> int:
    settled = db.execute(
        "SELECT payees FROM settlements WHERE job = ? AND round = ?", (job, round_)
    ).fetchone()
    if settled is not None:
        return int(settled[0])
    before = db.execute(
        "SELECT payees FROM settlements WHERE job = ? AND round < ? ORDER BY round DESC LIMIT 1",
        (job, round_),
    ).fetchone()
    last = db.execute(
        "SELECT max(p.idx) FROM seats s JOIN payees p ON p.job = s.job AND p.account = s.evaluator "
        "AND p.asset = 0 WHERE s.job = ? AND s.round = ? AND s.panel = 0 AND s.committed_tx IS NOT NULL",
        (job, round_),
    ).fetchone()[0]
    return max(published, 0 if before is None else before[0], 0 if last is None else last + 1)
