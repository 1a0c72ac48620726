"""What a node does for its operator, on twins: money moves last, proofs are whole, claims are paid once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from dfl_ledger.errors import ChainUnreachable, DflError, InsufficientFunds, SpecInvalid, UsageError
from dfl_ledger.records import Cid, Phase
from dfl_node import jobspec
from dfl_node.api.service import BUNDLE_FILES
from dfl_node.config import Role
from tests.node.modes import buffers, chains, pipelines
from tests.node.modes.machines import POLL_S
from tests.node.modes.world import BUDGET_WEI, SPEC, Running, When, World, play

TOML = SPEC.format(rounds=3, min_nodes=3, quorum=2, settle_s=60)
SUBMIT = {"sync": World.submit, "async": buffers.submit, "chained": chains.submit}


async def files(node: Running) -> set[Cid]:
    return {info.cid async for info in node.parts.store.ls()}


def wealth(world: World, name: str) -> int:
    return world.chain.token.balances[world.machines[name].address]


def test_a_job_is_published_before_its_money_moves_and_then_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    async def story(world: World) -> None:
        node = world.running["requester"]
        trap = world.trap("create_job", When.BEFORE, lambda n: seen.append(len(n.machine.store._files)))
        trap.round = 0  # no job yet
        before = wealth(world, "requester")
        answer = await node.operator.submit_job(TOML)
        assert seen == [3], "rows, model and spec were there"
        assert wealth(world, "requester") == before - 3 * BUDGET_WEI
        assert (answer["job_id"], answer["budget_wei"]) == (1, str(3 * BUDGET_WEI))
        data = await node.parts.store.get(Cid.parse(answer["spec_cid"]), max_bytes=1 << 16)
        spec = jobspec.decode(data)
        terms = spec.terms(Cid.parse(answer["spec_cid"]), Cid.parse(answer["model_cid"]))
        assert world.state().terms == terms
        assert str(spec.validation) == answer["validation_cid"]
        assert await files(node) == {terms.spec, terms.model, spec.validation}
        assert world.told == 1
        assert (await world.until_over()).phase is Phase.COMPLETED
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("lr = 0.1", "lr = -1"), SpecInvalid),
        (("round_budget = ", "round_budget = 1\nbudget = "), SpecInvalid),
        (('name = "mlp"', 'name = "oracle"'), SpecInvalid),
        (("max_update_bytes = 4096", "max_update_bytes = 64"), SpecInvalid),
        (('"1.000000000000000001"', '"334"'), InsufficientFunds),
        (('name = "story"', "name = "), UsageError),
    ],
    ids=["value", "unknown field", "unknown model", "model too large", "no funds", "no TOML"],
)
def test_a_job_that_cannot_be_is_refused_before_anything_is_published(
    change: tuple[str, str], error: type[DflError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        node, before = world.running["requester"], wealth(world, "requester")
        assert change[0] in TOML
        with pytest.raises(error):
            await node.operator.submit_job(TOML.replace(*change))
        assert await files(node) == set()
        assert wealth(world, "requester") == before
        assert not world.chain.jobs.jobs

    play(story, tmp_path, monkeypatch, trainers=0)


def test_a_node_without_the_role_submits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        node = world.running["requester"]
        node.roles = frozenset({Role.TRAIN})
        with pytest.raises(UsageError, match="does not submit jobs"):
            await node.operator.submit_job(TOML)
        assert await files(node) == set()

    play(story, tmp_path, monkeypatch, trainers=0)


def test_a_submission_without_a_chain_moves_no_money_and_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        node, before = world.running["requester"], wealth(world, "requester")
        node.machine.blocked.add("create_job")
        with pytest.raises(ChainUnreachable):
            await node.operator.submit_job(TOML)
        assert wealth(world, "requester") == before
        assert world.told == 0
        node.machine.blocked.clear()
        first = await files(node)
        await node.operator.submit_job(TOML)
        assert await files(node) == first, "the same files again"
        assert wealth(world, "requester") == before - 3 * BUDGET_WEI

    play(story, tmp_path, monkeypatch, trainers=0)


def test_a_download_holds_the_model_and_a_proof_of_every_contribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.machines["b"].forge = None
        await world.running["requester"].operator.submit_job(TOML)
        state = await world.until_over()
        bundle = (await world.running["a"].operator.download(1)).files
        assert tuple(bundle) == BUNDLE_FILES
        assert bundle["model.safetensors"] == world.blob(state.model)
        config = json.loads(bundle["config.json"])
        assert (config["architecture"], config["weights_cid"]) == ("mlp", str(state.model))
        proof = json.loads(bundle["ledger-proof.json"])
        listed = {(row["round"], row["node"], row["cid"]) for row in proof["contributions"]}
        chain = {
            (e.args["round"], e.args["node"], str(Cid.from_digest(bytes.fromhex(str(e.args["update"])[2:]))))
            for e in world.job_events("ContributionRevealed")
        }
        assert listed == chain
        assert len(proof["contributions"]) == 9
        rewards = sum(int(row["reward_wei"]) for row in proof["contributions"])
        assert rewards == sum(sum(world.earned_by_work(round_).values()) for round_ in (1, 2, 3))
        assert [s["round"] for s in proof["settlements"]] == [1, 2, 3]
        assert (proof["model_cid"], proof["rounds_completed"]) == (str(state.model), 3)
        card = bundle["README.md"].decode()
        assert all(world.machines[name].address in card for name in "abc")

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("call", ["download", "job"])
def test_a_job_that_does_not_exist_is_a_usage_error(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        with pytest.raises(UsageError, match="no job 9"):
            await getattr(world.running["requester"].operator, call)(9)

    play(story, tmp_path, monkeypatch, trainers=0)


def test_a_claim_pays_every_settled_round_in_one_transaction_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit()
        await world.until_over()
        operator, me = world.running["a"].operator, world.machines["a"].address
        first = await operator.claim(None)
        # again at once, before our own index has seen the payment
        assert await operator.claim(None) == {"claims": [], "total_wei": "0"}
        await trio.sleep(5)
        assert await operator.claim(1) == {"claims": [], "total_wei": "0"}
        (paid,) = world.job_events("Claimed")
        earned = {leaf.account: leaf.cumulative_wei for leaf in world.evidence(3).leaves}
        assert paid.args["amount"] == int(first["total_wei"]) == earned[me] == wealth(world, "a")
        assert [claim["round"] for claim in first["claims"]] == [3]

    play(story, tmp_path, monkeypatch)


def test_two_claims_at_once_pay_once_and_neither_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[int] = []

    async def story(world: World) -> None:
        await world.submit()
        await world.until_over()

        async def claim() -> None:
            totals.append(int((await world.running["a"].operator.claim(None))["total_wei"]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim)
            nursery.start_soon(claim)
        assert sorted(totals) == [0, wealth(world, "a")]
        assert len(world.job_events("Claimed")) == 1

    play(story, tmp_path, monkeypatch)


def test_a_claim_before_the_challenge_window_has_passed_pays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit(rounds=1)
        await world.until(lambda: bool(world.job_events("Settled")), "it is settled")
        await trio.sleep(2)
        operator = world.running["a"].operator
        assert (await operator.claim(None))["total_wei"] == "0"
        await trio.sleep(10)
        assert int((await operator.claim(None))["total_wei"]) > 0
        assert (await operator.claim(2))["total_wei"] == "0"

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("mode", ["sync", "async", "chained"])
def test_a_requester_that_does_not_train_sees_the_loss_fall(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await SUBMIT[mode](world)
        seen: list[float] = []
        while not world.state().phase.terminal:
            await trio.sleep(POLL_S)
            live = (await world.running["requester"].operator.job(1)).get("live", {})
            loss = live.get("validation_loss")
            if loss is not None and loss not in seen:
                seen.append(loss)
        assert len(seen) >= 2
        assert seen == sorted(seen, reverse=True)
        assert live["samples_per_s"] > 0
        await world.until_over()

    play(story, tmp_path, monkeypatch)


def test_a_requester_sees_the_loss_of_a_pipeline_by_the_word_of_its_feed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await pipelines.submit(world, rounds=2)
        await world.until_round(2, Phase.COMMIT)
        told = await world.running["requester"].operator.job(1)
        assert told["live"]["loss"] == pipelines.record(world, 1).losses[-1]
        assert told["live"]["validation_loss"] is None  # its model may be larger than one node's memory
        await world.until_over()

    play(story, tmp_path, monkeypatch, trainers=4)


def test_a_jobs_rounds_are_told_as_this_node_lived_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit()
        await world.until_round(2, Phase.COMMIT)
        await trio.sleep(1)
        told = await world.running["a"].operator.job(1)
        assert (told["live"]["phase"], told["live"]["round"], told["live"]["of"]) == ("commit", 2, 3)
        assert sorted(told["awaited"]) == sorted(world.machines[name].address for name in "abc")
        await world.until_over()
        told = await world.running["a"].operator.job(1)
        assert [row["round"] for row in told["local_rounds"]] == [1, 2, 3]
        for row in told["local_rounds"]:
            assert row["train_s"] == 2.0
            assert 2 <= row["closed_at"] - row["opened_at"] < 10

    play(story, tmp_path, monkeypatch)
