"""From events of the reward protocol to derived rows; the rest is in projection.py. Pure bookkeeping
likewise.
"""

from __future__ import annotations

import json
import sqlite3

from dfl_ledger.projection_args import (
    bytes_arg,
    cid_arg,
    int_arg,
    list_arg,
    number_arg,
    round_arg,
    text_arg,
)
from dfl_ledger.records import Event, Fault

# What costs a bond, with the argument that names who lost it.
_OFFENCES = {
    "RevealWithheld": ("node", "reveal withheld"),
    "ScoresWithheld": ("evaluator", "scores withheld"),
    "OutlierPenalized": ("evaluator", "score far from the median"),
    "ModelDenounced": ("publisher", "wrong model published"),
    "Overturned": ("settler", "wrong settlement"),
}


def apply(db: sqlite3.Connection, event: Event, seq: int) -> None:
    """What follows from an event. One that is not of the reward protocol changes nothing."""
    if event.name in _OFFENCES:
        argument, kind = _OFFENCES[event.name]
        _offence(db, event, seq, text_arg(event.args, argument), kind)
    match event.contract:
        case "NodeRegistry":
            _of_registry(db, event, seq)
        case "AssetRegistry":
            _of_assets(db, event)
        case "TrainingJobs":
            _of_jobs(db, event)
        case "ScoreBoard":
            _of_board(db, event, seq)
        case "RewardDistributor":
            if event.name == "Overturned":
                _overturned(db, event, seq)


def _of_registry(db: sqlite3.Connection, event: Event, seq: int) -> None:
    args = event.args
    match event.name:
        case "StakeAdded":
            db.execute(
                "UPDATE nodes SET stake_wei = ? WHERE node = ?",
                (number_arg(args, "stake"), text_arg(args, "node")),
            )
        case "EvaluatorWeighed":
            db.execute(
                "UPDATE nodes SET evaluator_weight = ? WHERE node = ?",
                (number_arg(args, "weight"), text_arg(args, "node")),
            )
        case "Slashed":
            node, slashed = text_arg(args, "node"), int_arg(args, "slashed")
            row = db.execute("SELECT stake_wei FROM nodes WHERE node = ?", (node,)).fetchone()
            if row is None:
                raise ValueError(f"{node} is no node")
            db.execute("UPDATE nodes SET stake_wei = ? WHERE node = ?", (str(int(row[0]) - slashed), node))
            db.execute(
                "INSERT INTO slashes VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(seq, node, text_arg(args, "reporter"), str(slashed)),
                    *(number_arg(args, "reward"), event.tx, event.block),
                ),
            )


def _of_assets(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    match event.name:
        case "AssetMinted":
            db.execute(
                "INSERT INTO assets (asset, owner, kind, manifest, licence, uses, price_bps, parents, "
                "minted_block) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(int_arg(args, "asset"), text_arg(args, "owner"), int_arg(args, "kind")),
                    *(cid_arg(args, "manifest"), text_arg(args, "licence"), int_arg(args, "uses")),
                    *(int_arg(args, "priceBps"), json.dumps(list_arg(args, "parents", int)), event.block),
                ),
            )
        case "Transfer":
            db.execute(
                "UPDATE assets SET owner = ? WHERE asset = ?",
                (text_arg(args, "to"), int_arg(args, "tokenId")),
            )
        case "AssetRevoked":
            db.execute("UPDATE assets SET revoked = 1 WHERE asset = ?", (int_arg(args, "asset"),))
        case "AssetPriced":
            db.execute(
                "UPDATE assets SET price_bps = ? WHERE asset = ?",
                (int_arg(args, "priceBps"), int_arg(args, "asset")),
            )


