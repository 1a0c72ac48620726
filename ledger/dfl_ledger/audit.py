"""What an auditor asks the ledger for: what a target names, what a job paid, and whether it owed that.

Reads the rows alone.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from dfl_ledger.errors import UsageError
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import NOBODY, Address, JobId, Leaf
from dfl_ledger.rows import SETTLEMENT_COLUMNS, ClaimRow, SettlementRow, read_settlement

_PLACE = re.compile(r"(\d{1,18})(?:\.(\d{1,18}))?(?:\.(\d{1,18}))?", re.ASCII)
_TX = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_SELECT_SETTLEMENT = f"SELECT {SETTLEMENT_COLUMNS} FROM settlements WHERE job = ? AND round = ?"  # noqa: S608


# -- what is asked for ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Place:
    """A job, one of its rounds, or one contribution of that."""

    job: JobId
    round: int | None = None
    index: int | None = None


def find(rows: LedgerRows, target: str) -> Place:
    """From JOB, JOB.ROUND, JOB.ROUND.INDEX, or the transaction of a settlement, claim, contribution or job.

    Raises UsageError if it is none of these or the ledger does not know it.
    """
    if match := _PLACE.fullmatch(target):
        job, round_, index = (None if part is None else int(part) for part in match.groups())
        found = rows.job(int(str(job)))
        known = found is not None and (round_ is None or any(r.round == round_ for r in found.rounds))
        if known and index is not None:
            known = rows.contribution(target) is not None
        if not known:
            raise _unknown(target)
        return Place(JobId(int(str(job))), round_, index)
    if _TX.fullmatch(target) is None:
        raise UsageError(
            f"{target!r:.80} cannot be verified",
            why="a job (1), a round (1.3), a contribution (1.3.0) or a transaction (0x…) is wanted",
            help_command="dfl-node ledger query",
        )
    with rows.reading() as db:
        for query in (
            "SELECT job, round, NULL FROM settlements WHERE lower(tx) = ?",
            "SELECT job, round, NULL FROM claims WHERE lower(tx) = ?",
            "SELECT job, round, idx FROM contributions WHERE lower(tx) = ?",
            "SELECT job, NULL, NULL FROM jobs WHERE lower(tx) = ?",
        ):
            if (row := db.execute(query, (target.lower(),)).fetchone()) is not None:
                return Place(JobId(row[0]), row[1], row[2])
    raise _unknown(target)


def _unknown(target: str) -> UsageError:
    return UsageError(
        f"the ledger does not know {target:.80}",
        why="it may be of another chain, or not indexed yet",
        help_command="dfl-node ledger query",
    )


def settlement(rows: LedgerRows, job: int, round_: int) -> SettlementRow | None:
    """A round's settlement with those of its leaves that are known."""
    with rows.reading() as db:
        row = db.execute(_SELECT_SETTLEMENT, (job, round_)).fetchone()
    return None if row is None else read_settlement(row, rows.leaves(job, round_))


def payments(rows: LedgerRows, job: int, account: str | None = None) -> tuple[ClaimRow, ...]:
    """What a job paid, to one account or to all, in chain order."""
    with rows.reading() as db:
        return _payments(db, job, account)


def _payments(db: sqlite3.Connection, job: int, account: str | None) -> tuple[ClaimRow, ...]:
    found = db.execute(
        "SELECT job, round, account, asset, amount_wei, tx, block FROM claims "
        "WHERE job = ? AND (? IS NULL OR account = ?) ORDER BY seq",
        (job, account, account),
    ).fetchall()
    return tuple(
        ClaimRow(JobId(job), round_, Address(to), int(asset), int(amount), tx, block)
        for job, round_, to, asset, amount, tx, block in found
    )


def payout_mismatch(claims: Sequence[ClaimRow], round_: int, leaves: Sequence[Leaf]) -> str:
    """What is wrong with the claims that name a round, "" if nothing: a claim pays its leaf's cumulative
    reward less what the account had been paid before, neither more nor less."""
    due = {(leaf.account, leaf.asset): leaf.cumulative_wei for leaf in leaves}
    paid: dict[tuple[Address, int], int] = {}
    for claim in claims:
        key = (NOBODY if claim.asset else claim.account, claim.asset)  # an asset's owner may change
        paid[key] = paid.get(key, 0) + claim.amount_wei
        if claim.round != round_:
            continue
        if key not in due:
            return f"{claim.account} was paid {claim.amount_wei} wei in {claim.tx} without a leaf"
        if paid[key] != due[key]:
            return f"{claim.account} was paid {paid[key]} wei up to {claim.tx}, its leaf says {due[key]}"
    return ""
