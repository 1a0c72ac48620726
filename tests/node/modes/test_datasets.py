"""Data sets that nodes declare: what they are found to be worth, who is paid for them, and who trains on."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.memory import MemoryLedger
from dfl_ledger.records import AssetKind, AssetUse, Cid, JobId, Kind, Phase
from dfl_ledger.rewards import Pots
from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.trainer import ModelUpdate
from dfl_node.verifying import Check, open_verifier
from tests.node.modes import buffers, chains, pipelines
from tests.node.modes.terms import SPEC
from tests.node.modes.world import When, World, play

JOB = JobId(1)
PAYS_DATA = "shares = {{ data = {data}, evaluators = 5.0 }}\n"
DATA_BPS = 2_000


def mint(world: World, owner: str, user: str, *, price_bps: int = 0, name: str = "") -> int:
    """A data set of one machine's wallet that another may use."""
    ledger = MemoryLedger(world.chain, world.machines[owner].address)
    manifest = Cid.of(f"manifest {len(world.chain.assets.assets)} {name}".encode())
    asset = ledger.mint_asset(AssetKind.DATASET, manifest, b"l" * 32, AssetUse.TRAIN, price_bps)
    if owner != user:
        ledger.allow_asset(world.machines[user].address, asset)
    return asset


def declares(world: World, name: str, *assets: int) -> None:
    """As if the node had been started with `--dataset`."""
    world.running[name].parts.datasets["digits"] = assets


async def submit(world: World, text: str = SPEC, *, data: float = 20.0, **more: Any) -> JobId:
    defaults = {"rounds": 2, "min_nodes": 3, "quorum": 2, "settle_s": 60}
    return await world.submit(text=text + PAYS_DATA, data=data, **(defaults | more))


def declared(world: World) -> list[tuple[str, int]]:
    names = {machine.address: name for name, machine in world.machines.items()}
    return [(names[e.args["node"]], int(str(e.args["asset"]))) for e in world.job_events("DatasetDeclared")]


def worths(world: World, round_: int) -> dict[int, int]:
    return {dataset.asset: dataset.worth for dataset in world.evidence(round_).datasets}


def paid(world: World, round_: int) -> dict[int, int]:
    """What each data set got in a round, in wei."""
    return {leaf.asset: leaf.reward_wei for leaf in world.evidence(round_).leaves if leaf.asset}


async def verify(world: World, round_: int) -> None:
    node, said = world.running["requester"], list[Check]()
    rows, files = node.parts.rows, node.machine.store
    verifier = await open_verifier(JOB, rows, files, MemoryTrainer(), said.append)
    await verifier.verify_round(round_)
    assert said[-1].what == "payouts"


# -- what it is worth --------------------------------------------------------------------------------------
def polluted(update: ModelUpdate, change: Callable[[float], float]) -> ModelUpdate:
    """What wrong labels make of it."""
    numbers = struct.unpack("<36f", update.delta[-144:])
    return replace(update, delta=update.delta[:-144] + struct.pack("<36f", *map(change, numbers)))


