"""What `dfl-node ledger explain` shows people of contributions, evaluators and assets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dfl_node.cli.output import Result, fields, table, vnx

if TYPE_CHECKING:
    from dfl_ledger.explain import AssetEarning, Evaluation, Explainer, Explanation, Money
    from dfl_ledger.explain_round import Judgement
    from dfl_ledger.query import LedgerRows
    from dfl_ledger.records import Address

SHORT = 10  # characters of an address in a list


def of_contribution(e: Explanation) -> Result:
    """One contribution: its score, who measured it, and its money."""
    c, money = e.contribution, e.money
    told = {
        "contribution": c.id,
        "node": c.node,
        "what": f"{c.kind} of {c.samples} samples",
        "cid": c.cid,
        "transaction": c.tx,
        "score": _median(e.median, e.judgements, c.score),
        **_money(money),
    }
    parts = [fields(told)]
    if e.judgements:
        parts.append(_panel(e.judgements))
    parts += [f"note: {note}" for note in money.notes]
    return Result(e.to_json(), "\n\n".join(parts))


def of_account(rows: LedgerRows, explainer: Explainer, account: Address, limit: int) -> Result:
    """All that an account earned and lost: the newest `limit` of each kind."""
    earned = rows.earnings(account)
    contributions = [explainer.contribution(c) for c in rows.contributions(node=account, limit=limit)]
    evaluations, assets = explainer.evaluations(account, limit), explainer.assets(account, limit)
    offences, slashes = rows.offences(node=account)[-limit:], rows.slashes(account)
    summary = {
        "account": earned.account,
        "earned": vnx(earned.earned_wei),
        "claimed": vnx(earned.claimed_wei),
        "to claim": vnx(sum(c.amount_wei for c in earned.claimable)),
    }
    if slashes:
        summary["lost"] = f"{vnx(sum(s.slashed_wei for s in slashes))} of its stake"
    parts = [fields(dict(summary))]
    if contributions or not (evaluations or assets):
        parts.append(_contributions(contributions))
    if evaluations:
        parts.append(_evaluations(evaluations))
    if assets:
        parts.append(_assets(assets))
    if offences:
        lines = [(f"{o.job}.{o.round}", o.kind, o.tx) for o in offences]
        parts.append(table(("ROUND", "LOST A BOND FOR", "IN"), lines))
    return Result(
        {
            "earnings": earned.to_json(),
            "contributions": [e.to_json() for e in contributions],
            "evaluations": [e.to_json() for e in evaluations],
            "assets": [e.to_json() for e in assets],
            "offences": [o.to_json() for o in offences],
            "slashes": [s.to_json() for s in slashes],
        },
        "\n\n".join(parts),
    )


# -- lists ------------------------------------------------------------------------------------------------
def _contributions(found: Sequence[Explanation]) -> str:
    headers = ("ID", "SCORE", "SHARE", "REWARD", "CLAIMED IN", "WHY UNPAID")
    return table(
        headers,
        [
            (
                e.contribution.id,
                _score(e.median if e.median is not None else e.contribution.score),
                *_paid(e.money),
            )
            for e in found
        ],
    )


def _evaluations(found: Sequence[Evaluation]) -> str:
    headers = ("JUDGED", "SEAT", "STAKE", "FORMULA", "SHARE", "REWARD", "CLAIMED IN", "WHY UNPAID")
    return table(
        headers,
        [
            (
                f"{e.job}.{e.round}" + (f" appeal {e.panel - 1}" if e.panel else ""),
                e.seat,
                vnx(e.weight_wei),
                e.money.formula,
                *_paid(e.money),
            )
            for e in found
        ],
    )


def _assets(found: Sequence[AssetEarning]) -> str:
    headers = ("ASSET", "KIND", "ROUND", "WORTH", "FORMULA", "SHARE", "REWARD", "CLAIMED IN", "WHY UNPAID")
    return table(
        headers,
        [
            (e.asset, e.kind, f"{e.job}.{e.round}", _score(e.median), e.money.formula, *_paid(e.money))
            for e in found
        ],
    )


def _paid(money: Money) -> tuple[object, ...]:
    reward = None if money.reward_wei is None else vnx(money.reward_wei)
    return _share(money), reward, money.claim_tx, money.reason or None


# -- one --------------------------------------------------------------------------------------------------
def _money(m: Money) -> dict[str, object]:
    return {
        "evidence": m.evidence,
        "weight": None if m.weight is None else f"{m.weight} of {m.total_weight}",
        "pot": f"{vnx(m.pot_wei)} of the round's {vnx(m.round_budget_wei)}",
        "formula": m.formula,
        "share": _share(m),
        "reward": None if m.reward_wei is None else vnx(m.reward_wei),
        "settled in": m.settlement_tx,
        "settled by": m.settler,
        "claimed in": m.claim_tx,
        "claimable at": time_of(m.claimable_at),
        "unpaid": m.reason or None,
    }


def _panel(found: Sequence[Judgement]) -> str:
    return table(
        ("SEAT", "EVALUATOR", "STAKE", "SCORE", "SHOWN IN"),
        [(j.seat, j.evaluator, vnx(j.weight_wei), _judged(j), j.tx) for j in found],
    )


def _judged(j: Judgement) -> str:
    if j.tx is None:
        return "not shown"
    said = "refused" if j.refused else _score(j.score)
    if not j.counts:
        return f"{said}, which does not count: its own"
    return f"{said}, outside the tolerance" if j.outlier else str(said)


def _median(median: float | None, judgements: Sequence[Judgement], settled: float | None) -> str | None:
    counted = [j for j in judgements if j.counts and j.tx is not None]
    if median is None:
        return "refused" if counted and settled is not None else _score(settled)
    if not counted:
        return f"{_score(median)}, nobody scored"
    return f"{_score(median)}, the median of {len(counted)} by stake"


def _share(m: Money) -> str | None:
    return None if m.share is None else f"{m.share:.2%} of {vnx(m.round_budget_wei)}"


def _score(score: float | None) -> str | None:
    return None if score is None else f"{score:+.6f}"


def time_of(second: int | None) -> str | None:
    """Unix seconds for people."""
    return None if second is None else datetime.fromtimestamp(second, UTC).isoformat().replace("+00:00", "Z")
