"""Asynchronous jobs: no barrier, a price for age, a bound on it, and a place for whoever comes late."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from dfl_ledger.memory import MemoryLedger
from dfl_ledger.records import Address, Cid, Contribution, JobId, Kind, Phase
from dfl_node import jobspec
from dfl_node.modes.async_parallel import AsyncParallel
from dfl_node.modes.mode import Context
from dfl_node.parts import Parts
from dfl_node.rounds.vocabulary import State
from tests.node.modes import buffers
from tests.node.modes.machines import TRAIN_S
from tests.node.modes.world import World, play

SLOWER = 10.0
CROOK = Address("0x" + "11" * 20)


async def make_slow(world: World, name: str) -> None:
    world.kill(name)
    world.machines[name].train_s = SLOWER * TRAIN_S
    await world.start(name)


def test_rounds_do_not_wait_for_a_node_ten_times_slower_and_its_work_counts_and_earns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lap_s = list[float]()

    async def without(world: World) -> None:
        await buffers.submit(world, rounds=24)
        await world.until_round(1, Phase.COMMIT)
        world.kill("c")
        await world.until_over()
        lap_s.append(buffers.lap_s(world))

    async def with_slow(world: World) -> None:
        await make_slow(world, "c")
        await buffers.submit(world, rounds=24, max_lag=12)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 24)
        lap_s.append(buffers.lap_s(world))
        late = buffers.deliveries(world, "c")
        assert len(late) >= 2
        for delivery in late:
            assert delivery.accepted, delivery.why
            assert delivery.lag
            assert delivery.reward_wei > 0
        fast = [d for name in "ab" for d in buffers.deliveries(world, name)]
        assert max(d.lag or 0 for d in fast) <= 2
        assert len(world.job_events("Settled")) == 24, "members that always train settle all the same"
        buffers.check_pieces(world)
        await world.check_end()

    for story, path in ((without, tmp_path / "1"), (with_slow, tmp_path / "2")):
        path.mkdir()
        play(story, path, monkeypatch)
    assert lap_s[1] <= 1.05 * lap_s[0]


@pytest.mark.parametrize(
    ("parent", "why"),
    [
        ("the first model", "stale: 3 models behind, at most 2 are taken"),
        ("an update", "its parent is no model of this job"),
    ],
)
def test_a_piece_from_a_model_too_old_or_from_none_is_refused_in_the_evidence(
    parent: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        crook = world.machine("crook")
        ledger = MemoryLedger(world.chain, crook.address)
        await buffers.submit(world, max_lag=2, size=3)
        await world.until_round(2, Phase.COMMIT)
        ledger.join(JobId(1))
        await world.until_round(4, Phase.COMMIT)
        of = world.state().terms.model
        if parent == "an update":
            shown = next(e for e in world.job_events("ContributionRevealed") if e.args["round"] == 1)
            of = Cid.from_digest(bytes.fromhex(str(shown.args["update"])[2:]))
        piece = Contribution(JobId(1), 4, crook.address, Kind.UPDATE, Cid.of(b"delta", 0x55), of, 8)
        ledger.commit(piece, bytes(32))
        await world.until_round(4, Phase.REVEAL)
        ledger.reveal(piece, bytes(32))
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 6)
        (delivery,) = buffers.deliveries(world, "crook")
        assert (delivery.accepted, delivery.why, delivery.reward_wei) == (False, why, 0)
        others = [entry for entry in world.evidence(4).entries if entry.node != crook.address]
        assert [entry.accepted for entry in others] == [True, True]
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_late_joiner_starts_from_the_newest_model_and_contributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await buffers.submit(world, rounds=10)
        await world.until_round(4, Phase.COMMIT)
        late = await world.start("late")
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 10)
        found = buffers.deliveries(world, "late")
        assert found
        assert found[0].round <= 8
        assert all(delivery.accepted and (delivery.lag or 0) <= 2 for delivery in found)
        assert late.parts.rows.members(1, 10)[-1] == late.machine.address
        buffers.check_pieces(world)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_member_that_was_away_for_many_rounds_is_still_one_and_needs_no_joining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await buffers.submit(world, rounds=11)
        await world.until_round(3, Phase.COMMIT)
        world.kill("c")
        await world.until_round(8, Phase.COMMIT)
        await world.start("c")
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 11)
        assert len(world.job_events("NodeJoined")) == 3
        found = buffers.deliveries(world, "c")
        assert [d for d in found if d.round >= 8 and d.accepted]
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_piece_of_a_void_round_goes_into_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a quorum of two, one dies before it commits; the other's work is not lost with the round."""

    async def story(world: World) -> None:
        await buffers.submit(world, rounds=3, min_nodes=2, quorum=2)
        await world.until_round(2, Phase.COMMIT)
        world.kill("b")
        await world.until(lambda: bool(world.job_events("RoundVoided")), "round 2 is void")
        promised = {e.args["node"] for e in world.job_events("ContributionCommitted") if e.args["round"] == 2}
        assert promised == {world.machines["a"].address}
        await world.start("b")
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert world.machines["a"].trained[2] == 1
        assert world.contributions("a") == [1, 3, 4]
        buffers.check_pieces(world)
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=2)


def test_a_dead_member_costs_no_time_as_long_as_the_others_fill_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await buffers.submit(world, rounds=8)
        await world.until_round(2, Phase.COMMIT)
        world.kill("c")
        await world.until_over()
        assert buffers.lap_s(world) <= 2 * TRAIN_S
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_training_may_take_its_time_unless_the_spec_says_how_much() -> None:
    text = buffers.ASYNC.format(rounds=3, min_nodes=3, quorum=2, settle_s=60, size=2, max_lag=8)
    for line, budget_s in (("", None), ("\ntime_budget_s = 7", 7.0)):
        spec = jobspec.parse(text.replace("\nlr = 0.1", "\nlr = 0.1" + line))
        parts = cast(Parts, None)  # nothing is asked of them
        context = Context(JobId(1), spec, parts, lambda: 0.0, lambda: State(CROOK, trains=True))
        assert AsyncParallel(context, max_lag=8).time_budget_s == budget_s
