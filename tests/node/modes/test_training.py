"""Training that takes too long is given up for the next round, and never runs twice for one round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dfl_ledger.records import Address, Cid, JobId, JobState, JobTerms, Mode, Phase
from dfl_node.rounds.machine import step
from dfl_node.rounds.vocabulary import Abandon, Action, ChainMoved, Mine, State, Train, Trained, Work
from tests.node.modes.world import Running, When, World, play

PARENT, NEWER = Cid.of(b"parent", 0x70), Cid.of(b"newer", 0x70)
ME = Address("0x" + "11" * 20)


def at_commit(round_: int, parent: Cid) -> ChainMoved:
    terms = JobTerms(PARENT, PARENT, Mode.SYNC, 5, 2, 3, 60, 60, 60, 60, 0, 60, 60, 10, 0)
    job = JobState(JobId(1), ME, terms, Phase.COMMIT, round_, 0, 1000, parent, 3, 0, 0, 0, 0, 0)
    return ChainMoved(job, Mine(round_, True, True, False, False, None), (), 0)


def work(round_: int, parent: Cid) -> Work:
    return Work(round_, parent, Cid.of(b"update %d" % round_, 0x70), 64, bytes(32))


def after(*events: ChainMoved | Trained) -> tuple[State, tuple[Action, ...]]:
    state, actions = State(me=ME, trains=True), tuple[Action, ...]()
    for event in events:
        state, actions = step(state, event, 10)
    return state, actions


def test_news_of_the_next_round_abandons_the_old_training_before_it_starts_the_new() -> None:
    _, actions = after(at_commit(3, PARENT), at_commit(4, NEWER))
    assert actions == (Abandon(3), Train(4, NEWER))


def test_an_abandoned_training_that_ends_all_the_same_does_not_start_the_next_one_twice() -> None:
    state, actions = after(at_commit(3, PARENT), at_commit(4, NEWER), Trained(work(3, PARENT)))
    assert not [action for action in actions if isinstance(action, Train)]
    assert Train(4, NEWER) in state.under_way


def test_late_work_of_an_old_round_does_not_replace_that_of_the_new() -> None:
    new = work(4, NEWER)
    state, _ = after(at_commit(3, PARENT), at_commit(4, NEWER), Trained(new), Trained(work(3, PARENT)))
    assert state.work == new


def test_a_node_too_slow_for_a_round_stops_training_for_it_and_joins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        def taking(train_s: float) -> Callable[[Running], None]:
            return lambda node: setattr(node.parts.trainer, "_train_s", train_s)

        world.trap("train", When.BEFORE, taking(5 * 45), of="b", round=2)  # 5 steps; the window is 30 s
        world.trap("train", When.BEFORE, taking(2), of="b", round=3)
        await world.submit()
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert world.contributions("b") == [1, 3]
        assert world.machines["b"].trained == {1: 1, 2: 1, 3: 1}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_node_that_is_always_too_slow_holds_nobody_up_beyond_the_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.kill("b")
        world.machines["b"].train_s = 1000
        await world.start("b")
        await world.submit()
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert world.contributions("b") == []
        assert set(world.machines["b"].trained.values()) == {1}
        await world.check_end()

    play(story, tmp_path, monkeypatch)
