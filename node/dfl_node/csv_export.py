"""What contributors, evaluators and assets earned, as comma-separated values: RFC 4180, and nothing in them
that a spreadsheet would run.

A cell that begins like a formula gets an apostrophe before it (OWASP, "CSV Injection"): reasons of refusal
quote strangers' files. Plain numbers stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dfl_ledger.errors import UsageError
from dfl_ledger.rows import ContributionRow
from dfl_node.api.client import refuse_existing

if TYPE_CHECKING:
    from dfl_ledger.explain import AssetEarning, Evaluation

COLUMNS = (
    *("id", "node", "job", "round", "kind", "cid", "parent", "samples"),
    *("score", "reward_wei", "accepted", "why", "tx", "block", "asset"),
)
Line = Mapping[str, Any]  # a column's value by its name; what is missing is left empty
_STARTS = tuple("=+-@\t\r\n＝＋－＠")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII)


def text(rows: Iterable[Line]) -> str:
    """The whole file, lines ended by CR LF."""
    out = io.StringIO()
    _write(out, rows)
    return out.getvalue()


def write(path: Path, rows: Iterable[Line], *, overwrite: bool) -> None:
    """A file that appears whole or not at all. Raises UsageError if it cannot be written or is there."""
    refuse_existing(path, overwrite)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with scratch.open("x", encoding="utf-8", newline="") as file:
            _write(file, rows)
        scratch.replace(path)
    except OSError as bad:
        raise UsageError(f"cannot write {path}", why=bad.strerror or str(bad)) from bad
    finally:
        scratch.unlink(missing_ok=True)


def _write(out: TextIO, rows: Iterable[Line]) -> None:
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([harmless(row.get(column)) for column in COLUMNS])


# -- lines ------------------------------------------------------------------------------------------------
def of_contribution(row: ContributionRow) -> Line:
    return row.to_json()


def of_evaluation(e: Evaluation) -> Line:
    """A seat: `accepted` says whether it showed its scores, `tx` where."""
    return {
        "id": f"{e.job}.{e.round}.seat.{e.seat}",
        "node": e.evaluator,
        "job": e.job,
        "round": e.round,
        "kind": "evaluation",
        "reward_wei": e.money.reward_wei,
        "accepted": e.revealed_tx is not None,
        "why": e.money.reason,
        "tx": e.revealed_tx,
    }


def of_asset(a: AssetEarning) -> Line:
    """`node` is the owner, `cid` the manifest, `score` a data set's worth, `tx` the settlement."""
    return {
        "id": f"{a.job}.{a.round}.asset.{a.asset}",
        "node": a.owner,
        "job": a.job,
        "round": a.round,
        "kind": a.kind,
        "cid": a.manifest,
        "score": a.median,
        "reward_wei": a.money.reward_wei,
        "why": a.money.reason,
        "tx": a.money.settlement_tx,
        "asset": a.asset,
    }


def harmless(value: object) -> str:
    """A cell's text; empty for what is not known."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.9f}"  # scores are whole 1e-9
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    formula = shown.startswith(_STARTS) and _NUMBER.fullmatch(shown) is None
    return f"'{shown}" if formula else shown
