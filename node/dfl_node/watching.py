"""How a job stands, for whoever watches it: phase, who is awaited until when, loss, speed, spend."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import trio

from dfl_ledger.errors import UsageError
from dfl_ledger.records import Address, JobId, JobState, Mode, Phase
from dfl_node.api.service import JsonObject

if TYPE_CHECKING:
    from dfl_node.journal import RoundStats
    from dfl_node.modes.job import JobPart
    from dfl_node.parts import Parts


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
    if part is not None and part.state.chain is not None:
        state = part.state.chain.job
        found["awaited"] = await in_thread(_awaited, parts, part, state)
        pace = await in_thread(_pace, parts, job, stats)
        found["live"] = {**_live(state), **pace, "activity": part.activity()}
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


def _pace(parts: Parts, job: JobId, stats: tuple[RoundStats, ...]) -> dict[str, Any]:
    """This node's newest training loss, and the whole job's speed in the last round that this node saw."""
    losses = [row.loss for row in stats if row.loss is not None]
    closed = [(row.round, row.opened_at, row.closed_at) for row in stats if row.closed_at is not None]
    speed = None
    if closed:
        round_, began, ended = closed[-1]
        pieces = parts.rows.contributions(job=job, round_=round_, limit=None)
        speed = round(sum(piece.samples for piece in pieces) / max(ended - began, 1e-3), 1)
    return {"loss": losses[-1] if losses else None, "samples_per_s": speed}
