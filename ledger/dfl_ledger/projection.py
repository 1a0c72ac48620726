"""From events to derived rows. Pure bookkeeping: the same events in the same order give the same rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from functools import lru_cache

from dfl_ledger.errors import VerificationFailed
from dfl_ledger.records import Cid, Event, Kind, Phase, TxHash
from dfl_ledger.schema import LOG_INDEX_BITS

_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps makes one a call
_REGISTRY_EVENTS = frozenset({"NodeRegistered", "NodeUnbonding", "NodeWithdrawn"})


def seq(event: Event) -> int:
    """The event's place in the chain, one number."""
    if event.log_index >= 1 << LOG_INDEX_BITS:
        raise VerificationFailed(
            f"event {event.name} in block {event.block}", why="its log index is impossible"
        )
    return event.block << LOG_INDEX_BITS | event.log_index


def first_seq(block: int) -> int:
    """Every event of `block` and later has at least this seq."""
    return block << LOG_INDEX_BITS


def record(db: sqlite3.Connection, event: Event) -> None:
    """Store a raw event and what follows from it.

    Raises VerificationFailed if its arguments are not what our contracts emit, or contradict earlier events.
    """
    job = event.args.get("job")
    node = event.args.get("node") if event.name in _REGISTRY_EVENTS else None
    try:
        db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                seq(event),
                event.block,
                event.block_hash,
                event.log_index,
                event.tx,
                event.contract,
                event.name,
                _encode(event.args),
                job,
                node,
            ),
        )
        _apply(db, event)
    except (KeyError, TypeError, ValueError, OverflowError, sqlite3.IntegrityError) as bad:
        raise VerificationFailed(
            f"event {event.name} in block {event.block} is not one of ours",
            why=f"{type(bad).__name__}: {bad}",
        ) from bad


def forget_from(db: sqlite3.Connection, block: int) -> None:
    """Undo every event of `block` and later, and derive anew the rows of the jobs and nodes they touched."""
    start = first_seq(block)
    jobs = db.execute(
        "SELECT DISTINCT job FROM events WHERE seq >= ? AND job IS NOT NULL", (start,)
    ).fetchall()
    nodes = db.execute(
        "SELECT DISTINCT node FROM events WHERE seq >= ? AND node IS NOT NULL", (start,)
    ).fetchall()
    db.execute("DELETE FROM events WHERE seq >= ?", (start,))
    for (job,) in jobs:
        db.execute("DELETE FROM jobs WHERE job = ?", (job,))  # and with it, all its rows
        _replay(db, db.execute(f"{_SELECT_EVENTS} WHERE job = ? ORDER BY seq", (job,)))
    for (node,) in nodes:
        db.execute("DELETE FROM nodes WHERE node = ?", (node,))
        _replay(db, db.execute(f"{_SELECT_EVENTS} WHERE node = ? ORDER BY seq", (node,)))


_SELECT_EVENTS = "SELECT block, block_hash, log_index, tx, contract, name, args FROM events"


def _replay(db: sqlite3.Connection, rows: Iterable[tuple[int, str, int, str, str, str, str]]) -> None:
    for block, block_hash, log_index, tx, contract, name, args in rows:
        _apply(db, Event(block, block_hash, log_index, TxHash(tx), contract, name, json.loads(args)))


