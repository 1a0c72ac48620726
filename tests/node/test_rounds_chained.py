"""A lap as a pure state machine: who hops when, and what happens to a lease that nobody uses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger.records import Address, Cid, JobId, JobState, JobTerms, Mode, Phase
from dfl_node.rounds.machine import ADVANCE_GRACE_S, ADVANCE_SPREAD_S, RETRY_S, step, wake_at
from dfl_node.rounds.vocabulary import (
    Abandon,
    Action,
    Advance,
    Aggregate,
    ChainMoved,
    Commit,
    Event,
    Failed,
    Finished,
    Hop,
    Join,
    Judge,
    Mine,
    Reveal,
    Seat,
    State,
    Tick,
    Train,
    Unsettled,
    Watch,
)

ME = Address("0x" + "11" * 20)
REQUESTER = Address("0x" + "22" * 20)
MODEL, NEWEST, OTHER = (Cid.of(text, 0x70) for text in (b"model", b"newest", b"other"))
UNTIL = 1000  # the end of the current lease
TRAINS = State(me=ME, trains=True)


def look(
    phase: Phase = Phase.COMMIT,
    *,
    active: int = 3,
    lease_until: int | None = None,
    candidate: Cid | None = NEWEST,
    hopped: bool = False,
    turn: int | None = None,
    deadline: int = UNTIL,
    requester: Address = REQUESTER,
    unsettled: tuple[Unsettled, ...] = (),
) -> ChainMoved:
    terms = JobTerms(
        spec=MODEL,
        model=MODEL,
        mode=Mode.CHAINED,
        rounds=5,
        quorum=2,
        min_nodes=3,
        open_window_s=60,
        commit_window_s=60,
        reveal_window_s=60,
        aggregate_window_s=60,
        target=0,
        settle_window_s=60,
        challenge_window_s=60,
        round_budget_wei=10,
        required_stake_wei=0,
    )
    job = JobState(JobId(1), requester, terms, phase, 3, 2, deadline, MODEL, 3, 1, 1, 0, 0, 0, candidate)
    mine = Mine(active, active == 3, active == 3, hopped, hopped, turn, lease_until)
    return ChainMoved(job, mine, unsettled, 0)


OURS = look(lease_until=UNTIL)
HOP = Hop(3, MODEL, NEWEST, UNTIL)


def asked(event: Event, *, now: float = 10, state: State = TRAINS) -> tuple[Action, ...]:
    return step(state, event, now)[1]


def test_a_member_hops_only_while_the_lease_is_its_own() -> None:
    assert asked(look()) == ()
    assert asked(OURS) == (HOP,)
    assert asked(OURS, now=UNTIL - 0.01) == (HOP,)
    assert HOP not in asked(OURS, now=UNTIL)


def test_the_first_of_a_lap_has_no_hop_to_judge() -> None:
    assert asked(look(lease_until=UNTIL, candidate=None)) == (Hop(3, MODEL, None, UNTIL),)


def test_who_only_watches_never_hops_even_if_the_chain_says_so() -> None:
    assert asked(OURS, state=State(me=ME, trains=False)) == ()


def test_nothing_is_trained_committed_or_revealed_by_itself() -> None:
    for phase in Phase:
        for event in (look(phase), look(phase, lease_until=UNTIL), look(phase, active=4, hopped=True)):
            assert not any(isinstance(action, Train | Commit | Reveal) for action in asked(event))


def test_one_hop_at_a_time_even_where_a_reorganisation_changes_what_it_is_about() -> None:
    state, (hop,) = step(TRAINS, OURS, 10)
    state, actions = step(state, look(lease_until=UNTIL, candidate=OTHER), 11)
    assert actions == ()
    _, actions = step(state, Failed(hop), 12)
    assert actions == (Hop(3, MODEL, OTHER, UNTIL),)


def test_a_hop_that_failed_is_tried_again_while_the_lease_lasts() -> None:
    state, (hop,) = step(TRAINS, OURS, 10)
    state, actions = step(state, Failed(hop), 20)
    assert actions == ()
    assert wake_at(state, 20) == 20 + RETRY_S
    _, actions = step(state, Tick(), 20 + RETRY_S)
    assert actions == (hop,)
    assert HOP not in asked(Tick(), now=UNTIL, state=state)


def test_a_hop_that_is_through_is_not_repeated_before_the_chain_shows_it() -> None:
    state, (hop,) = step(TRAINS, OURS, 10)
    state, actions = step(state, Finished(hop), 20)
    assert actions == ()
    assert step(state, look(hopped=True, active=4, candidate=OTHER), 21)[1] == ()


@pytest.mark.parametrize("rank", range(4))
def test_an_unused_lease_is_passed_over_by_one_after_another(rank: int) -> None:
    state = replace(TRAINS, rank=rank)
    due = UNTIL + ADVANCE_GRACE_S + ADVANCE_SPREAD_S * rank
    state, actions = step(state, look(), due - 0.01)
    assert actions == ()
    assert wake_at(state, due - 0.01) == due
    state, actions = step(state, Tick(), due)
    assert actions == (Advance(3, Phase.COMMIT),)


def test_two_unused_leases_in_a_row_are_both_passed_over() -> None:
    state, (advance,) = step(TRAINS, look(), UNTIL + ADVANCE_GRACE_S)
    state, _ = step(state, Finished(advance), UNTIL + 2)
    state, actions = step(state, look(deadline=UNTIL + 62), UNTIL + 3)
    assert actions == ()
    assert step(state, Tick(), UNTIL + 62 + ADVANCE_GRACE_S)[1] == (advance,)


def test_whoever_missed_its_lease_joins_for_the_next_lap() -> None:
    assert asked(look(active=0)) == (Join(4),)
    assert asked(look(Phase.AGGREGATE, active=0)) == (Join(4),)
    assert asked(look(active=4)) == ()


def test_a_late_node_joins_for_the_next_lap() -> None:
    assert asked(look(Phase.OPEN, active=0)) == (Join(3),)
    assert asked(look(active=0)) == (Join(4),)


def test_the_drawn_hopper_ends_the_lap() -> None:
    ours = look(Phase.AGGREGATE, active=4, hopped=True, turn=50)
    assert asked(ours, now=49) == ()
    assert asked(ours, now=50) == (Aggregate(3, MODEL, 1),)


def test_a_judgement_waits_for_our_hop_and_not_for_that_of_others() -> None:
    ours = (Seat(2, True, False, False, False, 0, 500, 1000),)
    assert asked(replace(look(), seats=ours)) == (Judge(2),)
    state, actions = step(TRAINS, replace(OURS, seats=ours), 10)
    assert actions == (HOP,)
    state, actions = step(state, Finished(HOP), 11)
    state, actions = step(state, replace(look(hopped=True, active=4), seats=ours), 12)
    assert actions == (Judge(2),)


def test_the_requester_measures_each_new_hop_once() -> None:
    mine = State(me=REQUESTER, trains=False)
    state, actions = step(mine, look(), 10)
    assert actions == (Watch(3, NEWEST),)
    state, actions = step(state, Finished(Watch(3, NEWEST)), 11)
    assert actions == ()
    state, actions = step(state, Tick(), 11 + RETRY_S)
    assert actions == ()
    state, actions = step(state, look(Phase.AGGREGATE, candidate=OTHER), 20)
    assert actions == (Watch(3, OTHER),)
    state, actions = step(state, Failed(Watch(3, OTHER)), 21)
    assert actions == ()
    assert step(state, Tick(), 21 + RETRY_S)[1] == (Watch(3, OTHER),)


EVENTS = st.one_of(
    st.just(Tick()),
    st.builds(
        look,
        st.sampled_from(Phase),
        active=st.integers(0, 5),
        lease_until=st.none() | st.integers(0, 60),
        candidate=st.sampled_from([None, NEWEST, OTHER]),
        hopped=st.booleans(),
        turn=st.none() | st.integers(0, 2000),
        deadline=st.integers(0, 60),
        requester=st.sampled_from([ME, REQUESTER]),
        unsettled=st.just(()) | st.just((Unsettled(2, 100, 1500),)),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.floats(0, 10), st.booleans()), max_size=30))
def test_whatever_happens_no_two_hops_are_under_way_and_none_outside_a_lease(
    story: list[tuple[Event, float, bool]],
) -> None:
    state, now = TRAINS, 0.0
    running: set[Action] = set()
    for event, pause, succeeds in story:
        now += pause
        state, actions = step(state, event, now)
        while True:
            started = {action for action in actions if not isinstance(action, Abandon)}
            assert not running & started
            running |= started
            assert sum(isinstance(action, Hop) for action in running) <= 1
            for action in started:
                assert not isinstance(action, Hop) or now < action.until
            wake = wake_at(state, now)
            assert wake is None or wake > now
            if not running or not succeeds:
                break
            action = running.pop()
            state, actions = step(state, Finished(action), now)
            assert action not in actions
