"""Rounds are judged by those who were drawn: what that pays, what it costs, and what falls."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import trio

from dfl_ledger import vectors
from dfl_ledger.evidence import Evidence
from dfl_ledger.memory import MemoryLedger
from dfl_ledger.records import RAW, Address, Cid, Event, JobId, Phase
from dfl_ledger.rewards import Pots
from dfl_node.journal import Journal, Scores
from dfl_node.specrules import model_config
from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.trainer import WeightedUpdate
from tests.node.modes.world import SCORE_S, STAKE_WEI, Machine, Running, When, World, play
from tests.seeds import seeds

JOB = JobId(1)


def bond_wei(world: World) -> int:
    return world.state().terms.bond_wei


def stake(world: World, name: str) -> int:
    return world.chain.registry.stake_of(world.machines[name].address)


def seated(world: World, round_: int = 1) -> list[str]:
    """The names of those who were drawn to judge a round, by seat."""
    (drawn,) = (e for e in world.job_events("PanelDrawn") if e.args["round"] == round_)
    names = {machine.address: machine.name for machine in world.machines.values()}
    evaluators: Any = drawn.args["evaluators"]
    return [names[Address(node)] for node in evaluators]


def shown(world: World, round_: int = 1) -> list[Event]:
    return [e for e in world.job_events("ScoresRevealed") if e.args["round"] == round_]


def test_a_round_pays_what_the_median_of_its_panel_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit(rounds=1)
        state = await world.until_over()
        evidence, pots = world.evidence(1), Pots.of(world.evidence(1).shares)
        updates = [WeightedUpdate(world.blob(e.cid) or b"", e.samples) for e in evidence.entries]
        worths = await MemoryTrainer().score(
            model_config(world.spec()),
            world.blob(state.terms.model) or b"",
            updates,
            world.blob(world.spec().validation) or b"",
            method="shapley",
            max_update_bytes=4096,
        )
        assert tuple(entry.score for entry in evidence.entries) == worths.worths
        earned, total = world.earned_by_work(1), sum(max(0, worth) for worth in worths.worths)
        for entry, worth in zip(evidence.entries, worths.worths, strict=True):
            assert earned[entry.node] == pots.compute_wei * max(0, worth) // total
        rewards = {leaf.account: leaf.reward_wei for leaf in evidence.leaves}
        judges = seated(world)
        assert len(judges) == 3
        for name in judges:
            me = world.machines[name].address
            assert rewards[me] - earned[me] == pots.evaluator_wei // 3
        assert [len(bytes.fromhex(str(e.args["vector"])[2:])) // 8 for e in shown(world)] == [4, 4, 4]
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_when_everybody_is_there_a_round_is_settled_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit(rounds=1)
        await world.until_over()
        (published,), (settled,) = world.job_events("ModelPublished"), world.job_events("Settled")
        assert world.mined_at(settled) - world.mined_at(published) < 5

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("seed", seeds(12, fast=4))
def test_nobody_honest_loses_anything(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        await world.submit(rounds=4)
        await world.until_over()
        assert not world.job_events("Slashed")
        assert len(world.job_events("ScoresRevealed")) == 12
        await world.check_end()

    play(story, tmp_path, monkeypatch, seed=seed)


def test_without_evaluators_all_who_contributed_get_the_same_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody enlisted, or all have left: the panel is drawn empty, and done."""

    async def story(world: World) -> None:
        for node in world.running.values():
            node.parts.ledger.delist()
        await world.submit(rounds=1)
        await world.until_over()
        (settled,), (published,) = world.job_events("Settled"), world.job_events("ModelPublished")
        assert world.mined_at(settled) - world.mined_at(published) < 5
        earned = world.earned_by_work(1)
        assert len({earned[world.machines[name].address] for name in "abc"}) == 1
        await world.check_end()

    play(story, tmp_path, monkeypatch)


# -- seats that may stay empty -------------------------------------------------------------------------
def limit_seats(world: World, name: str, least_window_s: int) -> None:
    MemoryLedger(world.chain, world.machines[name].address).limit_seats(least_window_s, STAKE_WEI)


