"""The model goes from node to node: in the chain's order, never from a hop that made it worse."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from dfl_ledger.memory import MemoryLedger
from dfl_ledger.records import Address, JobId, Phase
from dfl_node.train.trainer import Assignment, ModelUpdate
from tests.node.modes import chains
from tests.node.modes.chains import LEASE_S, hops, leases, loss, rewards
from tests.node.modes.test_outages import GRACE_S
from tests.node.modes.world import Running, When, World, play


def test_three_nodes_pass_the_model_on_and_every_claim_adds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await chains.submit(world)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        found = hops(world)
        assert [hop.round for hop in found] == [1] * 3 + [2] * 3 + [3] * 3
        # one unbroken chain: every hop began from the one before it
        assert [hop.parent for hop in found] == [state.terms.model, *(hop.model for hop in found[:-1])]
        assert state.model == found[-1].model
        for name in "abc":
            assert world.machines[name].trained == {1: 1, 2: 1, 3: 1}
        for round_ in (1, 2, 3):
            assert all(rewards(world, round_).values())
        await world.check_end()
        # nobody waited for a deadline: nine hops of two seconds' training
        assert world.now() - world.mined_at(world.job_events("JobCreated")[0]) < 75

    play(story, tmp_path, monkeypatch)


def test_the_requester_sees_the_model_improve_hop_by_hop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        job = await chains.submit(world)
        await world.until_over()
        watched = world.running["requester"].jobs[job].activity()["watched"]
        seen = [entry["loss"] for entry in watched]
        assert seen == sorted(seen, reverse=True)
        assert seen[-1] < seen[0] / 4
        found = {str(hop.model): hop for hop in hops(world)}
        assert len(watched) >= len(found) - 1, "the last lap may end before it is measured"
        for entry in watched:
            hop = found[entry["model"]]
            assert entry["loss"] == pytest.approx(await loss(world, hop.model), abs=1e-8)
            assert entry["round"] == hop.round
        assert not world.running["a"].jobs[job].activity()

    play(story, tmp_path, monkeypatch)


def test_the_order_is_the_chains_and_is_drawn_anew_for_each_lap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await chains.submit(world, rounds=6, min_nodes=4)
        await world.until_over()
        orders = []
        for round_ in range(1, 7):
            order = [hop.name for hop in hops(world, round_)]
            assert order == leases(world, round_)
            assert sorted(order) == list("abcd")
            orders.append(tuple(order))
        assert len(set(orders)) > 3
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=4)


def test_every_hop_has_a_row_with_its_parent_and_its_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        job = await chains.submit(world)
        await world.until_over()
        rows = world.running["requester"].parts.rows.contributions(job=job, kind="hop")
        assert [(row.cid, row.parent, row.round) for row in rows] == [
            (str(hop.model), str(hop.parent), hop.round) for hop in hops(world)
        ]
        assert all(row.accepted and row.score is not None and row.score > 0 for row in rows)

    play(story, tmp_path, monkeypatch)


def test_late_hops_are_not_paid_less_for_being_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gains fall by 40 % a hop; equal work is paid within a quarter of the same."""

    async def story(world: World) -> None:
        await chains.submit(world, rounds=1)
        await world.until_over()
        losses = [await loss(world, hops(world)[0].parent)]
        losses += [await loss(world, hop.model) for hop in hops(world)]
        gains = [before - after for before, after in pairwise(losses)]
        assert gains[0] > 2 * gains[2]
        earned = world.earned_by_work(1)
        paid = [earned[world.machines[hop.name].address] for hop in hops(world)]
        assert max(paid) < 1.25 * min(paid)

    play(story, tmp_path, monkeypatch)


def test_a_late_joiner_hops_from_the_next_lap_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        await chains.submit(world)
        await world.until_round(2, Phase.COMMIT)
        await world.start("d")
        await world.until_over()
        assert world.contributions("d") == [3]
        assert "d" not in leases(world, 2)
        assert len(leases(world, 3)) == 4
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_small_device_hops_with_the_steps_that_fit_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.kill("b")
        world.machines["b"].train_s = 20.0  # five steps: two fit half a lease
        await world.start("b")
        await chains.submit(world)
        await world.until_over()
        by_name = {name: {hop.samples for hop in hops(world) if hop.name == name} for name in "abc"}
        assert by_name == {"a": {40}, "b": {8}, "c": {40}}
        assert world.contributions("b") == [1, 2, 3]
        assert all(rewards(world, 2).values())
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_node_too_slow_for_one_batch_costs_its_leases_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.kill("b")
        world.machines["b"].train_s = 1000.0
        await world.start("b")
        await chains.submit(world)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert world.contributions("b") == []
        assert not world.job_events("RoundVoided")
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_personal_head_is_kept_from_lap_to_lap_and_never_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        given: list[tuple[str, int, bytes | None]] = []
        for name in "abc":
            trainer = world.running[name].parts.trainer
            honest = trainer.train

            async def train(assignment: Assignment, name: str = name, honest: Any = honest) -> ModelUpdate:
                given.append((name, assignment.round, assignment.local))
                update: ModelUpdate = await honest(assignment)
                return update

            monkeypatch.setattr(trainer, "train", train)
        await chains.submit(world, rounds=2, personal='["*.bias"]')
        state = await world.until_over()
        assert state.phase is Phase.COMPLETED
        assert [local is None for _, _, local in given] == [True] * 3 + [False] * 3
        heads = {name: local for name, _, local in given}
        assert len(set(heads.values())) == 3, "to each its own"
        for hop in hops(world):
            assert b"bias" not in (world.blob(hop.model) or b"")
        losses = [await loss(world, hop.model) for hop in hops(world)]
        assert losses == sorted(losses, reverse=True)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


