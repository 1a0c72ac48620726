"""How a job stands, for whoever watches it: phase, who is awaited until when, loss, speed, spend."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from dfl_ledger.errors import DflError, UsageError
from dfl_ledger.records import Address, Cid, JobId, JobState, Kind, Mode, Phase
from dfl_node.api.service import JsonObject
from dfl_node.modes.pipeline.files import MAX_RECORD_BYTES, Record

if TYPE_CHECKING:
    from dfl_node.journal import RoundStats
    from dfl_node.modes.job import JobPart
    from dfl_node.parts import Parts

RECORD_PATIENCE_S = 1.0  # the commands that ask wait for two seconds


async def job_view(parts: Parts, job: JobId, part: JobPart | None) -> JsonObject:
    """The ledger's row of a job, and what this node knows beyond it. Raises UsageError for an unknown job."""
    in_thread = trio.to_thread.run_sync
    row = await in_thread(parts.rows.job, job)
    if row is None:
        raise UsageError(
            f"there is no job {job}", why="the ledger has none", help_command="dfl-node job list"
        )
    found: JsonObject = row.to_json()
    stats = await in_thread(parts.journal.rounds, job)
    found["local_rounds"] = [dataclasses.asdict(row) for row in stats]
    found["awaited"] = []
    found["declined"] = "" if part is None else part.declined
    if part is not None and part.state.chain is not None:
        state = part.state.chain.job
        found["awaited"] = await in_thread(_awaited, parts, part, state)
        activity, pace = part.activity(), await in_thread(_pace, parts, job, stats)
        found["live"] = {**_live(state), **pace, **await _losses(parts, job, stats, activity)}
        found["live"]["activity"] = activity
    return found


def _awaited(parts: Parts, part: JobPart, state: JobState) -> list[Address]:
    """Whose step comes next."""
    if state.phase is Phase.AGGREGATE:
        revealed = parts.rows.revealed(state.job, state.round)
        return [row.node for row in revealed[state.draw : state.draw + 1]]
    if state.phase is Phase.COMMIT and state.terms.mode is Mode.CHAINED:
        lease = parts.ledger.lease(state.job)
        return [] if lease is None else [lease.node]
    waiting = parts.rows.awaited(state.job)
    if state.phase is Phase.COMMIT and state.terms.target:
        return [node for node in waiting if part.wants(state, node)]
    return list(waiting)


def _live(state: JobState) -> dict[str, Any]:
    return {
        "phase": state.phase.name.lower(),
        "round": state.round,
        "completed": state.completed,
        "of": state.terms.rounds,
        "expected": state.terms.target or state.expected,
        "commits": state.commits,
        "reveals": state.reveals,
        "deadline": state.deadline,
        "spent_wei": str(state.spent_wei),
        "budget_wei": str(state.terms.rounds * state.terms.round_budget_wei),
    }


async def _losses(
    parts: Parts, job: JobId, stats: tuple[RoundStats, ...], activity: dict[str, Any]
) -> dict[str, Any]:
    """Training: of a pipeline's run if there is one, else this node's newest. Validation: as the requester
    measured it last, of the newest model or hop."""
    ours = [row.loss for row in stats if row.loss is not None]
    training = activity.get("loss", ours[-1] if ours else None)
    if training is None:
        training = await _fed_loss(parts, job)
    seen = [watched["loss"] for watched in activity.get("watched", ())]
    return {"loss": training, "validation_loss": seen[-1] if seen else None}


async def _fed_loss(parts: Parts, job: JobId) -> float | None:
    """The last loss of a job's newest pipelined round, by the word of whoever fed it."""
    rows = await trio.to_thread.run_sync(partial(parts.rows.contributions, job=job, limit=None))
    fed = [row for row in rows if row.kind == Kind.FEED.name.lower()]
    if not fed:
        return None
    newest = max(fed, key=lambda row: row.round)
    try:
        data = await parts.store.get(
            Cid.parse(newest.cid), max_bytes=MAX_RECORD_BYTES, timeout_s=RECORD_PATIENCE_S
        )
        losses = Record.decode(data).losses
    except DflError:  # a look is not worth more than this
        return None
    return losses[-1] if losses else None


def _pace(parts: Parts, job: JobId, stats: tuple[RoundStats, ...]) -> dict[str, Any]:
    """The whole job's speed in the last round that this node saw."""
    closed = [(row.round, row.opened_at, row.closed_at) for row in stats if row.closed_at is not None]
    speed = None
    if closed:
        round_, began, ended = closed[-1]
        pieces = parts.rows.contributions(job=job, round_=round_, limit=None)
        speed = round(sum(piece.samples for piece in pieces) / max(ended - began, 1e-3), 1)
    return {"samples_per_s": speed}
