"""The round as a pure state machine: what a node does next, for each place a job can stand in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger.records import Address, Cid, JobId, JobState, JobTerms, Mode, Phase
from dfl_node.rounds import machine as rounds
from dfl_node.rounds.machine import step, wake_at
from dfl_node.rounds.vocabulary import (
    Abandon,
    Advance,
    Aggregate,
    ChainMoved,
    Challenge,
    Charge,
    Commit,
    Failed,
    Finished,
    Join,
    Judge,
    Mine,
    Offence,
    Refund,
    Report,
    Reveal,
    Seat,
    Settle,
    Show,
    State,
    Tick,
    Train,
    Trained,
    Unseal,
    Unsettled,
    Watch,
    Work,
    Wrong,
)

ME = Address("0x" + "11" * 20)
REQUESTER = Address("0x" + "22" * 20)
PARENT = Cid.of(b"parent", 0x70)
UPDATE = Cid.of(b"update", 0x70)
DEADLINE = 1000


def job(phase: Phase, *, round_: int = 3, requester: Address = REQUESTER) -> JobState:
    terms = JobTerms(PARENT, PARENT, Mode.SYNC, 5, 2, 3, 60, 60, 60, 60, 0, 60, 60, 10, 0)
    return JobState(JobId(1), requester, terms, phase, round_, round_ - 1, DEADLINE, PARENT, 3, 0, 0, 0, 0, 0)


def look(
    phase: Phase,
    *,
    active: int = 3,
    committed: bool = False,
    revealed: bool = False,
    turn: int | None = None,
    unsettled: tuple[Unsettled, ...] = (),
    requester: Address = REQUESTER,
    refundable_wei: int = 0,
) -> ChainMoved:
    mine = Mine(active, active == 3, active == 3, committed, revealed, turn)
    return ChainMoved(job(phase, requester=requester), mine, unsettled, refundable_wei)


def work(round_: int = 3) -> Work:
    return Work(round_, PARENT, UPDATE, 64, b"\1" * 32)


def asked(event: ChainMoved, *, now: float = 10, state: State | None = None) -> tuple[rounds.Action, ...]:
    return step(state or State(me=ME, trains=True), event, now)[1]


def test_a_node_joins_a_job_that_waits_for_nodes() -> None:
    assert asked(look(Phase.OPEN, active=0)) == (Join(3),)


def test_a_late_node_joins_for_the_next_round() -> None:
    assert asked(look(Phase.COMMIT, active=0)) == (Join(4),)


def test_a_node_that_missed_its_commit_joins_again() -> None:
    assert asked(look(Phase.REVEAL, active=3, committed=False)) == (Join(4),)


def test_a_node_that_committed_does_not_join_again() -> None:
    assert asked(look(Phase.REVEAL, active=3, committed=True)) == ()


def test_a_member_trains_then_commits_then_reveals() -> None:
    state, actions = step(State(me=ME, trains=True), look(Phase.COMMIT), 10)
    assert actions == (Train(3, PARENT),)
    state, actions = step(state, Trained(work()), 20)
    assert actions == (Commit(work()),)
    state, actions = step(state, look(Phase.REVEAL, committed=True), 30)
    assert actions == (Reveal(work()),)


def test_work_found_after_a_restart_is_committed_without_training_again() -> None:
    state = State(me=ME, trains=True, work=work())
    assert asked(look(Phase.COMMIT), state=state) == (Commit(work()),)


def test_work_of_another_round_or_parent_is_never_committed() -> None:
    stale = State(me=ME, trains=True, work=work(round_=2))
    assert asked(look(Phase.COMMIT), state=stale) == (Train(3, PARENT),)
    other = State(me=ME, trains=True, work=replace(work(), parent=UPDATE))
    assert asked(look(Phase.COMMIT), state=other) == (Train(3, PARENT),)


def test_nothing_is_committed_after_the_deadline() -> None:
    state = State(me=ME, trains=True, work=work(), rank=3)
    assert asked(look(Phase.COMMIT), state=state, now=DEADLINE) == ()


def test_an_action_under_way_is_not_asked_for_twice() -> None:
    state, first = step(State(me=ME, trains=True), look(Phase.COMMIT), 10)
    _, second = step(state, look(Phase.COMMIT), 11)
    assert (first, second) == ((Train(3, PARENT),), ())


def test_a_finished_transaction_is_not_repeated_before_the_chain_shows_it() -> None:
    state, (commit,) = step(State(me=ME, trains=True, work=work()), look(Phase.COMMIT), 10)
    state, actions = step(state, Finished(commit), 11)
    assert actions == ()
    _, actions = step(state, look(Phase.COMMIT, committed=True), 12)
    assert actions == ()


def test_a_failed_action_is_tried_again_after_a_pause() -> None:
    state, (commit,) = step(State(me=ME, trains=True, work=work()), look(Phase.COMMIT), 10)
    state, actions = step(state, Failed(commit), 11)
    assert actions == ()
    assert wake_at(state, 11) == 11 + rounds.RETRY_S
    _, actions = step(state, Tick(), 11 + rounds.RETRY_S)
    assert actions == (commit,)


def test_training_stops_when_the_round_goes_on_without_us() -> None:
    state, _ = step(State(me=ME, trains=True), look(Phase.COMMIT), 10)
    assert Abandon(3) in step(state, look(Phase.REVEAL), 20)[1]


def test_only_the_drawn_aggregator_aggregates_and_only_in_its_slot() -> None:
    waiting = look(Phase.AGGREGATE, active=4, committed=True, revealed=True, turn=50)
    state, actions = step(State(me=ME, trains=True), waiting, 49)
    assert actions == ()
    assert wake_at(state, 49) == 50
    assert step(state, Tick(), 50)[1] == (Aggregate(3, PARENT, 0),)
    assert asked(look(Phase.AGGREGATE, active=4, committed=True, revealed=True, turn=None), now=50) == ()


@pytest.mark.parametrize("phase", [Phase.OPEN, Phase.COMMIT, Phase.REVEAL, Phase.AGGREGATE])
@pytest.mark.parametrize("rank", [0, 3])
def test_every_overdue_phase_is_advanced_in_the_order_of_rank(phase: Phase, rank: int) -> None:
    state = State(me=ME, trains=False, rank=rank)
    due = DEADLINE + rounds.ADVANCE_GRACE_S + rank * rounds.ADVANCE_SPREAD_S
    assert asked(look(phase), state=state, now=due - 0.01) == ()
    assert asked(look(phase), state=state, now=due) == (Advance(3, phase),)


def test_a_watcher_without_data_never_joins_or_trains() -> None:
    for phase in Phase:
        assert asked(look(phase, active=0), state=State(me=ME, trains=False)) == ()


def test_judging_waits_while_the_trainer_is_needed_for_an_update() -> None:
    state, actions = step(State(me=ME, trains=True), judged(look(Phase.COMMIT), seat(2)), 10)
    assert actions == (Train(3, PARENT),)
    _, actions = step(state, Trained(work()), 11)
    assert actions == (Commit(work()), Judge(2))


def test_a_long_training_costs_no_judgement_its_window() -> None:
    """A pipeline's run may take longer than evaluators have for their scores."""
    ours = judged(look(Phase.COMMIT), seat(2, judge_from=100, judge_until=500))
    state, _ = step(State(me=ME, trains=True), ours, 110)
    assert wake_at(state, 250) == 300
    state, actions = step(state, Tick(), 299)
    assert actions == ()
    _, actions = step(state, Tick(), 300)
    assert actions == (Judge(2),)