def _of_jobs(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    match event.name:
        case "PayeeAdded":
            db.execute(
                "INSERT INTO payees VALUES (?, ?, ?, ?)",
                (
                    *(int_arg(args, "job"), int_arg(args, "index")),
                    *(text_arg(args, "account"), int_arg(args, "asset")),
                ),
            )
        case "DatasetDeclared":
            db.execute(
                "INSERT OR IGNORE INTO datasets VALUES (?, ?, ?, ?)",
                (
                    *(int_arg(args, "job"), int_arg(args, "place")),
                    *(text_arg(args, "node"), int_arg(args, "asset")),
                ),
            )
        case "ShardCommitted":
            db.execute(
                "INSERT INTO shards VALUES (?, ?, ?)",
                (int_arg(args, "job"), text_arg(args, "node"), text_arg(args, "shard")),
            )
        case "ShardUnsealed":
            db.execute(
                "INSERT INTO shard_keys VALUES (?, ?, ?, ?, NULL)",
                (int_arg(args, "job"), int_arg(args, "position"), text_arg(args, "key"), event.block),
            )
        case "NodeBanned":
            db.execute(
                "INSERT OR IGNORE INTO bans VALUES (?, ?)", (int_arg(args, "job"), text_arg(args, "node"))
            )
        case "NodeUnbanned":
            db.execute(
                "DELETE FROM bans WHERE job = ? AND node = ?", (int_arg(args, "job"), text_arg(args, "node"))
            )


def _of_board(db: sqlite3.Connection, event: Event, seq: int) -> None:
    args = event.args
    match event.name:
        case "PanelDrawn":
            _panel_drawn(db, event)
        case "ScoresCommitted":
            _seat(db, event, "committed_tx = ?", event.tx)
        case "ScoresRevealed":
            _seat(db, event, "revealed_tx = ?, vector = ?", event.tx, bytes_arg(args, "vector"))
        case "ScoresWithheld":
            _seat(db, event, "withheld_tx = ?", event.tx)
        case "OutlierPenalized":
            _seat(db, event, "penalized_tx = ?", event.tx)
        case "ShardOpened":
            db.execute(
                "INSERT INTO audits (job, round, audit, node, boxes) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET boxes = excluded.boxes",
                (*_audit(event), text_arg(args, "node"), cid_arg(args, "boxes")),
            )
        case "AuditFailed":
            db.execute(
                "INSERT INTO audits (job, round, audit, node, appeal_until) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET appeal_until = excluded.appeal_until",
                (*_audit(event), text_arg(args, "node"), int_arg(args, "appealUntil")),
            )
        case "Appealed":
            db.execute(
                "UPDATE audits SET appealed = 1 WHERE job = ? AND round = ? AND audit = ?", _audit(event)
            )
        case "AuditDecided":
            upheld = bool(args["upheld"])
            db.execute(
                "UPDATE audits SET upheld = ? WHERE job = ? AND round = ? AND audit = ?",
                (int(upheld), *_audit(event)),
            )
            if upheld:
                _offence(db, event, seq, text_arg(args, "node"), "audit failed")


def _panel_drawn(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    key = (*round_arg(args), int_arg(args, "panel"))
    db.execute(
        "INSERT INTO panels VALUES (?, ?, ?, ?, ?, ?)",
        (*key, int_arg(args, "subjects"), event.block, event.tx),
    )
    drawn = zip(list_arg(args, "evaluators", str), list_arg(args, "weights", int), strict=True)
    db.executemany(
        "INSERT INTO seats (job, round, panel, seat, evaluator, weight) VALUES (?, ?, ?, ?, ?, ?)",
        [(*key, seat, evaluator, str(weight)) for seat, (evaluator, weight) in enumerate(drawn)],
    )


def _seat(db: sqlite3.Connection, event: Event, change: str, *values: object) -> None:
    args = event.args
    panel = int_arg(args, "panel") if "panel" in args else 0  # only scores of rounds are penalized
    changed = db.execute(
        f"UPDATE seats SET {change} "  # noqa: S608  words of our own
        "WHERE job = ? AND round = ? AND panel = ? AND seat = ?",
        (*values, *round_arg(args), panel, int_arg(args, "seat")),
    )
    if changed.rowcount != 1:
        raise ValueError("the panel has no such seat")


def _audit(event: Event) -> tuple[int, int, int]:
    return (*round_arg(event.args), int_arg(event.args, "audit"))


def _offence(db: sqlite3.Connection, event: Event, seq: int, node: str, kind: str) -> None:
    db.execute(
        "INSERT INTO offences VALUES (?, ?, ?, ?, ?, ?, ?)",
        (seq, *round_arg(event.args), node, kind, event.tx, event.block),
    )


def _overturned(db: sqlite3.Connection, event: Event, seq: int) -> None:
    """The settlement and all later ones of the job: their rounds are as if nobody had settled them."""
    args = event.args
    job, round_ = round_arg(args)
    why, challenger = Fault(int_arg(args, "why")), text_arg(args, "challenger")
    fallen = db.execute(
        "SELECT round, settler, root FROM settlements WHERE job = ? AND round >= ?", (job, round_)
    ).fetchall()
    if round_ not in {row[0] for row in fallen}:
        raise ValueError("no such settlement")
    db.executemany(
        "INSERT INTO overturned VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (seq, job, at, settler, root, challenger, why if at == round_ else None, event.tx, event.block)
            for at, settler, root in fallen
        ],
    )
    db.execute("DELETE FROM settlements WHERE job = ? AND round >= ?", (job, round_))
    db.execute("UPDATE rounds SET settled_block = NULL WHERE job = ? AND round >= ?", (job, round_))
    db.execute(
        "UPDATE contributions SET score = NULL, reward_wei = NULL, accepted = NULL, why = NULL "
        "WHERE job = ? AND round >= ?",
        (job, round_),
    )
