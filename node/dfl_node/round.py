"""One node's part in a job, as a pure function: (state, event) -> (state, actions).

No clock, no socket, no chain in here. The chain is the truth and every event only brings the state closer to
it, so a lost event or a crash costs time and nothing else: `step` looks at where the job stands, what this
node has done, and what is still under way, and asks for what is missing.

    OPEN       join
    COMMIT     train, then commit; or join for the next round if this one started without us
    REVEAL     reveal what was committed
    AGGREGATE  when it is our turn: aggregate and publish the model
    later      settle a round whose model we published; anyone: advance what is overdue
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from dfl_ledger.records import Address, Cid, JobState, Phase

ADVANCE_GRACE_S = 1.0  # chain timestamps are whole seconds: earlier, the contract may still say no
ADVANCE_SPREAD_S = 2.0  # members step up one after another, so that not all pay for the same `advance`
RETRY_S = 3.0


# -- what the node has done --------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Work:
    """A trained update of ours, published as a blob and journalled before it is committed."""

    round: int
    parent: Cid
    cid: Cid
    samples: int
    salt: bytes  # 32 bytes


@dataclass(frozen=True, slots=True)
class Mine:
    """What the chain says of this node in this job."""

    active_round: int  # the round we may commit in, 0 = never joined
    committed: bool  # in the current round
    revealed: bool  # in the current round
    may_aggregate_at: int | None  # Unix seconds


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A round that ended with a model and has no settlement yet."""

    round: int
    settle_from: int  # Unix seconds from which this node may settle it
    settle_until: int


# -- actions -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Join:
    round: int


@dataclass(frozen=True, slots=True)
class Train:
    round: int
    parent: Cid


@dataclass(frozen=True, slots=True)
class Commit:
    work: Work


@dataclass(frozen=True, slots=True)
class Reveal:
    work: Work


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Fetch the round's updates, aggregate, publish the model on chain."""

    round: int
    parent: Cid
    reveals: int  # how many updates there are; the ledger's rows may still be behind the chain


@dataclass(frozen=True, slots=True)
class Advance:
    round: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Settle:
    round: int


@dataclass(frozen=True, slots=True)
class Refund:
    """The job has ended: return the rest of the escrow to its requester, which is us."""

    seen_wei: int  # refunded so far; a later refund is another action


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop training for a round that has gone on without us."""

    round: int


Action = Join | Train | Commit | Reveal | Aggregate | Advance | Settle | Refund | Abandon


# -- events ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ChainMoved:
    """The job as the chain has it now."""

    job: JobState
    mine: Mine
    unsettled: tuple[Unsettled, ...]
    refundable_wei: int


@dataclass(frozen=True, slots=True)
class Trained:
    work: Work


@dataclass(frozen=True, slots=True)
class Finished:
    """An action ended well; what it changed on chain arrives as ChainMoved."""

    action: Action


@dataclass(frozen=True, slots=True)
class Failed:
    """An action failed; it is asked for again after RETRY_S if it is still wanted."""

    action: Action


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = ChainMoved | Trained | Finished | Failed | Tick


# -- state -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class State:
    """Everything `step` may look at. `now` (Unix seconds) comes with each call."""

    me: Address
    trains: bool  # the role `train`, and data for the job's application
    chain: ChainMoved | None = None
    work: Work | None = None
    under_way: frozenset[Action] = frozenset()
    not_before: tuple[tuple[Action, float], ...] = ()  # failed actions and when to try them again
    rank: int = 0  # 0..3: our place in the queue of those who send `advance`


def step(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """The next state and what to do. Deterministic; never raises for any event."""
    match event:
        case ChainMoved():
            state = replace(state, chain=event)
        case Trained(work):  # perhaps of a training that was abandoned too late, while the next one runs
            state = replace(
                state,
                work=work if state.work is None or work.round >= state.work.round else state.work,
                under_way=state.under_way - {Train(work.round, work.parent)},
            )
        case Finished(action):
            state = replace(state, under_way=state.under_way - {action})
            # The chain has moved but its news is still on the way: do not ask for the same again.
            state = _wait(state, action, now + RETRY_S)
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
    times = [t for _, t in state.not_before] + [float(u.settle_from) for u in state.chain.unsettled]
    if not job.phase.terminal:
        times += [float(job.deadline), _advance_at(job, state.rank)]
    if job.phase is Phase.AGGREGATE and turn is not None:
        times.append(float(turn))
    return min((t for t in times if t > now), default=None)


def _wait(state: State, action: Action, until: float) -> State:
    return replace(state, not_before=(*state.not_before, (action, until)))


def _advance_at(job: JobState, rank: int) -> float:
    return job.deadline + ADVANCE_GRACE_S + ADVANCE_SPREAD_S * rank


def _still_useful(train: Train, state: State, now: float) -> bool:
    """True while an update for this round could still be committed."""
    if state.chain is None:
        return True
    job, mine = state.chain.job, state.chain.mine
    return (
        job.phase is Phase.COMMIT
        and job.round == train.round == mine.active_round
        and job.model == train.parent
        and now < job.deadline
    )


def _wanted(state: State, now: float) -> tuple[Action, ...]:
    """Everything that should be done or under way now."""
    if state.chain is None:
        return ()
    job, mine, wanted = state.chain.job, state.chain.mine, list[Action]()
    if state.trains and _missing_out(job, mine):
        wanted.append(Join(job.round if job.phase is Phase.OPEN else job.round + 1))
    work = _work_for(state, job)
    in_time = now < job.deadline
    turn = mine.may_aggregate_at
    match job.phase:
        case Phase.COMMIT if (
            in_time and state.trains and mine.active_round == job.round and not mine.committed
        ):
            wanted.append(Train(job.round, job.model) if work is None else Commit(work))
        case Phase.REVEAL if in_time and work is not None and mine.committed and not mine.revealed:
            wanted.append(Reveal(work))
        case Phase.AGGREGATE if in_time and turn is not None and turn <= now:
            wanted.append(Aggregate(job.round, job.model, job.reveals))
        case _:
            pass
    if not job.phase.terminal and now >= _advance_at(job, state.rank):
        wanted.append(Advance(job.round, job.phase))
    training = any(isinstance(a, Train) for a in (*wanted, *state.under_way))
    if not training:  # the trainer's process scores too; an update that is awaited goes first
        wanted += _wanted_settlements(state.chain.unsettled, now)
    if job.phase.terminal and job.requester == state.me and state.chain.refundable_wei > 0:
        wanted.append(Refund(job.refunded_wei))
    return tuple(wanted)


def _missing_out(job: JobState, mine: Mine) -> bool:
    """True if nothing brings us into the next round: we never joined, or have missed this one."""
    match job.phase:
        case Phase.OPEN | Phase.COMMIT:
            return mine.active_round < job.round
        case Phase.REVEAL:
            return mine.active_round <= job.round and not mine.committed
        case Phase.AGGREGATE:
            return mine.active_round <= job.round and not mine.revealed
        case _:
            return False


def _wanted_settlements(unsettled: tuple[Unsettled, ...], now: float) -> list[Action]:
    """The oldest unsettled round, if it is ours to settle: the chain takes them in order."""
    open_ = [u for u in unsettled if now <= u.settle_until]
    if not open_ or now < open_[0].settle_from:
        return []
    return [Settle(open_[0].round)]


def _work_for(state: State, job: JobState) -> Work | None:
    work = state.work
    return work if work is not None and work.round == job.round and work.parent == job.model else None