def test_one_round_is_judged_at_a_time_the_oldest_first_and_none_after_its_window() -> None:
    over = judged(look(Phase.COMPLETED), seat(1, judge_until=500), seat(2, judge_until=600))
    assert asked(over, now=400) == (Judge(1),)
    assert asked(over, now=500) == (Judge(2),)
    assert asked(over, now=600) == ()


def test_a_round_whose_rows_are_sealed_is_judged_when_they_are_open_or_their_time_is_over() -> None:
    waiting = replace(seat(1, judge_until=500), sealed_until=300.0)
    over = judged(look(Phase.COMPLETED), waiting, seat(2, judge_until=600))
    assert asked(over, now=299) == (Judge(2),), "nobody waits with it"
    assert asked(over, now=300) == (Judge(1),)
    assert asked(judged(look(Phase.COMPLETED), replace(waiting, sealed_until=0.0)), now=10) == (Judge(1),)
    state, _ = step(State(me=ME, trains=True), judged(look(Phase.COMPLETED), waiting), 290)
    assert wake_at(state, 299) == 300


def test_scores_are_shown_once_others_can_no_longer_copy_them() -> None:
    bound = seat(2, committed=True)
    busy = look(Phase.COMMIT)
    assert asked(judged(busy, bound)) == (Train(3, PARENT),)
    showing = replace(bound, judging=False, showing=True)
    assert Show(2) in asked(judged(busy, showing)), "training does not hold it up"
    assert Show(2) not in asked(judged(busy, replace(showing, revealed=True)))
    assert Show(2) not in asked(judged(busy, replace(showing, committed=False)))
    assert Show(2) not in asked(judged(busy, showing), now=showing.show_until)


def test_the_requester_opens_a_shard_when_it_is_due() -> None:
    assert asked(replace(look(Phase.REVEAL, active=0), sealed=4), state=State(me=ME, trains=False)) == (
        Unseal(4),
    )


def test_a_wrong_settlement_is_overturned_before_anything_else_is_settled() -> None:
    """What is settled on top of it would fall with it."""
    due = (Unsettled(2, 5, 500),)
    over = look(Phase.COMPLETED, unsettled=due)
    assert asked(over) == (Settle(2),)
    assert asked(replace(over, wrong=1)) == (Challenge(1),)


