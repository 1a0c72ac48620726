"""One node's part in a job, as a pure function: (state, event) -> (state, actions).

No clock, no socket, no chain in here. The chain is the truth and every event only brings the state closer to
it, so a lost event or a crash costs time and nothing else: `step` looks at where the job stands, what this
node has done, and what is still under way, and asks for what is missing.

    OPEN       join
    COMMIT     train, then commit; chained: hop while the lease is ours
    REVEAL     reveal what was committed
    AGGREGATE  when it is our turn: make the round's model and publish it
    later      judge a round that we have a seat for, settle one that was judged
    anyone     advance what is overdue, overturn a wrong settlement, report what costs a bond

What is wanted in COMMIT and REVEAL differs by mode: `sync.py` (pipelines too), `buffered.py`, `chained.py`.
What evaluators do is in `judging.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from dfl_ledger.records import JobState, Mode, Phase
from dfl_node.rounds import buffered, chained, judging, sync
from dfl_node.rounds.vocabulary import (
    Abandon,
    Action,
    Advance,
    Aggregate,
    ChainMoved,
    Challenge,
    Event,
    Failed,
    Finished,
    Hop,
    Join,
    Mine,
    Promised,
    Refund,
    Report,
    Settle,
    State,
    Tick,
    Train,
    Trained,
    Watch,
)

ADVANCE_GRACE_S = 1.0  # chain timestamps are whole seconds: earlier, the contract may still say no
ADVANCE_SPREAD_S = 2.0  # members step up one after another, so that not all pay for the same `advance`
RETRY_S = 3.0
LOOK_S = 5.0  # an ended job is looked at as often: what is left of it is due by the chain's clock, not ours


def step(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """The next state and what to do. Deterministic; never raises for any event."""
    match event:
        case ChainMoved():
            state = replace(state, chain=event)
        case Trained(work) if _is_buffered(state):  # one at a time; the training's Finished comes next
            state = replace(state, work=work)
        case Trained(work):  # perhaps of a training that was abandoned too late, while the next one runs
            state = replace(
                state,
                work=work if state.work is None or work.round >= state.work.round else state.work,
                under_way=state.under_way - {Train(work.round, work.parent)},
            )
        case Promised(work):
            state = replace(state, promised=max(state.promised or work, work, key=lambda piece: piece.round))
        case Finished(action):
            state = replace(state, under_way=state.under_way - {action})
            # The chain has moved but its news is still on the way: do not ask for the same again.
            state = _wait(state, action, now + RETRY_S)
            if isinstance(action, Watch):
                state = replace(state, watched=action.model)
        case Failed(action):
            state = _wait(replace(state, under_way=state.under_way - {action}), action, now + RETRY_S)
        case Tick():
            pass
        case _:
            assert_never(event)
    state = replace(state, not_before=tuple((a, t) for a, t in state.not_before if t > now))
    resting = {action for action, _ in state.not_before}
    abandoned = tuple(
        Abandon(a.round) for a in state.under_way if isinstance(a, Train) and not _still_useful(a, state, now)
    )
    actions = tuple(a for a in _wanted(state, now) if a not in state.under_way and a not in resting)
    return replace(state, under_way=state.under_way | set(actions)), abandoned + actions


def wake_at(state: State, now: float) -> float | None:
    """When `step` should next see a Tick even if nothing happens (Unix seconds, after `now`)."""
    if state.chain is None:
        return None
    job, turn = state.chain.job, state.chain.mine.may_aggregate_at
    times = [t for _, t in state.not_before]
    times += [float(at) for due in state.chain.unsettled for at in (due.settle_from, due.judged_at)]
    times += [charge.report_from for charge in state.chain.charges]
    times.append(float(state.chain.final_at))
    times += [errand.due_from for errand in state.chain.errands]
    times += judging.wake_times(state.chain)
    if job.phase.terminal:
        times.append(now + LOOK_S)
    else:
        times += [float(job.deadline), _advance_at(job, state.rank)]
    if job.phase is Phase.AGGREGATE and turn is not None:
        times.append(float(turn))
    return min((t for t in times if t > now), default=None)


def _wait(state: State, action: Action, until: float) -> State:
    return replace(state, not_before=(*state.not_before, (action, until)))


def _is_buffered(state: State) -> bool:
    return state.chain is not None and state.chain.job.terms.mode is Mode.ASYNC


def _advance_at(job: JobState, rank: int) -> float:
    return job.deadline + ADVANCE_GRACE_S + ADVANCE_SPREAD_S * rank


def _still_useful(train: Train, state: State, now: float) -> bool:
    """True while what this training makes could still be committed."""
    if state.chain is None:
        return True
    if _is_buffered(state):
        return buffered.still_useful(train, state.chain)
    return sync.still_useful(train, state.chain, now)


def _wanted(state: State, now: float) -> tuple[Action, ...]:
    """Everything that should be done or under way now."""
    if state.chain is None:
        return ()
    job, mine, wanted = state.chain.job, state.chain.mine, list[Action]()
    if state.trains and _missing_out(job, mine):
        wanted.append(Join(job.round if job.phase is Phase.OPEN else job.round + 1))
    match job.terms.mode:
        case Mode.CHAINED:
            wanted += chained.wanted(state, now)
        case Mode.ASYNC:
            wanted += buffered.wanted(state, now)
        case _:
            wanted += sync.wanted(state, now)
    wanted += _wanted_look(state, job)
    turn = mine.may_aggregate_at
    if job.phase is Phase.AGGREGATE and now < job.deadline and turn is not None and turn <= now:
        wanted.append(Aggregate(job.round, job.model, job.reveals))
    if not job.phase.terminal and now >= _advance_at(job, state.rank):
        wanted.append(Advance(job.round, job.phase))
    wanted += judging.shown(state.chain, now)
    wanted += [e.action for e in state.chain.errands if e.due_from <= now < e.due_until]
    wanted += _wanted_settlements(state.chain, now)
    wanted += [Report(charge.offence) for charge in state.chain.charges if charge.report_from <= now]
    if _is_buffered(state):
        wanted = buffered.in_turn(state, wanted, judging.judgements(state.chain, now, busy=False))
    else:  # the trainer's process judges too; an update that is awaited goes first
        busy = any(isinstance(a, Train | Hop) for a in (*wanted, *state.under_way))
        wanted += judging.judgements(state.chain, now, busy=busy)
    if job.phase.terminal and job.requester == state.me and state.chain.refundable_wei > 0:
        wanted.append(Refund(job.refunded_wei))
    return tuple(wanted)


def _wanted_look(state: State, job: JobState) -> list[Action]:
    """If the job is ours: to see how its newest model, or the newest hop, does.

    Not of a pipeline, whose model may be larger than our trainer's memory: its feed tells the losses.
    """
    if job.requester != state.me or job.phase.terminal or job.terms.mode is Mode.PIPELINE:
        return []
    if job.terms.mode is Mode.CHAINED:
        made_in, newest = job.round, job.candidate
    else:
        made_in, newest = job.round - 1, job.model if job.completed else None
    return [] if newest is None or newest == state.watched else [Watch(made_in, newest)]


def _missing_out(job: JobState, mine: Mine) -> bool:
    """True if nothing brings us into the next round: we never joined, or have missed this one."""
    if job.phase.terminal:
        return False
    if job.terms.target:  # who has joined once stays a member
        return mine.active_round == 0
    match job.phase:
        case Phase.OPEN | Phase.COMMIT:
            return mine.active_round < job.round
        case Phase.REVEAL:
            return mine.active_round <= job.round and not mine.committed
        case Phase.AGGREGATE:
            return mine.active_round <= job.round and not mine.revealed
        case _:
            return False


def _wanted_settlements(chain: ChainMoved, now: float) -> list[Action]:
    """The oldest unsettled round, if it is ours to settle: the chain takes them in order.

    Not while an earlier one is wrong, with which it would fall.
    """
    if chain.wrong is not None:
        return [Challenge(chain.wrong)]
    oldest = next((u for u in chain.unsettled if now <= u.settle_until), None)
    if oldest is None or now < oldest.settle_from:
        return []
    return [Settle(oldest.round)]
