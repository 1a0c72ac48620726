"""From events to derived rows. Pure bookkeeping: the same events in the same order give the same rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping

from dfl_ledger import projection_rewards
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.projection_args import cid_arg, int_arg, list_arg, number_arg, round_arg, text_arg
from dfl_ledger.records import Event, Kind, Phase, TxHash
from dfl_ledger.schema import LOG_INDEX_BITS
from dfl_ledger.terms import from_args

_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps makes one a call
# Whose derived rows an event touches: the column of `events`, and the table that it is the key of.
_SUBJECTS = (("job", "jobs"), ("node", "nodes"), ("asset", "assets"))


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
    args = event.args
    node = args.get("node") if event.contract == "NodeRegistry" else None
    asset = args.get("asset", args.get("tokenId")) if event.contract == "AssetRegistry" else None
    try:
        db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                seq(event),
                event.block,
                event.block_hash,
                event.log_index,
                event.tx,
                event.contract,
                event.name,
                _encode(event.args),
                args.get("job"),
                node,
                asset,
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
    touched = {
        column: db.execute(
            f"SELECT DISTINCT {column} FROM events "  # noqa: S608  names of our own
            f"WHERE seq >= ? AND {column} IS NOT NULL",
            (start,),
        ).fetchall()
        for column, _ in _SUBJECTS
    }
    db.execute("DELETE FROM events WHERE seq >= ?", (start,))
    for column, table in _SUBJECTS:
        for (key,) in touched[column]:
            # and with it, all its rows
            db.execute(f"DELETE FROM {table} WHERE {column} = ?", (key,))  # noqa: S608
            _replay(db, db.execute(f"{_SELECT_EVENTS} WHERE {column} = ? ORDER BY seq", (key,)))


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
                (int_arg(args, "unbondAt"), text_arg(args, "node")),
            )
        case "NodeWithdrawn":
            db.execute(
                "UPDATE nodes SET state = 'withdrawn', stake_wei = '0', boot_addrs = '[]' WHERE node = ?",
                (text_arg(args, "node"),),
            )
        case "JobCreated":
            _job_created(db, event)
        case "RoundOpened":
            _round_opened(db, event)
        case "PhaseChanged":
            db.execute(
                "UPDATE jobs SET phase = ?, round = ?, deadline = ? WHERE job = ?",
                (
                    int_arg(args, "phase"),
                    int_arg(args, "round"),
                    int_arg(args, "deadline"),
                    int_arg(args, "job"),
                ),
            )
        case "HopLeased":
            db.execute(
                "UPDATE jobs SET deadline = ? WHERE job = ?",
                (int_arg(args, "deadline"), int_arg(args, "job")),
            )
        case "ContributionCommitted":
            db.execute("UPDATE rounds SET commits = commits + 1 WHERE job = ? AND round = ?", round_arg(args))
        case "ContributionRevealed":
            _contribution_revealed(db, event)
        case "ModelPublished":
            model = cid_arg(args, "model")
            db.execute(
                "UPDATE rounds SET model = ?, aggregator = ?, published_block = ?, "
                "payees = (SELECT count(*) FROM payees p WHERE p.job = rounds.job) "
                "WHERE job = ? AND round = ?",
                (model, text_arg(args, "aggregator"), event.block, *round_arg(args)),
            )
            db.execute(
                "UPDATE jobs SET model = ?, completed = completed + 1 WHERE job = ?",
                (model, int_arg(args, "job")),
            )
        case "RoundVoided":
            # a round may be void before it opened, when too few came
            db.execute(
                "INSERT INTO rounds (job, round, voided_block) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET voided_block = excluded.voided_block",
                (*round_arg(args), event.block),
            )
        case "JobEnded":
            db.execute(
                "UPDATE jobs SET phase = ?, ended_block = ? WHERE job = ?",
                (Phase(int_arg(args, "phase")), event.block, int_arg(args, "job")),
            )
        case "JobCancelRequested":
            db.execute("UPDATE jobs SET cancel_requested = 1 WHERE job = ?", (int_arg(args, "job"),))
        case "Refunded":
            _refunded(db, args)
        case "Settled":
            _settled(db, event)
        case "Claimed":
            _claimed(db, event)
        case _:
            pass  # approvals, and what later contracts may tell: kept raw
    projection_rewards.apply(db, event, seq(event))


def _node_registered(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    addrs = list_arg(args, "bootAddrs", str)
    db.execute(
        "INSERT INTO nodes (node, peer_key, stake_wei, boot_addrs, state, unbond_at, registered_block) "
        "VALUES (?, ?, ?, ?, 'bonded', 0, ?) ON CONFLICT DO UPDATE SET "
        "peer_key = excluded.peer_key, stake_wei = excluded.stake_wei, boot_addrs = excluded.boot_addrs, "
        "state = 'bonded', unbond_at = 0",
        (
            text_arg(args, "node"),
            text_arg(args, "peerKey"),
            number_arg(args, "stake"),
            json.dumps(addrs),
            event.block,
        ),
    )


def _job_created(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    words = list_arg(args, "terms", object)
    terms = from_args(words)
    # the deadline is told by the PhaseChanged beside it
    db.execute(
        "INSERT INTO jobs (job, requester, spec, model, mode, rounds, quorum, min_nodes, target, "
        "round_budget_wei, required_stake_wei, terms, phase, round, deadline, completed, cancel_requested, "
        "refunded_wei, tx, created_block) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 0, 0, 0, '0', ?, ?)",
        (
            int_arg(args, "job"),
            text_arg(args, "requester"),
            str(terms.spec),
            str(terms.model),
            int(terms.mode),
            terms.rounds,
            terms.quorum,
            terms.min_nodes,
            terms.target,
            str(terms.round_budget_wei),
            str(terms.required_stake_wei),
            json.dumps(words),
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
        (*round_arg(args), cid_arg(args, "parent"), int_arg(args, "expected"), event.block),
    )
    db.execute(
        "UPDATE jobs SET round = ?, deadline = ? WHERE job = ?",
        (int_arg(args, "round"), int_arg(args, "deadline"), int_arg(args, "job")),
    )


def _contribution_revealed(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    job, round_ = round_arg(args)
    db.execute(
        "INSERT INTO contributions (seq, job, round, idx, node, kind, cid, parent, samples, tx, block) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq(event),
            job,
            round_,
            int_arg(args, "index"),
            text_arg(args, "node"),
            int_arg(args, "kind"),
            cid_arg(args, "update"),
            cid_arg(args, "parent"),
            number_arg(args, "samples"),
            event.tx,
            event.block,
        ),
    )
    db.execute(
        "UPDATE rounds SET contributions = contributions + 1 WHERE job = ? AND round = ?", (job, round_)
    )
    if args["kind"] == Kind.HOP:  # what a hop was made from is accepted by that
        db.execute("UPDATE jobs SET model = ? WHERE job = ?", (cid_arg(args, "parent"), job))


def _refunded(db: sqlite3.Connection, args: Mapping[str, object]) -> None:
    job, amount = int_arg(args, "job"), int_arg(args, "amount")
    row = db.execute("SELECT refunded_wei FROM jobs WHERE job = ?", (job,)).fetchone()
    db.execute("UPDATE jobs SET refunded_wei = ? WHERE job = ?", (str(int(row[0]) + amount), job))


def _settled(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    db.execute(
        "INSERT INTO settlements (job, round, settler, root, total_wei, score_root, weights, payees, "
        "evidence, claimable_at, tx, block) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *round_arg(args),
            text_arg(args, "settler"),
            text_arg(args, "root"),
            number_arg(args, "total"),
            text_arg(args, "scoreRoot"),
            number_arg(args, "weights"),
            int_arg(args, "payees"),
            cid_arg(args, "evidence"),
            int_arg(args, "claimableAt"),
            event.tx,
            event.block,
        ),
    )
    db.execute(
        "UPDATE rounds SET settled_block = ? WHERE job = ? AND round = ?", (event.block, *round_arg(args))
    )


def _claimed(db: sqlite3.Connection, event: Event) -> None:
    args = event.args
    db.execute(
        "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq(event),
            *round_arg(args),
            text_arg(args, "account"),
            number_arg(args, "asset"),
            number_arg(args, "amount"),
            event.tx,
            event.block,
        ),
    )