def test_a_data_set_is_paid_for_what_it_taught_and_not_for_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a trains on sound rows, b on rows with wrong labels and says that there are many; c declares none."""

    async def story(world: World) -> None:
        sound = mint(world, "requester", "a", name="of 7 rows")
        wrong = mint(world, "b", "b", name="of a thousand million rows")
        declares(world, "a", sound)
        declares(world, "b", wrong)
        world.machines["b"].forge = lambda update: polluted(update, lambda number: -number)
        await submit(world)
        await world.until_over()
        pots = Pots.of(world.evidence(1).shares)
        assert pots.data_wei == world.state().terms.round_budget_wei * DATA_BPS // 10_000
        for round_ in (1, 2):
            found = worths(world, round_)
            assert set(found) == {sound, wrong}
            assert found[sound] > 0 > found[wrong]
            assert paid(world, round_) == {sound: pots.data_wei, wrong: 0}
            # one update a data set: the worth of an update, by the same measurements
            entries = {entry.node: entry.score for entry in world.evidence(round_).entries}
            assert abs(found[sound] - entries[world.machines["a"].address]) <= 1
            await verify(world, round_)
        assert not world.job_events("Slashed")
        await world.check_end()  # whoever owns what earned has claimed: nothing is left

    play(story, tmp_path, monkeypatch)


def test_the_owner_claims_although_it_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        asset = mint(world, "requester", "a")
        declares(world, "a", asset)
        await submit(world, rounds=1)
        await world.until_over()
        node, due = world.running["requester"], paid(world, 1)[asset]
        assert due == Pots.of(world.evidence(1).shares).data_wei
        before = node.parts.ledger.balance_wei(node.parts.ledger.address)
        (claimed,) = [
            c for c in node.parts.rows.claimable(node.parts.ledger.address, 1 << 40) if c.leaf.asset
        ]
        assert (claimed.leaf.asset, claimed.amount_wei) == (asset, due)
        told = await node.operator.claim(None)
        assert [(c["asset"], c["amount_wei"]) for c in told["claims"] if c["asset"]] == [
            (str(asset), str(due))
        ]
        after = node.parts.ledger.balance_wei(node.parts.ledger.address)
        assert after - before == int(told["total_wei"]) >= due
        assert node.parts.ledger.claimed_wei(JOB, node.parts.ledger.address, asset) == due

    play(story, tmp_path, monkeypatch)


def test_a_data_set_of_two_nodes_earns_for_both_and_two_of_one_node_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        common, one, other = mint(world, "a", "b"), mint(world, "c", "c"), mint(world, "c", "c")
        declares(world, "a", common)
        declares(world, "b", common)
        declares(world, "c", one, other)
        await submit(world, rounds=1)
        await world.until_over()
        found, scores = worths(world, 1), {e.node: e.score for e in world.evidence(1).entries}
        assert set(found) == {common, one, other}
        assert abs(found[one] - found[other]) <= 1
        # all worths add up to what the round gained, by updates as by data sets
        assert abs(sum(found.values()) - sum(scores.values())) <= 3
        # of three data sets that are all needed, or not, as their updates: the game of two players
        assert found[common] > found[one] > 0
        await verify(world, 1)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "async": (buffers.ASYNC, {"rounds": 3, "size": 2, "max_lag": 8}),
    "chained": (chains.CHAINED, {"lease_s": chains.LEASE_S, "personal": "[]"}),
    "pipeline": (
        pipelines.PIPELINE,
        {"min_nodes": 4, "stages": 2, "steps": 12, "snapshot_steps": 4, "commit_s": 90},
    ),
}


@pytest.mark.parametrize("mode", TEXTS)
def test_every_mode_pays_for_the_rows_that_its_pieces_were_made_of(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        names = "abcd" if mode == "pipeline" else "abc"
        assets = {name: mint(world, name, name) for name in names}
        for name, asset in assets.items():
            declares(world, name, asset)
        text, more = TEXTS[mode]
        await submit(world, text, **more)
        await world.until_over()
        users = {asset: world.machines[name].address for name, asset in assets.items()}
        settled = [int(str(e.args["round"])) for e in world.job_events("Settled")]
        assert settled
        earned = dict.fromkeys(users, 0)
        for round_ in settled:
            found, entries = worths(world, round_), {e.node: e for e in world.evidence(round_).entries}
            for asset, worth in found.items():
                entry = entries.get(users[asset])
                used = entry is not None and entry.accepted
                if mode == "pipeline":  # the rows of whoever fed it, and nobody else's
                    fed = pipelines.pieces(world, round_, Kind.FEED)
                    assert (worth > 0) == (used and users[asset] in {e.args["node"] for e in fed})
                elif mode == "chained":
                    assert worth == (entry.score if entry is not None and entry.accepted else 0)
                assert used or not worth
                earned[asset] += paid(world, round_)[asset]
            await verify(world, round_)
        assert sum(earned.values()) > 0
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=4 if mode == "pipeline" else 3)


def test_rows_that_made_a_pipelines_model_worse_earn_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(array: Any) -> Any:
        return replace(
            array, data=b"".join(struct.pack("<f", -x) for (x,) in struct.iter_unpack("<f", array.data))
        )

    async def story(world: World) -> None:
        for name in "abcd":
            declares(world, name, mint(world, name, name))
            world.machines[name].forge_array = worse
        text, more = TEXTS["pipeline"]
        await submit(world, text, **more)
        await world.until_over()
        for event in world.job_events("Settled"):
            round_ = int(str(event.args["round"]))
            assert min(worths(world, round_).values()) < 0 == max(worths(world, round_).values())
            assert not any(paid(world, round_).values())
            await verify(world, round_)
        assert world.job_events("Settled")

    play(story, tmp_path, monkeypatch, trainers=4)


# -- joining ------------------------------------------------------------------------------------------------
def test_a_job_that_pays_no_data_is_joined_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        declares(world, "a", mint(world, "a", "a"))
        await world.submit(rounds=1)
        await world.until_over()
        assert not declared(world)
        assert not world.running["a"].jobs[JOB].left_out
        assert world.contributions("a") == [1]
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_data_set_that_the_job_cannot_have_keeps_nobody_from_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        dear = mint(world, "a", "a", price_bps=DATA_BPS + 1)
        fair, revoked = mint(world, "a", "a", price_bps=DATA_BPS), mint(world, "b", "b")
        lent = mint(world, "c", "c")
        declares(world, "a", dear, fair)
        declares(world, "b", revoked)
        declares(world, "c", lent)
        MemoryLedger(world.chain, world.machines["b"].address).revoke_asset(revoked)
        MemoryLedger(world.chain, world.machines["c"].address).transfer_asset(
            world.machines["a"].address, lent
        )
        await submit(world, rounds=1)
        await world.until_over()
        assert declared(world) == [("a", fair)]
        parts = {name: world.running[name].jobs[JOB] for name in "abc"}
        assert set(parts["a"].left_out) == {dear}
        assert "costs 20.01 %" in parts["a"].left_out[dear]
        assert "is revoked" in parts["b"].left_out[revoked]
        assert "may not use data set" in parts["c"].left_out[lent]
        assert parts["b"].activity()["left_out"] == {str(revoked): parts["b"].left_out[revoked]}
        (told, other) = world.running["a"].operator.dataset_list()
        assert told == {
            "asset": str(dear),
            "app": "digits",
            "jobs": [],
            "left_out": {"1": parts["a"].left_out[dear]},
        }
        assert other == {"asset": str(fair), "app": "digits", "jobs": [1], "left_out": {}}
        for name in "abc":
            assert world.contributions(name) == [1]
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_a_data_set_revoked_between_the_look_and_the_call_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        asset = mint(world, "requester", "a")
        declares(world, "a", asset)
        owner = MemoryLedger(world.chain, world.machines["requester"].address)
        world.trap("join", When.BEFORE, lambda node: owner.revoke_asset(asset), of="a")
        await submit(world, rounds=1)
        await world.until_over()
        assert not declared(world)
        assert "AssetUnusable" in world.running["a"].jobs[JOB].left_out[asset]
        assert world.contributions("a") == [1]
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_who_was_away_joins_again_and_its_data_set_goes_on_earning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        asset = mint(world, "requester", "b")
        declares(world, "b", asset)
        await submit(world, rounds=6)
        await world.until_round(2, Phase.COMMIT)
        world.kill("b")
        await world.until_round(3, Phase.COMMIT)
        await world.start("b")
        declares(world, "b", asset)
        await world.until_over()
        joins = [e for e in world.job_events("NodeJoined") if e.args["node"] == world.machines["b"].address]
        assert len(joins) > 1
        assert declared(world) == [("b", asset)]
        assert not world.running["b"].jobs[JOB].left_out
        later = [round_ for round_ in world.contributions("b") if round_ > 3]
        assert later
        for round_ in range(1, 7):
            used = world.is_settled(round_) and round_ in world.contributions("b")
            assert (worths(world, round_)[asset] != 0) == used
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_what_is_declared_after_a_round_was_drawn_is_not_measured_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        early = mint(world, "a", "a")
        declares(world, "a", early)
        await submit(world, rounds=4)
        await world.until(lambda: world.is_settled(1), "the first round is settled")
        await world.start("d")
        late = mint(world, "d", "d")
        MemoryLedger(world.chain, world.machines["a"].address).allow_asset(world.machines["d"].address, early)
        declares(world, "d", late, early)
        await world.until_over()
        assert declared(world) == [("a", early), ("d", late), ("d", early)]
        a, d = world.machines["a"].address, world.machines["d"].address
        rows = world.running["requester"].parts.rows
        assert rows.uses(JOB, 1) == {a: (early,)}
        assert rows.uses(JOB, 4) == {a: (early,), d: (late, early)}
        assert rows.uses(JOB, 9) is None
        assert set(worths(world, 1)) == {early}
        assert set(worths(world, 4)) == {early, late}
        for round_ in (1, 4):
            await verify(world, round_)
        await world.check_end()

    play(story, tmp_path, monkeypatch)
