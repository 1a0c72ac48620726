"""Rounds that all their members work on at once: data parallel and pipelined."""

from __future__ import annotations

from dfl_ledger.records import JobState, Phase
from dfl_node.rounds.vocabulary import Action, ChainMoved, Commit, Reveal, State, Train, Work


def wanted(state: State, now: float) -> list[Action]:
    """What brings our piece of the current round onto the chain."""
    if state.chain is None:
        return []
    job, mine = state.chain.job, state.chain.mine
    if now >= job.deadline:
        return []
    work = _work_for(state, job)
    match job.phase:
        case Phase.COMMIT if state.trains and mine.member and mine.drawn and not mine.committed:
            return [Train(job.round, job.model) if work is None else Commit(work)]
        case Phase.REVEAL if work is not None and mine.committed and not mine.revealed:
            return [Reveal(work)]
        case _:
            return []


def still_useful(train: Train, chain: ChainMoved, now: float) -> bool:
    """True while a piece for this round could still be committed."""
    job, mine = chain.job, chain.mine
    return (
        job.phase is Phase.COMMIT
        and job.round == train.round
        and mine.member
        and job.model == train.parent
        and now < job.deadline
    )


def _work_for(state: State, job: JobState) -> Work | None:
    work = state.work
    return work if work is not None and work.round == job.round and work.parent == job.model else None
