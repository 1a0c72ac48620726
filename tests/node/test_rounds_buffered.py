"""Asynchronous rounds as a pure state machine: what trains, what waits, what goes into which round."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger.records import Address, Cid, JobId, JobState, JobTerms, Mode, Phase
from dfl_node.rounds import machine as rounds
from dfl_node.rounds.machine import step
from dfl_node.rounds.vocabulary import (
    Abandon,
    Action,
    ChainMoved,
    Commit,
    Event,
    Failed,
    Finished,
    History,
    Join,
    Judge,
    Mine,
    Promise,
    Promised,
    Reveal,
    Seat,
    State,
    Tick,
    Train,
    Trained,
    Unsettled,
    Work,
)

ME = Address("0x" + "11" * 20)
REQUESTER = Address("0x" + "22" * 20)
MODELS = [Cid.of(b"model %d" % k, 0x70) for k in range(12)]
ROUNDS, MAX_LAG, DEADLINE = 10, 2, 1000
SALT, FRESH = b"\1" * 32, b"\2" * 32
UNDER_WAY = (Phase.COMMIT, Phase.REVEAL, Phase.AGGREGATE)


def look(
    phase: Phase,
    round_: int = 3,
    *,
    completed: int | None = None,
    active: int = 1,
    committed: bool = False,
    revealed: bool = False,
    delivered: tuple[Work, ...] = (),
    max_lag: int = MAX_LAG,
    behind: bool = False,
    unsettled: tuple[Unsettled, ...] = (),
) -> ChainMoved:
    """Round `round_` of a job in which every round before it got its model, unless `completed` says less."""
    done = round_ - 1 if completed is None else completed
    terms = JobTerms(MODELS[0], MODELS[0], Mode.ASYNC, ROUNDS, 2, 3, 60, 60, 60, 60, 2, 60, 10, 1, 0)
    job = JobState(JobId(1), REQUESTER, terms, phase, round_, done, DEADLINE, MODELS[done], 3, 0, 0, 0, 0, 0)
    member = 0 < active <= round_
    mine = Mine(active, member, member, committed, revealed, None)
    models = tuple(MODELS[max(0, done - max_lag) : done + 1][::-1])
    known = History(models, max_lag, frozenset(work.cid for work in delivered))
    return ChainMoved(job, mine, unsettled, 0, None if behind else known)


def piece(round_: int = 3, parent: int = 2) -> Work:
    """Trained for a round, from the model that so many others came before."""
    name = b"update %d %d" % (round_, parent)
    return Work(round_, MODELS[parent], Cid.of(name, 0x70), 64, SALT)


def into(round_: int, work: Work) -> Work:
    """As promised to a round."""
    return replace(work, round=round_, salt=FRESH)


def after(*events: Event, state: State | None = None, now: float = 10) -> tuple[State, tuple[Action, ...]]:
    """The state after some events, and what the last one asked for."""
    state, actions = state or State(me=ME, trains=True), tuple[Action, ...]()
    for event in events:
        state, actions = step(state, event, now)
    return state, actions


def asked(*events: Event, now: float = 10, **known: Work | None) -> tuple[Action, ...]:
    return after(*events, state=State(me=ME, trains=True, **known), now=now)[1]  # type: ignore[arg-type]


# -- the way of one piece ---------------------------------------------------------------------------------
def test_a_piece_is_trained_promised_committed_and_revealed_and_the_next_one_trains_meanwhile() -> None:
    state, actions = after(look(Phase.COMMIT))
    assert actions == (Train(3, MODELS[2]),)
    state, actions = after(Trained(piece()), state=state)
    assert actions == (Promise(piece()),)
    state, actions = after(Promised(into(3, piece())), state=state)
    assert actions == (Commit(into(3, piece())),)
    done = Finished(Train(3, MODELS[2]))
    state, actions = after(done, look(Phase.COMMIT, committed=True), state=state)
    assert actions == (Train(4, MODELS[2]),)
    state, actions = after(look(Phase.REVEAL, committed=True), state=state)
    assert actions == (Reveal(into(3, piece())),)
    state, actions = after(look(Phase.AGGREGATE, committed=True, revealed=True), state=state)
    assert actions == ()
    _, actions = after(look(Phase.COMMIT, 4, delivered=(piece(),)), state=state)
    assert actions == (), "the training from the last model goes on"


def test_nothing_is_committed_that_the_journal_does_not_know_for_that_round() -> None:
    assert asked(look(Phase.COMMIT), work=piece()) == (Promise(piece()),)
    assert asked(look(Phase.COMMIT), work=piece(), promised=into(2, piece())) == (Promise(into(3, piece())),)


def test_a_piece_that_is_ready_between_two_commits_waits_and_is_not_replaced() -> None:
    for phase in (Phase.REVEAL, Phase.AGGREGATE):
        assert asked(look(phase), work=piece()) == ()
    assert asked(look(Phase.COMMIT, 4), work=piece()) == (Promise(replace(piece(), round=4)),)


def test_whoever_joined_during_a_round_trains_for_the_next_one_already() -> None:
    assert asked(look(Phase.COMMIT, active=0)) == (Join(4),)
    assert asked(look(Phase.COMMIT, active=4)) == (Train(4, MODELS[2]),)
    assert asked(look(Phase.COMMIT, active=4), work=piece(4)) == ()


def test_the_last_round_is_not_trained_for_once_it_has_our_piece() -> None:
    assert asked(look(Phase.COMMIT, ROUNDS)) == (Train(ROUNDS, MODELS[ROUNDS - 1]),)
    assert asked(look(Phase.COMMIT, ROUNDS, committed=True)) == ()
    assert asked(look(Phase.REVEAL, ROUNDS)) == ()


def test_with_no_lag_allowed_nothing_trains_from_a_model_that_is_about_to_be_replaced() -> None:
    assert asked(look(Phase.REVEAL, max_lag=0)) == ()
    assert asked(look(Phase.COMMIT, max_lag=0)) == (Train(3, MODELS[2]),)


# -- age --------------------------------------------------------------------------------------------------
def test_a_piece_may_be_as_far_behind_as_the_spec_says_and_no_further() -> None:
    old = piece(parent=0)
    assert asked(look(Phase.COMMIT, 3), work=old) == (Promise(old),)
    assert asked(look(Phase.COMMIT, 4), work=old) == (Train(4, MODELS[3]),)


def test_a_training_goes_on_as_long_as_a_round_may_take_what_it_makes() -> None:
    state, _ = after(look(Phase.COMMIT, 1))
    for round_ in (1, 2, 3):
        for phase in UNDER_WAY:
            state, actions = after(look(phase, round_), state=state)
            assert actions == (), "one training at a time"
    _, actions = after(look(Phase.COMMIT, 4), state=state)
    assert actions == (Abandon(1), Train(4, MODELS[3]))


def test_void_rounds_do_not_age_a_training() -> None:
    state, _ = after(look(Phase.COMMIT, 1))
    for round_ in (2, 3, 4):
        state, actions = after(look(Phase.COMMIT, round_, completed=0), state=state)
        assert actions == ()


def test_the_end_of_the_job_abandons_the_training() -> None:
    state, _ = after(look(Phase.COMMIT, 9))
    assert after(look(Phase.COMPLETED, 10, completed=10), state=state)[1] == (Abandon(9),)


# -- what goes wrong --------------------------------------------------------------------------------------
def test_a_commit_that_came_too_late_is_promised_to_the_next_round() -> None:
    known = {"work": piece(), "promised": into(3, piece())}
    assert asked(look(Phase.REVEAL), **known) == (), "it waits"
    assert asked(look(Phase.COMMIT, 4), **known) == (Promise(into(4, piece())),)


def test_a_reveal_that_came_too_late_is_promised_to_the_next_round() -> None:
    known = {"work": piece(), "promised": into(3, piece())}
    assert asked(look(Phase.AGGREGATE, committed=True), **known) == ()
    assert asked(look(Phase.COMMIT, 4), **known) == (Promise(into(4, piece())),)


def test_a_piece_of_a_void_round_goes_into_the_next_one_before_a_newer_piece() -> None:
    older, newer = piece(), piece(4)
    known = {"work": newer, "promised": into(3, older)}
    void = look(Phase.COMMIT, 4, completed=2)
    assert asked(void, **known) == (Promise(into(4, older)),)
    known["promised"] = into(4, older)
    committed = look(Phase.COMMIT, 4, completed=2, committed=True)
    assert asked(committed, **known) == (), "the newer one waits"
    delivered = look(Phase.COMMIT, 5, completed=3, delivered=(older,))
    assert asked(delivered, **known) == (Promise(replace(newer, round=5)),)


def test_a_delivered_piece_is_never_used_again() -> None:
    known = {"work": piece(), "promised": into(3, piece())}
    assert asked(look(Phase.COMMIT, 4, delivered=(piece(),)), **known) == (Train(4, MODELS[3]),)


def test_while_the_rows_are_behind_the_chain_only_what_is_bound_to_the_round_goes_on() -> None:
    known = {"work": piece(), "promised": into(3, piece())}
    assert asked(look(Phase.COMMIT, 4, behind=True), **known) == ()
    assert asked(look(Phase.REVEAL, 3, behind=True, committed=True), **known) == (Reveal(into(3, piece())),)
    state, _ = after(look(Phase.COMMIT, 1))
    assert after(look(Phase.COMMIT, 9, behind=True), state=state)[1] == ()


def test_a_restart_in_any_phase_takes_up_where_the_journal_and_the_chain_stand() -> None:
    work, promised = piece(), into(3, piece())
    both = {"work": work, "promised": promised}
    assert asked(look(Phase.COMMIT), work=work) == (Promise(work),)
    assert asked(look(Phase.COMMIT), **both) == (Commit(promised),)
    assert asked(look(Phase.COMMIT, committed=True), **both) == (Train(4, MODELS[2]),)
    assert set(asked(look(Phase.REVEAL, committed=True), **both)) == {Reveal(promised), Train(4, MODELS[2])}
    assert asked(look(Phase.AGGREGATE, committed=True, revealed=True), **both) == (Train(4, MODELS[2]),)


def test_nothing_is_promised_committed_or_revealed_after_the_deadline() -> None:
    for known in ({"work": piece()}, {"work": piece(), "promised": into(3, piece())}):
        for chain in (look(Phase.COMMIT), look(Phase.REVEAL, committed=True)):
            late = asked(chain, now=DEADLINE, **known)
            assert not [a for a in late if isinstance(a, Promise | Commit | Reveal)]


# -- one trainer for two purposes -------------------------------------------------------------------------
def test_a_judgement_goes_between_two_trainings() -> None:
    ours = (Seat(2, True, False, False, False, 0, 500, 1000),)
    state, actions = after(replace(look(Phase.COMMIT), seats=ours))
    assert actions == (Judge(2),), "before the next training"
    state, actions = after(Failed(Judge(2)), state=state)
    assert actions == (Train(3, MODELS[2]),), "which one that fails does not hold up"
    state, actions = after(Tick(), state=state, now=10 + rounds.RETRY_S)
    assert actions == (), "the training is not interrupted"
    state, actions = after(Trained(piece()), state=state, now=20)
    assert actions == (Promise(piece()),), "our piece does not wait for it"
    state, actions = after(Finished(Train(3, MODELS[2])), state=state, now=20)
    assert actions == (Judge(2),)
    promised = Promised(into(3, piece()))
    later = replace(look(Phase.REVEAL, committed=True), seats=ours)
    state, actions = after(promised, later, state=state, now=21)
    assert not [a for a in actions if isinstance(a, Train)]
    _, actions = after(Finished(Judge(2)), state=state, now=22)
    assert actions == (Train(4, MODELS[2]),)


EVENTS = st.one_of(
    st.just(Tick()),
    st.builds(
        look,
        st.sampled_from([*UNDER_WAY, Phase.OPEN, Phase.COMPLETED]),
        st.integers(1, 6),
        active=st.integers(0, 4),
        committed=st.booleans(),
        revealed=st.booleans(),
        behind=st.booleans(),
        unsettled=st.just(()) | st.just((Unsettled(2, 100, 1500),)),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.floats(0, 50), st.booleans(), st.integers(0, 5)), max_size=40))
def test_whatever_happens_one_training_runs_at_a_time_and_a_commit_is_what_was_promised(
    story: list[tuple[Event, float, bool, int]],
) -> None:
    state, now = State(me=ME, trains=True), 0.0
    running: list[Action] = []
    promised: dict[int, Work] = {}

    def happen(event: Event) -> None:
        nonlocal state
        state, actions = step(state, event, now)
        for action in actions:
            match action:
                case Abandon(round_):
                    running[:] = [a for a in running if not (isinstance(a, Train) and a.round == round_)]
                case Commit(work):
                    assert promised[work.round] == work
            if not isinstance(action, Abandon):
                assert action not in running
                running.append(action)
        assert len([a for a in running if isinstance(a, Train)]) <= 1

    for event, pause, succeeds, which in story:
        now += pause
        happen(event)
        if not running:
            continue
        action = running.pop(which % len(running))
        match action:
            case Train(round_, parent) if succeeds:
                happen(Trained(piece(round_, MODELS.index(parent))))
            case Promise(work) if succeeds:
                promised.setdefault(work.round, replace(work, salt=FRESH))
                happen(Promised(promised[work.round]))
        happen(Finished(action) if succeeds else Failed(action))