def test_an_offence_is_reported_when_it_is_our_turn() -> None:
    offence = Offence(Wrong.SCORES_WITHHELD, REQUESTER, 2, 1)
    charged = replace(look(Phase.COMPLETED), charges=(Charge(offence, 14.0),))
    state, actions = step(State(me=ME, trains=True), charged, 10)
    assert actions == ()
    assert wake_at(state, 10) == 14.0
    assert asked(charged, now=14) == (Report(offence),)


def test_an_ended_job_is_looked_at_now_and_then_until_the_last_settlement_is_final() -> None:
    state, _ = step(State(me=ME, trains=True), replace(look(Phase.COMPLETED), final_at=12), 10)
    assert wake_at(state, 10) == 12
    assert wake_at(state, 12) == 12 + rounds.LOOK_S


def test_settling_waits_for_no_training() -> None:
    due = (Unsettled(2, 50, 500),)
    state, actions = step(State(me=ME, trains=True), look(Phase.COMMIT, unsettled=due), 10)
    assert actions == (Train(3, PARENT),)
    assert wake_at(state, 10) == 50
    _, actions = step(state, Tick(), 50)
    assert actions == (Settle(2),)


def test_the_requester_measures_each_new_model_once() -> None:
    mine, ours = State(me=REQUESTER, trains=False), look(Phase.COMMIT)
    state, actions = step(mine, ours, 10)
    assert actions == (Watch(2, PARENT),)
    state, actions = step(state, Finished(Watch(2, PARENT)), 11)
    assert step(state, Tick(), 11 + rounds.RETRY_S)[1] == ()
    newer = replace(ours, job=replace(ours.job, round=4, completed=3, model=UPDATE))
    assert step(state, newer, 20)[1] == (Watch(3, UPDATE),)


@pytest.mark.parametrize(
    "change",
    [
        {"phase": Phase.COMPLETED},
        {"completed": 0},  # there is only the model that the requester made
        {"terms": replace(job(Phase.COMMIT).terms, mode=Mode.PIPELINE)},  # it may be too large for one node
    ],
    ids=["ended", "first", "pipeline"],
)
def test_the_requester_measures_nothing_else(change: dict[str, Any]) -> None:
    found = look(Phase.COMMIT)
    found = replace(found, job=replace(found.job, **change))
    assert not step(State(me=REQUESTER, trains=False), found, 10)[1]


def test_rounds_are_settled_oldest_first_and_never_after_their_window() -> None:
    two = (Unsettled(1, 0, 500), Unsettled(2, 0, 600))
    done = look(Phase.COMPLETED, unsettled=two)
    assert asked(done, now=400) == (Settle(1),)
    assert asked(done, now=550) == (Settle(2),)
    assert asked(done, now=601) == ()


def test_the_requester_takes_back_the_rest_once_the_job_has_ended() -> None:
    over = look(Phase.FAILED, requester=ME, refundable_wei=7)
    assert asked(over) == (Refund(0),)
    assert asked(look(Phase.FAILED, refundable_wei=7)) == ()
    assert Refund(0) not in asked(look(Phase.COMMIT, requester=ME, refundable_wei=7, committed=True))


def seat(round_: int, *, judge_from: int = 0, judge_until: int = 500, committed: bool = False) -> Seat:
    return Seat(round_, True, False, committed, False, judge_from, judge_until, 2 * judge_until - judge_from)


def judged(chain: ChainMoved, *seats: Seat) -> ChainMoved:
    return replace(chain, seats=seats)


EVENTS = st.one_of(
    st.just(Tick()),
    st.builds(
        look,
        st.sampled_from(Phase),
        active=st.integers(0, 5),
        committed=st.booleans(),
        revealed=st.booleans(),
        turn=st.none() | st.integers(0, 2000),
        unsettled=st.just(()) | st.just((Unsettled(2, 100, 1500),)),
        requester=st.sampled_from([ME, REQUESTER]),
        refundable_wei=st.integers(0, 2),
    ),
    st.just(Trained(work())),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.floats(0, 50), st.booleans()), max_size=30))
def test_whatever_happens_no_action_runs_twice_at_once_and_time_always_goes_on(
    story: list[tuple[rounds.Event, float, bool]],
) -> None:
    state, now = State(me=ME, trains=True), 0.0
    running: set[rounds.Action] = set()
    for event, pause, succeeds in story:
        now += pause
        state, actions = step(state, event, now)
        if isinstance(event, Trained):
            running = {a for a in running if not isinstance(a, Train)}
        started = [a for a in actions if not isinstance(a, Abandon)]
        assert len(set(started)) == len(started)
        assert not running & set(started)
        running |= set(started)
        wake = wake_at(state, now)
        assert wake is None or wake > now
        if running:
            action = running.pop()
            state, actions = step(state, Finished(action) if succeeds else Failed(action), now)
            started = [a for a in actions if not isinstance(a, Abandon)]
            assert action not in started
            running |= set(started)