# -- leases that nobody uses --------------------------------------------------------------------------------
def kill_holder(world: World, position: int, round_: int = 2) -> list[str]:
    """Kill whoever begins to train at this position of a lap; the list will have its name."""
    victims: list[str] = []

    def kill(node: Running) -> None:
        lease = MemoryLedger(world.chain, node.machine.address).lease(JobId(1))
        if lease is not None and lease.position == position and not victims:
            victims.append(node.machine.name)
            world.kill(node.machine.name)

    for name in "abc":
        world.trap("train", When.BEFORE, kill, of=name, round=round_)
    return victims


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_dead_leaseholder_costs_one_lease_and_the_next_goes_on_from_what_was_accepted(
    position: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        victims = kill_holder(world, position)
        await chains.submit(world)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        (victim,) = victims
        lap = hops(world, 2)
        order = leases(world, 2)
        assert order[position] == victim
        assert [hop.name for hop in lap] == [name for name in order if name != victim]
        assert lap[1].parent == lap[0].model
        granted = [e for e in world.job_events("HopLeased") if e.args["round"] == 2]
        passed = world.mined_at(granted[position])
        (over,) = (
            e
            for e in world.job_events("PhaseChanged")
            if (e.args["round"], e.args["phase"]) == (2, Phase.AGGREGATE)
        )
        after = world.mined_at(granted[position + 1]) if position < 2 else world.mined_at(over)
        assert LEASE_S <= after - passed <= LEASE_S + GRACE_S
        assert victim not in leases(world, 3)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_whoever_missed_its_lease_joins_again_and_hops_in_the_next_lap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        victims = kill_holder(world, 1)
        await chains.submit(world)
        await world.until(lambda: bool(victims), "a leaseholder is killed")
        await trio.sleep(LEASE_S + 1)
        await world.start(victims[0])
        await world.until_over()
        assert world.contributions(victims[0]) == [1, 3]
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("call", ["record", "hop"], ids=["before the journal", "after the journal"])
def test_a_leaseholder_that_restarts_within_its_lease_hops_and_trains_no_second_time_if_it_had_finished(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims: list[str] = []

    async def story(world: World) -> None:
        def kill(node: Running) -> None:
            victims.append(node.machine.name)
            world.kill(node.machine.name)

        world.trap(call, When.BEFORE, kill, round=2)
        await chains.submit(world)
        await world.until(lambda: bool(victims), "a leaseholder is killed")
        await trio.sleep(1)
        victim = await world.start(victims[0])
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert world.contributions(victims[0]) == [1, 2, 3]
        assert victim.machine.trained == {1: 1, 2: 2 if call == "record" else 1, 3: 1}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_lap_with_too_few_hops_is_void_and_the_next_goes_on_from_what_was_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await chains.submit(world, quorum=3)
        victims = kill_holder(world, 2)
        await world.until(lambda: bool(world.job_events("RoundVoided")), "the lap is void")
        await world.start(victims[0])
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        (void,) = world.job_events("RoundVoided")
        assert void.args["round"] == 2
        last = hops(world, 2)[-1]
        assert chains.lap_starts(world)[3] == last.parent, "accepted; the last one was not judged"
        assert not world.is_settled(2)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_killed_aggregator_is_replaced_by_the_next_in_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.trap("publish_model", When.BEFORE, lambda node: world.kill(node.machine.name), round=2)
        await chains.submit(world)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert not world.job_events("RoundVoided")
        assert len(world.running) == 3
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_publisher_that_is_gone_is_replaced_after_half_the_settle_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who settles recomputes the verdicts from the files alone."""

    async def story(world: World) -> None:
        world.trap("publish_model", When.AFTER, lambda node: world.kill(node.machine.name))
        await chains.submit(world, rounds=1, settle_s=600)
        await world.until_over()
        (published,), (settled,) = world.job_events("ModelPublished"), world.job_events("Settled")
        assert settled.args["settler"] != published.args["aggregator"]
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_hop_is_held_by_another_before_the_chain_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        alone: list[Address] = []

        def look(node: Running) -> None:
            job = world.state()
            newest = hops(world)[-1]
            holders = [
                name
                for name, machine in world.machines.items()
                if machine.store._files.get(newest.model) is not None and name != newest.name
            ]
            if not holders:
                alone.append(job.requester)

        for name in "abc":
            for round_ in (1, 2, 3):
                world.trap("hop", When.AFTER, look, of=name, round=round_)
        await chains.submit(world)
        await world.until_over()
        assert not alone

    play(story, tmp_path, monkeypatch)


def test_the_final_model_stays_pinned_by_whoever_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await chains.submit(world, rounds=1)
        state = await world.until_over()
        maker = hops(world)[-1].name
        info, _ = world.machines[maker].store._files[state.model]
        assert info.pinned

    play(story, tmp_path, monkeypatch)
