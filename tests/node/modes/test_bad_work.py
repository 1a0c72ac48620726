"""Work that is broken, missing or misdeclared is refused with the reason, and costs nobody else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path

import pytest
import trio

from dfl_ledger.errors import TimedOut, VerificationFailed
from dfl_ledger.memory import MemoryLedger
from dfl_ledger.records import Cid, JobId, Phase
from dfl_node.specrules import model_config
from dfl_node.store.memory import Fault as StoreFault
from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.trainer import ModelUpdate, WeightedUpdate
from tests.node.modes.world import BUDGET_WEI, Machine, Running, When, World, play


def forging(change: Callable[[ModelUpdate], ModelUpdate]) -> Callable[[Machine], None]:
    return lambda machine: setattr(machine, "forge", change)


def serving(fault: StoreFault) -> Callable[[Machine], None]:
    def set_fault(machine: Machine) -> None:
        machine.fault = machine.store.fault = fault

    return set_fault


class Bad(Enum):
    """What is wrong with one node's work, and the word that the evidence has for it."""

    NAN = (forging(lambda u: replace(u, delta=u.delta[:-4] + struct.pack("<f", float("nan")))), "NaN")
    INF = (forging(lambda u: replace(u, delta=u.delta[:-4] + struct.pack("<f", float("inf")))), "Inf")
    OVERSIZED = (forging(lambda u: replace(u, delta=u.delta + bytes(4096))), "bytes")
    PICKLE = (forging(lambda u: replace(u, delta=b"\x80\x04\x95" + u.delta)), "pickle")
    EMPTY = (forging(lambda u: replace(u, delta=b"")), "empty")
    WRONG_BYTES = (serving(StoreFault.CORRUPT), "wrong bytes")
    MISSING = (serving(StoreFault.MISSING), "nobody delivered")
    TOO_MANY_SAMPLES = (forging(lambda u: replace(u, samples=u.samples + 1)), "more than the job's steps")
    HUGE_SAMPLES = (forging(lambda u: replace(u, samples=2**63 - 1)), "more than the job's steps")
    NO_SAMPLES = (forging(lambda u: replace(u, samples=0)), "0 samples")

    def __init__(self, spoil: Callable[[Machine], None], why: str) -> None:
        self.spoil, self.why = spoil, why