def _apply(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    match event.name:
        case "NodeRegistered":
            _node_registered(db, event)
        case "NodeUnbonding":
            db.execute(
                "UPDATE nodes SET state = 'unbonding', unbond_at = ? WHERE node = ?",
                (_int(args, "unbondAt"), _text(args, "node")),
            )
        case "NodeWithdrawn":
            db.execute(
                "UPDATE nodes SET state = 'withdrawn', stake_wei = '0', boot_addrs = '[]' WHERE node = ?",
                (_text(args, "node"),),
            )
        case "JobCreated":
            _job_created(db, event)
        case "RoundOpened":
            _round_opened(db, event)
        case "PhaseChanged":
            db.execute(
                "UPDATE jobs SET phase = ?, round = ?, deadline = ? WHERE job = ?",
                (_int(args, "phase"), _int(args, "round"), _int(args, "deadline"), _int(args, "job")),
            )
        case "HopLeased":
            db.execute(
                "UPDATE jobs SET deadline = ? WHERE job = ?", (_int(args, "deadline"), _int(args, "job"))
            )
        case "ContributionCommitted":
            db.execute("UPDATE rounds SET commits = commits + 1 WHERE job = ? AND round = ?", _round(args))
        case "ContributionRevealed":
            _contribution_revealed(db, event)
        case "ModelPublished":
            model = _cid(args, "model")
            db.execute(
                "UPDATE rounds SET model = ?, aggregator = ?, published_block = ? "
                "WHERE job = ? AND round = ?",
                (model, _text(args, "aggregator"), event.block, *_round(args)),
            )
            db.execute(
                "UPDATE jobs SET model = ?, completed = completed + 1 WHERE job = ?",
                (model, _int(args, "job")),
            )
        case "RoundVoided":
            # a round may be void before it opened, when too few came
            db.execute(
                "INSERT INTO rounds (job, round, voided_block) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET voided_block = excluded.voided_block",
                (*_round(args), event.block),
            )
        case "JobEnded":
            db.execute(
                "UPDATE jobs SET phase = ?, ended_block = ? WHERE job = ?",
                (Phase(_int(args, "phase")), event.block, _int(args, "job")),
            )
        case "JobCancelRequested":
            db.execute("UPDATE jobs SET cancel_requested = 1 WHERE job = ?", (_int(args, "job"),))
        case "Refunded":
            _refunded(db, args)
        case "Settled":
            _settled(db, event)
        case "Claimed":
            _claimed(db, event)
        case _:
            return  # transfers and what later contracts may tell: kept raw


def _node_registered(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    addrs = args["bootAddrs"]
    if not isinstance(addrs, list) or not all(isinstance(addr, str) for addr in addrs):
        raise TypeError("bootAddrs is not a list of strings")
    db.execute(
        "INSERT INTO nodes VALUES (?, ?, ?, ?, 'bonded', 0, ?) ON CONFLICT DO UPDATE SET "
        "peer_key = excluded.peer_key, stake_wei = excluded.stake_wei, boot_addrs = excluded.boot_addrs, "
        "state = 'bonded', unbond_at = 0",
        (
            _text(args, "node"),
            _text(args, "peerKey"),
            _number(args, "stake"),
            json.dumps(addrs),
            event.block,
        ),
    )


def _job_created(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    # the deadline is told by the PhaseChanged beside it
    db.execute(
        "INSERT INTO jobs (job, requester, spec, model, mode, rounds, quorum, min_nodes, target, "
        "round_budget_wei, required_stake_wei, phase, round, deadline, completed, cancel_requested, "
        "refunded_wei, tx, created_block) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 0, 0, 0, '0', ?, ?)",
        (
            _int(args, "job"),
            _text(args, "requester"),
            _cid(args, "spec"),
            _cid(args, "model"),
            _int(args, "mode"),
            _int(args, "rounds"),
            _int(args, "quorum"),
            _int(args, "minNodes"),
            _int(args, "target"),
            _number(args, "roundBudget"),
            _number(args, "requiredStake"),
            int(Phase.OPEN),
            event.tx,
            event.block,
        ),
    )


def _round_opened(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    db.execute(
        "INSERT INTO rounds (job, round, parent, expected, opened_block) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET parent = excluded.parent, expected = excluded.expected, "
        "opened_block = excluded.opened_block",
        (*_round(args), _cid(args, "parent"), _int(args, "expected"), event.block),
    )
    db.execute(
        "UPDATE jobs SET round = ?, deadline = ? WHERE job = ?",
        (_int(args, "round"), _int(args, "deadline"), _int(args, "job")),
    )


def _contribution_revealed(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    job, round_ = _round(args)
    db.execute(
        "INSERT INTO contributions (seq, job, round, idx, node, kind, cid, parent, samples, tx, block) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq(event),
            job,
            round_,
            _int(args, "index"),
            _text(args, "node"),
            _int(args, "kind"),
            _cid(args, "update"),
            _cid(args, "parent"),
            _number(args, "samples"),
            event.tx,
            event.block,
        ),
    )
    db.execute(
        "UPDATE rounds SET contributions = contributions + 1 WHERE job = ? AND round = ?", (job, round_)
    )
    if args["kind"] == Kind.HOP:  # what a hop was made from is accepted by that
        db.execute("UPDATE jobs SET model = ? WHERE job = ?", (_cid(args, "parent"), job))


def _refunded(db: sqlite3.Connection, args: Mapping[str, object]) -> None:
    job, amount = _int(args, "job"), _int(args, "amount")
    row = db.execute("SELECT refunded_wei FROM jobs WHERE job = ?", (job,)).fetchone()
    db.execute("UPDATE jobs SET refunded_wei = ? WHERE job = ?", (str(int(row[0]) + amount), job))


def _settled(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    db.execute(
        "INSERT INTO settlements (job, round, settler, root, total_wei, evidence, claimable_at, tx, block) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *_round(args),
            _text(args, "settler"),
            _text(args, "root"),
            _number(args, "total"),
            _cid(args, "evidence"),
            _int(args, "claimableAt"),
            event.tx,
            event.block,
        ),
    )
    db.execute(
        "UPDATE rounds SET settled_block = ? WHERE job = ? AND round = ?", (event.block, *_round(args))
    )


def _claimed(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    db.execute(
        "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq(event),
            *_round(args),
            _text(args, "account"),
            _number(args, "asset"),
            _number(args, "amount"),
            event.tx,
            event.block,
        ),
    )


# -- arguments --------------------------------------------------------------------------------------------
def _int(args: Mapping[str, object], name: str) -> int:
    value = args[name]
    if not isinstance(value, int):
        raise TypeError(f"{name} is not a number")
    return value


def _number(args: Mapping[str, object], name: str) -> str:
    """A number that may exceed the 63 bits of SQLite's integers."""
    return str(_int(args, name))


def _text(args: Mapping[str, object], name: str) -> str:
    value = args[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a string")
    return value


def _cid(args: Mapping[str, object], name: str) -> str:
    return _cid_text(_text(args, name))


@lru_cache(maxsize=1024)
def _cid_text(digest: str) -> str:
    """Base32 is slow, and all of a round name the same parent."""
    return str(Cid.from_digest(bytes.fromhex(digest.removeprefix("0x"))))


def _round(args: Mapping[str, object]) -> tuple[int, int]:
    return _int(args, "job"), _int(args, "round")
