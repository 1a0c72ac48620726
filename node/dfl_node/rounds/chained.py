"""Laps of hops: whoever holds the lease judges the hop before its own, trains, and passes the model on.

Nothing is committed and revealed: only the leaseholder may hop, so there is nothing to run ahead of. A lease
that nobody uses ends at the job's deadline, and `machine` advances the job as it does with any overdue phase:
to the next in the lap's order, who goes on from what was accepted last.
"""

from __future__ import annotations

from dfl_ledger.records import Phase
from dfl_node.rounds.vocabulary import Action, Hop, State


def wanted(state: State, now: float) -> list[Action]:
    """Our hop while the lease is ours."""
    if state.chain is None:
        return []
    job, until = state.chain.job, state.chain.mine.lease_until
    # One hop at a time, even where a reorganisation put another model before ours meanwhile.
    hopping = any(isinstance(action, Hop) for action in state.under_way)
    if job.phase is Phase.COMMIT and state.trains and until is not None and now < until and not hopping:
        return [Hop(job.round, job.model, job.candidate, until)]
    return []
