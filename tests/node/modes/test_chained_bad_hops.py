"""Hops that are broken, missing, worse or dishonest: no parents, no pay, and no harm to the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dfl_ledger.records import Cid, JobId, Phase
from dfl_node.store.memory import Fault as StoreFault
from tests.node.modes import chains
from tests.node.modes.chains import hops, loss, refusals, rewards
from tests.node.modes.world import COMPUTE_WEI, Machine, World, play


def forging(change: Callable[[bytes], bytes]) -> Callable[[Machine], None]:
    return lambda machine: setattr(machine, "forge_model", change)


def withholding(machine: Machine) -> None:
    machine.fault = machine.store.fault = StoreFault.MISSING


def corrupting(machine: Machine) -> None:
    machine.fault = machine.store.fault = StoreFault.CORRUPT


BAD = {
    "worse": (forging(chains.worse), "made the model worse: validation loss"),
    "NaN": (forging(chains.with_nan), "NaN"),
    "no model": (forging(chains.not_a_model), "header"),
    "oversized": (forging(lambda model: model + bytes(4096)), "bytes"),
    "empty": (forging(lambda model: b""), "empty"),
    "withheld": (withholding, "nobody delivered"),
    "corrupted": (corrupting, "wrong bytes"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_hop_is_no_parent_and_earns_nothing(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, why = BAD[bad]

    async def story(world: World) -> None:
        crook = world.machines["b"]
        spoil(crook)
        crook.blocked |= {"publish_model", "settle"}  # its word is another story
        await chains.submit(world)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        for round_ in world.contributions("b"):
            (forged,) = (hop.model for hop in hops(world, round_) if hop.name == "b")
            assert all(hop.parent != forged for hop in hops(world)), "nobody went on from it"
            (found,) = refusals(world, round_).items()
            assert found[0] == "b"
            assert why in found[1]
            paid = rewards(world, round_)
            assert paid.pop("b") == 0
            assert all(paid.values())
            assert COMPUTE_WEI - sum(paid.values()) < len(paid)
        assert 1 in world.contributions("b")
        assert state.model in {hop.model for hop in hops(world) if hop.name != "b"}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_whoever_passes_the_model_on_as_it_was_earns_nothing_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        lazy = world.machines["b"]

        def pass_on(model: bytes) -> bytes:
            lease_model = world.state().candidate or world.state().model
            return world.blob(lease_model) or b""

        lazy.forge_model = pass_on
        await chains.submit(world)
        await world.until_over()
        for round_ in (1, 2, 3):
            paid = rewards(world, round_)
            assert paid.pop("b") == 0
            assert max(paid.values()) < 1.5 * min(paid.values())
            assert refusals(world, round_) == {"b": "passes its parent on as it was"}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_whoever_rejects_a_good_hop_earns_nothing_and_its_victim_is_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        node = world.running["b"]
        honest = node.parts.ledger.hop

        def reject(job: JobId, round_: int, accept: bool, model: Cid, samples: int) -> object:
            return honest(job, round_, False, model, samples)

        monkeypatch.setattr(node.parts.ledger, "hop", reject, raising=False)
        node.machine.blocked |= {"publish_model", "settle"}
        await chains.submit(world)
        await world.until_over()
        rejected = 0
        for round_ in (1, 2, 3):
            lap = hops(world, round_)
            (place,) = (hop.index for hop in lap if hop.name == "b")
            if place == 0:
                continue  # there was nothing to reject
            rejected += 1
            assert lap[place].parent == lap[place - 1].parent
            paid = rewards(world, round_)
            assert paid.pop("b") == 0
            assert all(paid.values())
            assert "although the hop before improved it" in refusals(world, round_)["b"]
        assert rejected
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("change", [chains.worse, chains.with_nan], ids=["worse", "NaN"])
def test_a_crook_and_an_accomplice_earn_nothing_and_the_others_repair_the_model(
    change: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is not first accepts whatever it finds, and makes it bad in turn."""

    async def story(world: World) -> None:
        crooks = {"b", "c"}
        for name in crooks:
            node = world.running[name]
            node.machine.forge_model = change
            node.machine.blocked |= {"publish_model", "settle"}
            honest = node.parts.ledger.hop

            def accept(job: JobId, round_: int, _: bool, *rest: object, honest: object = honest) -> object:
                return honest(job, round_, True, *rest)  # type: ignore[operator]

            monkeypatch.setattr(node.parts.ledger, "hop", accept, raising=False)
        await chains.submit(world, rounds=4, min_nodes=4, settle_s=600)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 4)
        settled = [int(str(e.args["round"])) for e in world.job_events("Settled")]
        assert len(settled) == 4
        for round_ in settled:
            paid = rewards(world, round_)
            assert paid["b"] == paid["c"] == 0
            assert paid["a"] + paid["d"] > 0
            assert await loss(world, world.evidence(round_).model) < 10
        world.check_money()

    play(story, tmp_path, monkeypatch, trainers=4)


def test_hops_that_claim_too_much_or_no_work_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        claimed = {"b": 2**40, "c": 0}
        for name, samples in claimed.items():
            ledger = world.running[name].parts.ledger
            honest = ledger.hop

            def lie(*args: object, honest: object = honest, samples: int = samples) -> object:
                return honest(*args[:-1], samples)  # type: ignore[operator]

            monkeypatch.setattr(ledger, "hop", lie, raising=False)
        await chains.submit(world)
        await world.until_over()
        for round_ in (1, 2, 3):
            assert set(refusals(world, round_)) == {"b", "c"}
            assert all("samples" in why for why in refusals(world, round_).values())
        await world.check_end()

    play(story, tmp_path, monkeypatch)
