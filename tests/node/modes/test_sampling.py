"""Client sampling: each round wants some of the members, drawn by its parent model, and takes no others."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dfl_ledger.memory import MemoryLedger
from dfl_ledger.records import Address, Cid, Contribution, JobId, Kind, Phase
from dfl_node import jobspec
from dfl_node.modes.data_parallel import DataParallel
from dfl_node.modes.mode import Context
from dfl_node.parts import Parts
from dfl_node.rounds import machine as rounds
from dfl_node.rounds.vocabulary import State
from tests.node.modes.world import SPEC, World, cid_of, play

SAMPLED = SPEC.replace("quorum = {quorum}", "quorum = {quorum}\nsample = {sample}")
COMMIT_S = 30


async def submit(world: World, *, rounds: int = 6, sample: int = 2, quorum: int = 1, nodes: int = 5) -> JobId:
    return await world.submit(
        rounds=rounds, min_nodes=nodes, quorum=quorum, settle_s=600, text=SAMPLED, sample=sample
    )


def drawn(world: World, round_: int, sample: int = 2) -> set[object]:
    """By the formula that the documentation gives, among all who joined with this round or before it."""
    (opened,) = (e for e in world.job_events("RoundOpened") if e.args["round"] == round_)
    joins = [e for e in world.job_events("NodeJoined") if int(str(e.args["round"])) <= round_]
    parent = cid_of(opened.args["parent"])

    def lot(member: str) -> bytes:
        return hashlib.sha256(f"{parent}/{round_}/{member}".encode()).digest()

    return set(sorted((str(e.args["node"]) for e in joins), key=lot)[:sample])


def contributors(world: World, round_: int) -> set[object]:
    return {e.args["node"] for e in world.job_events("ContributionRevealed") if e.args["round"] == round_}


def test_only_the_drawn_members_train_and_nobody_has_to_join_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await submit(world)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 6)
        for round_ in range(1, 7):
            assert contributors(world, round_) == drawn(world, round_)
        for name in "abcde":
            assert list(world.machines[name].trained) == world.contributions(name)
        assert len(world.job_events("NodeJoined")) == 5
        assert len({frozenset(drawn(world, round_)) for round_ in range(1, 7)}) > 2
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=5)


def test_a_late_joiner_is_among_those_who_are_drawn_from_the_next_round_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await submit(world, rounds=8, nodes=3)
        await world.until_round(2, Phase.COMMIT)
        await world.start("late")
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 8)
        for round_ in range(1, 9):
            assert contributors(world, round_) == drawn(world, round_)
        assert world.contributions("late")
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_member_that_contributes_without_being_drawn_is_refused_in_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are those of an honest update; that it commits first only costs a drawn member its place."""

    async def story(world: World) -> None:
        crook = world.machine("crook")
        ledger = MemoryLedger(world.chain, crook.address)
        await submit(world, nodes=4)
        ledger.join(JobId(1))
        cheated = 0
        for round_ in range(1, 7):
            await world.until_round(round_, Phase.COMMIT)
            if crook.address in drawn(world, round_):
                continue
            cheated = round_
            break
        work = Contribution(
            JobId(1), cheated, crook.address, Kind.UPDATE, Cid.of(b"delta", 0x55), world.state().model, 8
        )
        ledger.commit(work, bytes(32))
        await world.until_round(cheated, Phase.REVEAL)
        ledger.reveal(work, bytes(32))
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 6)
        evidence = world.evidence(cheated)
        verdicts = {entry.node: (entry.accepted, entry.why) for entry in evidence.entries}
        assert verdicts.pop(crook.address) == (False, "its node was not drawn for this round")
        assert [accepted for accepted, _ in verdicts.values()] == [True]
        assert world.earned_by_work(cheated)[crook.address] == 0
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_drawn_member_that_is_dead_costs_its_round_the_window_and_no_other_round_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await submit(world, rounds=10, nodes=4)
        await world.until_round(2, Phase.COMMIT)
        world.kill("d")
        dead = world.machines["d"].address
        await world.until_round(8, Phase.COMMIT)
        await world.start("d")
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 10)
        assert not world.job_events("RoundVoided")
        opened = [world.mined_at(event) for event in world.job_events("RoundOpened")]
        waited = 0
        for round_ in range(2, 8):
            took_s = opened[round_] - opened[round_ - 1]
            if dead in drawn(world, round_):
                waited += 1
                grace_s = rounds.ADVANCE_GRACE_S + 3 * rounds.ADVANCE_SPREAD_S
                assert COMMIT_S <= took_s <= COMMIT_S + grace_s + 5
            else:
                assert took_s <= 8
        assert waited
        assert [r for r in world.contributions("d") if r >= 8], "it is still a member"
        assert len(world.job_events("NodeJoined")) == 4
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=4)


def test_nobody_counts_as_drawn_while_the_ledger_lacks_members_of_the_round() -> None:
    """Among those it knows another may be drawn than among all."""
    members = [Address(f"0x{digit * 40}") for digit in "1234"]
    known = list[Address]()
    rows = SimpleNamespace(members=lambda job, round_: tuple(known))
    spec = jobspec.parse(SAMPLED.format(rounds=3, min_nodes=4, quorum=1, settle_s=60, sample=1))
    parts = cast(Parts, SimpleNamespace(rows=rows))
    mode = DataParallel(Context(JobId(1), spec, parts, lambda: 0.0, lambda: State(members[0], trains=True)))
    job: Any = SimpleNamespace(round=1, model=Cid.of(b"model", 0x70), expected=4)
    for member in members:
        assert not any(mode.drawn(job, node) for node in members)
        known.append(member)
    assert sum(mode.drawn(job, node) for node in members) == 1