def test_a_seat_with_too_little_time_stays_empty_and_nobody_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged: list[str] = []

    async def story(world: World) -> None:
        limit_seats(world, "b", SCORE_S + 1)
        world.trap("punish_seat", When.BEFORE, lambda node: charged.append(node.machine.name))
        await world.submit(rounds=4)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 4)
        sat = [round_ for round_ in (1, 2, 3, 4) if "b" in seated(world, round_)]
        assert sat
        own = world.machines["b"].address
        for event in world.job_events("ScoresCommitted"):
            assert event.args["evaluator"] != own
        assert all(len(shown(world, round_)) == 3 - (round_ in sat) for round_ in (1, 2, 3, 4))
        assert not charged
        assert not world.job_events("Slashed")
        assert [e.args["round"] for e in world.job_events("Settled")] == [1, 2, 3, 4]
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_limits_of_today_are_no_way_out_of_a_seat_of_yesterday(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is drawn from a block before it said so judges all the same."""
    limited: list[str] = []

    async def story(world: World) -> None:
        def limit(_: Running) -> None:
            for name in world.machines:
                limit_seats(world, name, SCORE_S + 1)
                limited.append(name)

        world.trap("publish_model", When.AFTER, limit)
        await world.submit(rounds=1)
        await world.until_over()
        assert len(limited) == len(world.machines)
        assert len(shown(world)) == 3
        assert not world.job_events("Slashed")
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_where_nobody_takes_a_seat_all_who_contributed_get_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        for name in world.machines:
            limit_seats(world, name, SCORE_S + 1)
        await world.submit(rounds=1)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 1)
        assert not world.job_events("ScoresCommitted")
        assert not world.job_events("Slashed")
        earned = world.earned_by_work(1)
        assert len({earned[world.machines[name].address] for name in "abc"}) == 1
        await world.check_end()

    play(story, tmp_path, monkeypatch)


# -- evaluators that die -------------------------------------------------------------------------------
def test_an_evaluator_killed_before_it_shows_its_scores_loses_a_bond_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims: list[str] = []

    def kill(node: Running) -> None:
        victims.append(node.machine.name)
        node.world.kill(node.machine.name)

    async def story(world: World) -> None:
        world.trap("commit_scores", When.AFTER, kill)
        await world.submit(rounds=2)
        await world.until(lambda: bool(world.job_events("ScoresWithheld")), "somebody is punished")
        await world.until(lambda: world.is_settled(2), "all is settled")
        (victim,) = victims
        await world.start(victim)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 2)
        assert [e.args["round"] for e in world.job_events("Settled")] == [1, 2]
        withheld = world.job_events("ScoresWithheld")
        assert {e.args["evaluator"] for e in withheld} == {world.machines[victim].address}
        assert 1 in {e.args["round"] for e in withheld}
        assert stake(world, victim) == STAKE_WEI - len(withheld) * bond_wei(world)
        assert {e.args["node"] for e in world.job_events("Slashed")} == {world.machines[victim].address}
        (published, *_), (settled, *_) = world.job_events("ModelPublished"), world.job_events("Settled")
        assert world.mined_at(settled) - world.mined_at(published) <= 2 * SCORE_S + 40
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("call", "when"),
    [("bind_scores", When.AFTER), ("commit_scores", When.AFTER), ("reveal_scores", When.AFTER)],
)
def test_an_evaluator_that_is_started_again_shows_what_it_was_bound_to(
    call: str, when: When, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims: list[str] = []

    def kill(node: Running) -> None:
        victims.append(node.machine.name)
        node.world.kill(node.machine.name)

    async def story(world: World) -> None:
        world.trap(call, when, kill)
        await world.submit(rounds=1)
        await world.until(lambda: bool(victims), "an evaluator is killed")
        bound = Journal(world.machines[victims[0]].path / "journal.sqlite").scores(JOB, 1)
        assert bound is not None
        await trio.sleep(3)
        await world.start(victims[0])
        await world.until_over()
        me = world.machines[victims[0]].address
        (own,) = (e for e in shown(world) if e.args["evaluator"] == me)
        assert own.args["vector"] == "0x" + bound.vector.hex()
        assert not world.job_events("Slashed")
        await world.check_end()

    play(story, tmp_path, monkeypatch)


# -- those who lie -------------------------------------------------------------------------------------
def test_who_never_reveals_its_work_loses_a_bond_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.machines["b"].blocked.add("reveal")
        await world.submit(rounds=2)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 2)
        withheld = [(e.args["round"], e.args["node"]) for e in world.job_events("RevealWithheld")]
        griefer = world.machines["b"].address
        assert withheld
        assert {node for _, node in withheld} == {griefer}
        assert len(withheld) == len(set(withheld)), "once a round"
        assert stake(world, "b") == STAKE_WEI - len(withheld) * bond_wei(world)
        assert all(stake(world, name) == STAKE_WEI for name in ("a", "c", "requester"))
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("score", [0, 10**9, -(2**63)], ids=["nothing", "much", "refused"])
def test_who_says_the_same_of_everything_loses_more_than_it_earns(
    score: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does no work: whatever it says is far from what most of the panel measured."""

    async def story(world: World) -> None:
        await world.submit(rounds=3)
        await world.until(lambda: JOB in world.running["requester"].jobs, "the lazy one knows of the job")
        judge = world.running["requester"].jobs[JOB]._judge

        async def same(round_: int, panel: Any) -> Scores:
            return Scores(vectors.encode([score] * (panel.subjects - 1) + [1]), b"s" * 32, "none", {})

        monkeypatch.setattr(judge, "_scores", same)
        await world.until_over()
        sat = sum("requester" in seated(world, round_) for round_ in (1, 2, 3))
        assert sat
        lost = world.job_events("OutlierPenalized")
        lazy = world.machines["requester"].address
        assert [e.args["evaluator"] for e in lost] == [lazy] * sat
        assert stake(world, "requester") == STAKE_WEI - sat * bond_wei(world)
        seat_wei = Pots.of(world.evidence(1).shares).evaluator_wei // 3
        assert bond_wei(world) > seat_wei
        assert {e.args["node"] for e in world.job_events("Slashed")} == {lazy}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


class Lie(Enum):
    """What a settler changes in its own favour."""

    SCORE = "score"
    REWARD = "reward"
    SUM = "sum"
    LINES = "lines"


def forged(lie: Lie, found: Evidence, me: Address) -> Evidence:
    """The evidence of a settlement that pays `me` more."""
    place = next(at for at, leaf in enumerate(found.leaves) if leaf.account == me)
    own, lines = found.leaves[place], list(found.leaves)
    victim = next(at for at, leaf in enumerate(lines) if leaf.cumulative_wei and at != place)
    taken_wei = lines[victim].reward_wei // 2
    match lie:
        case Lie.SCORE:
            entries = [replace(e, score=e.score + 10**9) if e.node == me else e for e in found.entries]
            return replace(found, entries=tuple(entries))
        case Lie.REWARD:
            lines[place] = replace(
                own, reward_wei=own.reward_wei + taken_wei, cumulative_wei=own.cumulative_wei + taken_wei
            )
            other = lines[victim]
            lines[victim] = replace(
                other,
                reward_wei=other.reward_wei - taken_wei,
                cumulative_wei=other.cumulative_wei - taken_wei,
            )
        case Lie.SUM:
            lines[place] = replace(own, cumulative_wei=own.cumulative_wei + taken_wei)
            lines[victim] = replace(lines[victim], cumulative_wei=lines[victim].cumulative_wei - taken_wei)
        case Lie.LINES:
            if place == len(lines) - 1:
                lines[victim] = replace(own, account=lines[victim].account)
            lines.pop()
    return replace(found, leaves=tuple(lines))


@pytest.mark.parametrize("lie", Lie)
@pytest.mark.parametrize("round_", [1, 2])
def test_a_wrong_settlement_is_overturned_and_the_right_one_stands(
    lie: Lie, round_: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liars: list[Machine] = []

    async def story(world: World) -> None:
        def lying(node: Running) -> None:
            if world.round < round_:
                return
            settler, me = node.jobs[JOB]._settler, node.parts.ledger.address
            keep = settler.evidence

            async def evidence(number: int) -> Evidence:
                found = await keep(number)
                return forged(lie, found, me) if number == round_ and node.machine in liars else found

            monkeypatch.setattr(settler, "evidence", evidence)
            liars.append(node.machine)

        world.trap("publish_model", When.BEFORE, lying, round=round_)
        await world.submit(rounds=2)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 2)
        (liar,) = liars
        (fallen,) = world.job_events("Overturned")
        assert fallen.args["settler"] == liar.address
        assert fallen.args["round"] == round_
        assert fallen.args["challenger"] != liar.address
        assert [e.args["node"] for e in world.job_events("Slashed")] == [liar.address]
        settled = [e for e in world.job_events("Settled") if e.args["round"] == round_]
        assert settled[-1].args["settler"] == fallen.args["challenger"]
        node = next(n for n in world.running.values() if n.machine is not liar)
        facts = node.parts.rows.round_facts(1, round_)
        before = node.parts.rows.lines_before(1, round_)
        right = Evidence.of(facts, before, validation=None, method="any")
        assert world.chain.distributor.settlements[1, round_].root == right.reward_tree.root
        assert world.is_settled(2)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_right_settlement_whose_evidence_nobody_has_is_paid_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines follow from the chain: everybody has them without the file, and claims."""

    async def story(world: World) -> None:
        def withhold(node: Running) -> None:
            settler = node.jobs[JOB]._settler

            async def settle(round_: int) -> None:
                await settler._panel_complete(round_)
                found = await settler.evidence(round_)
                cid = Cid.of(b"a file that nobody has", RAW)
                node.parts.ledger.settle(found.settlement(cid))

            monkeypatch.setattr(settler, "settle", settle)

        world.trap("publish_model", When.BEFORE, withhold)
        await world.submit(rounds=1)
        state = await world.until_over()
        await trio.sleep(60)
        assert not world.job_events("Overturned")
        for node in world.running.values():
            assert node.parts.rows.index_state().missing_evidence == 0
        claimed = await world.claim_all()
        assert claimed == state.spent_wei > 0

    play(story, tmp_path, monkeypatch)