@pytest.mark.parametrize("bad", Bad, ids=lambda bad: bad.name)
def test_a_bad_update_is_refused_with_its_reason_and_only_the_others_are_paid(
    bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        crook = world.machines["b"]
        bad.spoil(crook)
        # An aggregator alone holds what it does not serve; only the others' word counts here.
        crook.blocked |= {"publish_model", "settle"}
        await world.submit()
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        seen = set[Cid]()
        for round_ in world.contributions("b"):
            evidence = world.evidence(round_)
            for entry in evidence.entries:
                assert entry.accepted is (entry.node != crook.address)
                why = "is a piece of round 1 again" if entry.cid in seen else bad.why  # an empty file is
                assert why in entry.why if not entry.accepted else not entry.why
            seen |= {entry.cid for entry in evidence.entries}
            rewards = {leaf.account: leaf.reward_wei for leaf in evidence.leaves}
            assert rewards.pop(crook.address) == 0
            assert all(rewards.values())
            assert BUDGET_WEI - sum(rewards.values()) < len(rewards)
        assert 1 in world.contributions("b")
        await world.check_end()
        assert world.chain.token.balances[crook.address] == 0

    play(story, tmp_path, monkeypatch)


def test_a_round_in_which_every_update_is_bad_keeps_its_model_and_its_money(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        for name in "abc":
            Bad.NAN.spoil(world.machines[name])
        await world.submit(rounds=1)
        state = await world.until_over()
        assert state.model == state.terms.model
        assert (state.spent_wei, state.refunded_wei) == (0, BUDGET_WEI)
        assert {entry.accepted for entry in world.evidence(1).entries} == {False}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_published_model_that_cannot_be_recomputed_is_settled_by_nobody_honest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its publisher names another file; the others look once, say what is wrong, and do not try for ever."""
    tries: list[str] = []

    async def story(world: World) -> None:
        def publish_another_file(node: Running) -> None:
            world.kill(node.machine.name)
            ledger = MemoryLedger(world.chain, node.machine.address)
            ledger.publish_model(JobId(1), 1, world.state().terms.model)

        world.trap("publish_model", When.BEFORE, publish_another_file)
        await world.submit(rounds=1)
        await world.until(lambda: bool(world.job_events("ModelPublished")), "a model is published")
        for node in world.running.values():
            settler = node.jobs[JobId(1)]._settler
            keep = settler.settle

            async def settle(round_: int, keep=keep, name=node.machine.name) -> None:  # type: ignore[no-untyped-def]
                tries.append(name)
                with pytest.raises(VerificationFailed, match="not what its updates give"):
                    await keep(round_)
                await keep(round_)

            monkeypatch.setattr(settler, "settle", settle)
        state = await world.until_over()
        assert not world.job_events("Settled")
        assert state.refunded_wei == BUDGET_WEI
        assert sorted(tries) == sorted(set(tries)), "once each"
        assert len(tries) == 2
        world.check_money()

    play(story, tmp_path, monkeypatch)


def test_an_update_that_arrives_after_aggregation_does_not_change_the_judgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aggregator lacked it and was killed; restarted, it settles the model that it made."""

    async def story(world: World) -> None:
        crook = world.machines["b"]
        Bad.MISSING.spoil(crook)
        crook.blocked |= {"publish_model", "settle"}
        killed: list[str] = []

        def kill(node: Running) -> None:
            killed.append(node.machine.name)
            world.kill(node.machine.name)
            crook.fault = crook.store.fault = None

        world.trap("publish_model", When.AFTER, kill)
        await world.submit(rounds=1)
        await world.until(lambda: bool(killed), "the aggregator is killed")
        await world.start(killed[0])
        await world.until_over()
        refused = [entry for entry in world.evidence(1).entries if not entry.accepted]
        assert [(entry.node, entry.score) for entry in refused] == [(crook.address, 0)]
        # what it was not made of does not move the worth of what it was made of
        scored = [entry for entry in world.evidence(1).entries if entry.accepted]
        updates = [WeightedUpdate(world.blob(entry.cid) or b"", entry.samples) for entry in scored]
        worths = await MemoryTrainer().score(
            model_config(world.spec()),
            world.blob(world.state().terms.model) or b"",
            updates,
            world.blob(world.spec().validation) or b"",
            method="shapley",
            max_update_bytes=4096,
        )
        assert tuple(entry.score for entry in scored) == worths.worths
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_whoever_declares_fewer_samples_weighs_less_and_is_still_judged_by_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.machines["b"].forge = lambda update: replace(update, samples=1)
        await world.submit(rounds=1)
        await world.until_over()
        rewards = {leaf.account: leaf.reward_wei for leaf in world.evidence(1).leaves}
        liar = rewards.pop(world.machines["b"].address)
        assert 0 < liar < min(rewards.values())
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_settlement_waits_for_rows_that_lag_behind_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaves are cumulative: made without those of the round before, they would take its rewards away."""

    async def story(world: World) -> None:
        await world.submit(rounds=2)
        await world.until(lambda: len(world.job_events("Settled")) == 1, "round 1 is settled")
        for machine in world.machines.values():
            machine.blocked.add("settle")
        await world.until_round(2, Phase.AGGREGATE)
        await trio.sleep(1)
        node = world.running["a"]
        settler = node.jobs[JobId(1)]._settler
        with monkeypatch.context() as lagging:
            lagging.setattr(node.parts.rows, "settled_before", lambda job, round_: None)
            with pytest.raises(TimedOut, match="lacks a settlement"):
                await settler.evidence(2)
        first = {leaf.account: leaf.cumulative_wei for leaf in world.evidence(1).leaves}
        for leaf in (await settler.evidence(2)).leaves:
            assert leaf.cumulative_wei == leaf.reward_wei + first[leaf.account]
        for machine in world.machines.values():
            machine.blocked.clear()
        await world.until_over()
        await world.check_end()

    play(story, tmp_path, monkeypatch)
