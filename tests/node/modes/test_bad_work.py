"""Work that is broken, missing or misdeclared is refused with the reason, and costs nobody else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path

import pytest
import trio

from dfl_ledger.errors import TimedOut
from dfl_ledger.memory import MemoryLedger
from dfl_ledger.records import Cid, JobId, Phase
from dfl_node.store.memory import Fault as StoreFault
from dfl_node.train.trainer import ModelUpdate
from tests.node.modes.world import COMPUTE_WEI, JUDGING_WEI, Machine, Running, When, World, play


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
            earned = world.earned_by_work(round_)
            assert earned.pop(crook.address) == 0
            assert earned.pop(world.machines["requester"].address, 0) == 0
            assert all(earned.values())
            assert COMPUTE_WEI - sum(earned.values()) < len(earned)
        assert 1 in world.contributions("b")
        await world.check_end()

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
        assert set(world.earned_by_work(1).values()) == {0}
        assert state.spent_wei == 3 * (JUDGING_WEI // 3)  # whoever judged has worked
        assert {entry.accepted for entry in world.evidence(1).entries} == {False}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_published_model_that_the_pieces_do_not_give_costs_its_publisher_a_bond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its publisher names another file and dies: the pieces are paid all the same, by what they are worth."""

    async def story(world: World) -> None:
        crooks: list[Machine] = []

        def publish_another_file(node: Running) -> None:
            crooks.append(node.machine)
            world.kill(node.machine.name)
            ledger = MemoryLedger(world.chain, node.machine.address)
            ledger.publish_model(JobId(1), 1, world.state().terms.model)

        world.trap("publish_model", When.BEFORE, publish_another_file)
        await world.submit(rounds=1)
        await world.until_over()
        (crook,) = crooks
        (denounced,) = world.job_events("ModelDenounced")
        assert denounced.args["publisher"] == crook.address
        bonds = [e for e in world.job_events("Slashed") if e.args["node"] != crook.address]
        assert not bonds, "nobody else loses anything"
        (settled,) = world.job_events("Settled")
        assert settled.args["settler"] != crook.address
        assert all(world.earned_by_work(1)[world.machines[name].address] > 0 for name in "abc")
        world.check_money()

    play(story, tmp_path, monkeypatch)


def test_an_update_that_arrives_after_aggregation_is_paid_and_nobody_is_blamed_for_its_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aggregator lacked it; those who judge the round have it, and see that its model is sound."""

    async def story(world: World) -> None:
        late = world.machines["b"]
        Bad.MISSING.spoil(late)
        late.blocked |= {"publish_model", "settle"}

        def arrive(_: Running) -> None:
            late.fault = late.store.fault = None

        world.trap("publish_model", When.AFTER, arrive)
        await world.submit(rounds=1)
        await world.until_over()
        assert all(entry.accepted for entry in world.evidence(1).entries)
        assert world.earned_by_work(1)[late.address] > 0
        assert not world.job_events("Slashed")
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_whoever_declares_fewer_samples_weighs_less_and_is_still_judged_by_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.machines["b"].forge = lambda update: replace(update, samples=1)
        await world.submit(rounds=1)
        await world.until_over()
        earned = world.earned_by_work(1)
        liar = earned.pop(world.machines["b"].address)
        assert 0 < liar < min(earned[world.machines[name].address] for name in "ac")
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
