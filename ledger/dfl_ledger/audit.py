"""What an auditor asks of the ledger: what a payment was for, what it was made of, and why there is none.

Reads the rows alone. The formula of a contribution is that of rewards.py:

    weight = max(score, 0) if accepted, else 0; if no accepted piece has a weight above 0, each has 1
    reward = compute pot * weight // sum of weights
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from dfl_ledger.errors import UsageError
from dfl_ledger.facts import Shares
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import NOBODY, Address, JobId, Leaf
from dfl_ledger.rewards import Pots
from dfl_ledger.rows import (
    SCORES_PER_UNIT,
    SETTLEMENT_COLUMNS,
    ClaimRow,
    ContributionRow,
    JobRow,
    RoundRow,
    Row,
    SettlementRow,
    read_settlement,
)

_PLACE = re.compile(r"(\d{1,18})(?:\.(\d{1,18}))?(?:\.(\d{1,18}))?", re.ASCII)
_TX = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_SELECT_SETTLEMENT = f"SELECT {SETTLEMENT_COLUMNS} FROM settlements WHERE job = ? AND round = ?"  # noqa: S608


class Unpaid(Enum):
    """Why a contribution has brought nothing, or nothing yet."""

    VOID = "the round is void: it ended without a model, and pays nothing"
    OPEN = "the round is still open"
    UNSETTLED = "the round has a model but no settlement yet"
    NO_EVIDENCE = "the round is settled, but its evidence is not here or does not support the settlement"
    REFUSED = "refused"
    WORTHLESS = "its measured worth is not above 0"
    WINDOW = "earned; the challenge window is still open"
    CLAIMABLE = "earned and not claimed yet"


@dataclass(frozen=True, slots=True)
class Explanation(Row):
    """One contribution and its money. What is not known yet is None."""

    contribution: ContributionRow
    round_state: str  # "open", "published", "settled" or "void"
    settler: Address | None  # who vouches for the settlement
    evaluators: tuple[Address, ...]  # whose scores the median is of; none in a job in which nobody scores
    evidence: str | None
    settlement_tx: str | None
    round_budget_wei: int
    pot_wei: int  # of the budget: what contributions share
    weight: int | None  # in 1e-9 of validation loss, or 1 where all share equally
    total_weight: int | None  # of the round
    reward_wei: int | None
    share: float | None  # of the round's budget, 0 to 1
    formula: str | None  # with its numbers
    claimable_at: int | None  # Unix seconds
    claim_tx: str | None  # the payment that covered it
    unpaid: Unpaid | None
    reason: str  # "" once it is paid


def explain(rows: LedgerRows, contribution: ContributionRow, now: float) -> Explanation:
    """`now` in Unix seconds: whether the challenge window is over."""
    c = contribution
    with rows.reading() as db:
        settlement = db.execute(_SELECT_SETTLEMENT, (c.job, c.round)).fetchone()
        payments = [payment for payment in _payments(db, c.job, c.node) if payment.asset == 0]
    job, terms = rows.job(c.job), rows.terms(c.job)
    assert job is not None  # it has a contribution  # noqa: S101
    assert terms is not None  # noqa: S101
    pot_wei = Pots.of(Shares.of(terms)).compute_wei
    panel = rows.panel(c.job, c.round)
    judges = () if panel is None else tuple(s.evaluator for s in panel.seats if s.vector is not None)
    round_ = next(r for r in job.rounds if r.round == c.round)
    settler, evidence, claimable_at, tx = (
        (None,) * 4 if settlement is None else (settlement[2], settlement[5], settlement[6], settlement[7])
    )
    weight = total_weight = share = formula = None
    if c.reward_wei is not None:
        weight, total_weight = _weights(rows.revealed(c.job, c.round), c)
        share = c.reward_wei / job.round_budget_wei if job.round_budget_wei else 0.0
        formula = (
            f"{pot_wei} wei * {weight} // {total_weight or 1} = {c.reward_wei} wei"
            if weight
            else "a weight of 0: nothing"
        )
    claim = next((p for p in payments if p.round >= c.round and c.reward_wei), None)
    unpaid = None if claim is not None else _unpaid(c, round_, claimable_at, now)
    return Explanation(
        contribution=c,
        round_state=round_.state,
        settler=settler,
        evaluators=tuple(judge for judge in judges if judge != c.node),
        evidence=evidence,
        settlement_tx=tx,
        round_budget_wei=job.round_budget_wei,
        pot_wei=pot_wei,
        weight=weight,
        total_weight=total_weight,
        reward_wei=c.reward_wei,
        share=share,
        formula=formula,
        claimable_at=claimable_at,
        claim_tx=claim.tx if claim is not None else None,
        unpaid=unpaid,
        reason=_reason(unpaid, c, job),
    )


def _weights(round_: Sequence[ContributionRow], own: ContributionRow) -> tuple[int, int]:
    """This piece's weight and the sum of all."""
    weights = {c.id: max(_score(c), 0) if c.accepted else 0 for c in round_}
    if not any(weights.values()):
        weights = {c.id: int(bool(c.accepted)) for c in round_}
    return weights[own.id], sum(weights.values())


def _score(contribution: ContributionRow) -> int:
    """In 1e-9; a float holds the 15 digits that a loss has."""
    return round((contribution.score or 0.0) * SCORES_PER_UNIT)


def _unpaid(c: ContributionRow, round_: RoundRow, claimable_at: int | None, now: float) -> Unpaid:
    match round_.state:
        case "void":
            return Unpaid.VOID
        case "open":
            return Unpaid.OPEN
        case "published":
            return Unpaid.UNSETTLED
    if c.accepted is None:
        return Unpaid.NO_EVIDENCE
    if not c.accepted:
        return Unpaid.REFUSED
    if not c.reward_wei:
        return Unpaid.WORTHLESS
    return Unpaid.WINDOW if claimable_at is not None and now < claimable_at else Unpaid.CLAIMABLE


def _reason(unpaid: Unpaid | None, c: ContributionRow, job: JobRow) -> str:
    if unpaid is None:
        return ""
    if unpaid is Unpaid.REFUSED:
        return f"{unpaid.value}: {c.why}"
    if unpaid is Unpaid.UNSETTLED and job.refunded_wei:
        return "nobody settled the round within its window; its budget went back to the requester"
    return str(unpaid.value)


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
