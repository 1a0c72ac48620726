"""Jobs as they should go, and as they go when nodes come late, hold back or stay away."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from dfl_ledger.records import JobId, Phase
from tests.node.modes.world import BUDGET_WEI, Running, When, World, cid_of, play


def test_three_nodes_complete_a_job_and_every_claim_adds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit()
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert [world.contributions(name) for name in "abc"] == [[1, 2, 3]] * 3
        held = {name: world.chain.token.balances[world.machines[name].address] for name in "abc"}
        await world.check_end()
        for name in "abc":
            me = world.machines[name].address
            earned = sum(
                leaf.reward_wei for r in (1, 2, 3) for leaf in world.evidence(r).leaves if leaf.account == me
            )
            assert world.chain.token.balances[me] - held[name] == earned > 0
        # three rounds trained by three nodes at once: nobody waited for a deadline
        assert world.now() - world.mined_at(world.job_events("JobCreated")[0]) < 60

    play(story, tmp_path, monkeypatch)


def test_whoever_published_the_last_model_settles_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit(settle_s=3600)
        await world.until_over()
        settled = {e.args["round"]: e for e in world.job_events("Settled")}
        for published in world.job_events("ModelPublished"):
            by = settled[published.args["round"]]
            assert by.args["settler"] == published.args["aggregator"]
            assert world.mined_at(by) - world.mined_at(published) < 10

    play(story, tmp_path, monkeypatch)


def test_a_late_joiner_takes_part_from_the_next_round_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit()
        await world.until_round(2, Phase.COMMIT)
        await world.start("d")
        await world.until_over()
        assert world.contributions("d") == [3]
        assert world.machines["d"].trained == {3: 1}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_withheld_reveal_costs_the_round_its_deadline_and_its_node_the_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit()
        await world.until_round(2, Phase.COMMIT)
        world.machines["b"].blocked.add("reveal")
        await world.until_round(2, Phase.AGGREGATE)
        world.machines["b"].blocked.clear()
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert 2 not in world.contributions("b")
        assert world.machines["b"].address not in {entry.node for entry in world.evidence(2).entries}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_round_without_quorum_is_void_and_its_nodes_join_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit()
        await world.until_round(2, Phase.COMMIT)
        world.kill("b")
        world.kill("c")
        await world.until_round(3, Phase.OPEN)
        await world.start("b")
        await world.start("c")
        state = await world.until_over()
        assert [e.args["round"] for e in world.job_events("RoundVoided")] == [2]
        assert (state.phase, state.completed, state.round) == (Phase.COMPLETED, 3, 4)
        assert [world.contributions(name) for name in "abc"] == [[1, 3, 4]] * 3
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_three_void_rounds_fail_the_job_and_refund_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        before = world.chain.token.balances[world.machines["requester"].address]
        for name in "bc":
            world.machines[name].blocked.add("commit")
        await world.submit()
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.FAILED, 0)
        assert [e.args["round"] for e in world.job_events("RoundVoided")] == [1, 2, 3]
        assert (state.spent_wei, state.refunded_wei) == (0, 3 * BUDGET_WEI)
        assert world.chain.token.balances[world.machines["requester"].address] == before
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_job_that_nobody_joins_fails_and_is_refunded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit()
        state = await world.until_over()
        assert (state.phase, state.refunded_wei) == (Phase.FAILED, 3 * BUDGET_WEI)

    play(story, tmp_path, monkeypatch, trainers=1)


def test_an_open_job_with_a_quorum_starts_at_the_deadline_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit(min_nodes=3, quorum=2)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=2)


def test_a_slow_aggregator_and_the_next_in_line_give_one_round_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both publish the same file; the chain takes the first and the second goes on as if nothing were."""

    async def story(world: World) -> None:
        def first_is_cut_off(node: Running) -> None:
            node.machine.blocked.add("publish_model")

        world.trap("publish_model", When.BEFORE, first_is_cut_off, round=2)
        await world.submit()
        await world.until_round(3, Phase.COMMIT)
        slow = next(m for m in world.machines.values() if m.blocked)
        published = world.job_events("ModelPublished")[-1]
        assert published.args["round"] == 2
        assert published.args["aggregator"] != slow.address
        journal = world.running[slow.name].parts.journal
        assert journal.verdicts(JobId(1), 2, cid_of(published.args["model"])), "it made the same file"
        slow.blocked.clear()
        state = await world.until_over()
        assert state.phase is Phase.COMPLETED
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_the_refund_is_exact_when_a_published_round_is_never_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit(rounds=2)
        await world.until_round(2, Phase.COMMIT)
        await world.until(lambda: bool(world.job_events("Settled")), "round 1 is settled")
        for machine in world.machines.values():
            machine.blocked.add("settle")
        state = await world.until_over()
        assert [e.args["round"] for e in world.job_events("Settled")] == [1]
        assert state.phase is Phase.COMPLETED
        assert state.spent_wei + state.refunded_wei == 2 * BUDGET_WEI
        assert state.refunded_wei >= BUDGET_WEI
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_requester_that_was_away_when_its_job_ended_still_gets_its_refund(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit(rounds=1)
        await world.until_round(1, Phase.REVEAL)
        world.kill("requester")
        await world.until(lambda: world.state().phase.terminal, "the job ends")
        await trio.sleep(100)
        await world.start("requester")
        state = await world.until_over()
        assert state.spent_wei + state.refunded_wei == BUDGET_WEI
        await world.check_end()

    play(story, tmp_path, monkeypatch)
