"""Validation rows that nobody knows before a round is committed: who opens them, and what if nobody does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from eth_hash.auto import keccak

from dfl_ledger.errors import (
    BlobNotFound,
    ChainUnreachable,
    CidMismatch,
    SpecInvalid,
    UsageError,
    VerificationFailed,
)
from dfl_ledger.explain import Explainer
from dfl_ledger.memory import MemoryLedger
from dfl_ledger.records import Cid, JobId, Phase
from dfl_ledger.rows_rewards import UnsealedRow
from dfl_node import jobspec
from dfl_node.journal import Journal
from dfl_node.modes import sealed
from dfl_node.modes.sealed import ShardList
from dfl_node.specrules import model_config
from dfl_node.train.memory import MemoryTrainer
from dfl_node.value import sealing
from tests.node.modes import buffers
from tests.node.modes.test_verifying import ALL, verify
from tests.node.modes.world import SCORE_S, SPEC, STAKE_WEI, Running, When, World, play

JOB = JobId(1)
DUE_S = SCORE_S * 40 // 100
TOML = SPEC + "sealed = true\n"


async def submit(world: World, *, text: str = TOML, rounds: int = 3, **more: Any) -> None:
    toml = text.format(rounds=rounds, min_nodes=3, quorum=2, settle_s=60, **more)
    await world.running["requester"].operator.submit_job(toml)


def blocks(world: World) -> list[bytes]:
    """All that is on any disk; files as small as these are in one block."""
    return [block for store in world.swarm.stores.values() for block in store._blocks.values()]


def keys(world: World) -> list[tuple[int, bytes]]:
    """What was unsealed, in order."""
    return [
        (int(str(e.args["position"])), bytes.fromhex(str(e.args["key"])[2:]))
        for e in world.job_events("ShardUnsealed")
    ]


def watch_scoring(patch: pytest.MonkeyPatch) -> list[bytes]:
    """The validation files that updates were scored on."""
    seen: list[bytes] = []
    honest = MemoryTrainer.score

    async def score(
        self: MemoryTrainer, model: Any, parent: bytes, updates: Any, validation: bytes, **how: Any
    ) -> Any:
        seen.append(validation)
        return await honest(self, model, parent, updates, validation, **how)

    patch.setattr(MemoryTrainer, "score", score)
    return seen


def watch_shards(patch: pytest.MonkeyPatch) -> list[bytes]:
    """What the requester cut its rows into."""
    cut: list[bytes] = []
    honest = MemoryTrainer.shards

    async def shards(self: MemoryTrainer, *how: Any) -> tuple[bytes, ...]:
        cut[:] = await honest(self, *how)
        return tuple(cut)

    patch.setattr(MemoryTrainer, "shards", shards)
    return cut


def check_shared_alike(world: World, round_: int) -> None:
    """Everybody accepted, nobody measured: each gets the same, and no bond is lost."""
    entries = world.evidence(round_).entries
    assert [(entry.accepted, entry.score) for entry in entries] == [(True, 0)] * len(entries)
    earned = world.earned_by_work(round_)
    assert len({earned[entry.node] for entry in entries}) == 1
    assert earned[entries[0].node] > 0


def check_nobody_lost(world: World) -> None:
    assert not world.job_events("Slashed")
    for machine in world.machines.values():
        assert world.chain.registry.stake_of(machine.address) == STAKE_WEI


def notes(world: World, round_: int) -> str:
    """What `ledger explain` adds to a round's first contribution."""
    rows = world.running["a"].parts.rows
    return " ".join(Explainer(rows, world.now()).contribution(rows.revealed(1, round_)[0]).money.notes)


# -- as it should be -----------------------------------------------------------------------------------
def test_each_round_is_scored_on_a_shard_of_its_own_that_was_sealed_until_it_had_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        seen, cut = watch_scoring(monkeypatch), watch_shards(monkeypatch)
        await submit(world)
        requester = world.running["requester"].parts
        rows = await requester.trainer.validation_rows("digits")
        for plain in (rows, *cut):  # nobody could have them from this node
            assert not any(plain in block for block in blocks(world))
        assert any(b"seal_anchor" in block for block in blocks(world)), "this is where it would be"
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert [position for position, _ in keys(world)] == [0, 1, 2]
        published = [world.mined_at(e) for e in world.job_events("ModelPublished")]
        opened = [world.mined_at(e) for e in world.job_events("ShardUnsealed")]
        assert all(0 <= late - at <= 2 for at, late in zip(published, opened, strict=True))
        scored = dict.fromkeys(seen)
        assert list(scored) == cut
        assert len(cut) == 3
        check_nobody_lost(world)
        for round_ in (1, 2, 3):
            assert any(entry.score > 0 for entry in world.evidence(round_).entries)
            assert [check.what for check in await verify(world, round_)] == ALL
            assert not notes(world, round_)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


@pytest.mark.parametrize("seed", range(6))
def test_an_asynchronous_job_is_scored_on_sealed_rows(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        seen = watch_scoring(monkeypatch)
        text = f"{buffers.ASYNC}score_s = {SCORE_S}\nsealed = true\n"
        await submit(world, text=text, rounds=4, size=2, max_lag=8)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 4)
        assert [position for position, _ in keys(world)] == [0, 1, 2, 3]
        assert len(dict.fromkeys(seen)) == 4
        check_nobody_lost(world)
        for round_ in {int(str(e.args["round"])) for e in world.job_events("Settled")}:
            assert [check.what for check in await verify(world, round_)] == ALL

    play(story, tmp_path, monkeypatch, seed=seed)


def test_a_void_round_uses_up_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        blocked = [world.machines[name] for name in "abc"]

        def stop(_: Running) -> None:
            for machine in blocked:
                machine.blocked.add("publish_model")

        world.trap("publish_model", When.BEFORE, stop)
        await submit(world, rounds=2)
        await world.until(lambda: bool(world.job_events("RoundVoided")), "a round is void")
        assert not keys(world)
        for machine in blocked:
            machine.blocked.clear()
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 2)
        assert [position for position, _ in keys(world)] == [0, 1]
        settled = [int(str(e.args["round"])) for e in world.job_events("Settled")]
        assert len(settled) == 2
        assert settled[0] > 1
        for round_ in settled:
            assert [check.what for check in await verify(world, round_)] == ALL
            assert any(entry.score > 0 for entry in world.evidence(round_).entries)

    play(story, tmp_path, monkeypatch)


# -- a requester that does not ------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_a_requester_who_never_unseals_loses_the_budget_to_all_alike(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.machines["requester"].blocked.add("unseal")
        seen = watch_scoring(monkeypatch)
        await submit(world)
        await world.until(lambda: all(world.is_settled(n) for n in (1, 2, 3)), "all is settled")
        await trio.sleep(60)
        assert not keys(world)
        assert not seen
        for round_ in (1, 2, 3):
            check_shared_alike(world, round_)
            assert [check.what for check in await verify(world, round_)] == ALL
            assert "did not unseal" in notes(world, round_)
        check_nobody_lost(world)
        state, claimed = world.state(), await world.claim_all()
        assert claimed == state.spent_wei
        assert 3 * state.terms.round_budget_wei - claimed < 3 * len(world.machines) * 2, "the whole budget"

    play(story, tmp_path, monkeypatch, seed=seed)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("late_s", [DUE_S - 2, DUE_S - 1, DUE_S + 1, DUE_S + 2, 2 * SCORE_S])
def test_a_shard_that_is_unsealed_late_counts_for_all_or_for_nobody(
    late_s: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a requester opens a shard, it cannot make honest evaluators differ."""

    async def story(world: World) -> None:
        world.machines["requester"].blocked.add("unseal")
        await submit(world, rounds=1)
        await world.until(lambda: bool(world.job_events("ModelPublished")), "there is a model")
        (published,) = world.job_events("ModelPublished")
        await trio.sleep(world.mined_at(published) + late_s - world.now())
        parts = world.running["requester"].parts
        anchor = world.state().terms.seal_anchor
        (key,) = sealing.make_chain(*(parts.journal.seal(anchor) or (b"", 0))).keys
        MemoryLedger(world.chain, parts.ledger.address).unseal(JOB, 0, key)
        world.machines["requester"].blocked.clear()
        await world.until_over()
        (opened,) = world.job_events("ShardUnsealed")
        if world.mined_at(opened) - world.mined_at(published) <= DUE_S:
            assert any(entry.score > 0 for entry in world.evidence(1).entries)
            assert not notes(world, 1)
        else:
            check_shared_alike(world, 1)
            assert "too late" in notes(world, 1)
        check_nobody_lost(world)
        assert len(world.job_events("ScoresRevealed")) == 3
        assert [check.what for check in await verify(world, 1)] == ALL
        await world.check_end()

    play(story, tmp_path, monkeypatch, seed=seed)


def test_a_shard_that_was_unsealed_early_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract takes it from the end of COMMIT on, whoever sends it."""

    async def story(world: World) -> None:
        def unseal(node: Running) -> None:
            parts = world.running["requester"].parts
            kept = parts.journal.seal(world.state().terms.seal_anchor)
            assert kept is not None
            key = sealing.make_chain(*kept).keys[0]
            MemoryLedger(world.chain, node.machine.address).unseal(JOB, 0, key)

        world.trap("reveal", When.BEFORE, unseal)
        await submit(world, rounds=2)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 2)
        assert [position for position, _ in keys(world)] == [0, 1]
        for round_ in (1, 2):
            assert any(entry.score > 0 for entry in world.evidence(round_).entries)
            assert [check.what for check in await verify(world, round_)] == ALL
        await world.check_end()

    play(story, tmp_path, monkeypatch)


# -- a requester that is killed -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "when"),
    [("create_job", When.AFTER), ("unseal", When.BEFORE), ("unseal", When.AFTER)],
)
@pytest.mark.parametrize("round_", [1, 2])
def test_a_requester_that_is_started_again_unseals_each_shard_once(
    call: str, when: When, round_: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        killed: list[str] = []

        def kill(node: Running) -> None:
            killed.append(node.machine.name)
            world.kill(node.machine.name)

        trap = world.trap(call, when, kill, of="requester", round=0 if call == "create_job" else round_)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit_until_killed, world)
            await world.until(lambda: trap.sprung, "the requester is killed")
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
        await world.start("requester")
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        assert [position for position, _ in keys(world)] == [0, 1, 2]
        for number in (1, 2, 3):
            assert any(entry.score > 0 for entry in world.evidence(number).entries)
            assert [check.what for check in await verify(world, number)] == ALL
        assert not world.job_events("Slashed")
        await world.check_end()

    play(story, tmp_path, monkeypatch)


async def submit_until_killed(world: World) -> None:
    with suppress(ChainUnreachable):  # which is all that a dead process hears
        await submit(world)


def test_a_requester_that_comes_back_after_a_round_opens_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.trap("unseal", When.BEFORE, lambda node: world.kill(node.machine.name), of="requester")
        await submit(world, rounds=8)
        await world.until(lambda: world.is_settled(1), "the first round is settled")
        await world.start("requester")
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 8)
        assert [position for position, _ in keys(world)] == list(range(8))
        check_shared_alike(world, 1)
        assert any(entry.score > 0 for entry in world.evidence(8).entries)
        for round_ in range(1, 9):
            assert [check.what for check in await verify(world, round_)] == ALL
        assert {e.args["node"] for e in world.job_events("Slashed")} <= {
            world.machines["requester"].address
        }, "it had a seat while it was away"

    play(story, tmp_path, monkeypatch)


def test_the_secret_is_on_disk_before_money_moves_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        found: list[tuple[bytes, int]] = []

        def look(node: Running) -> None:
            journal = Journal(node.machine.path / "journal.sqlite")
            files = [world.blob(cid) or b"" for cid in node.machine.store._files]
            specs = [jobspec.decode(data) for data in files if b"seal_anchor" in data]
            kept = journal.seal(bytes.fromhex(specs[0].reward.seal_anchor))
            assert kept is not None
            found.append(kept)

        world.trap("create_job", When.BEFORE, look, round=0)
        await submit(world)
        ((secret, count),) = found
        assert count == 3
        chain = sealing.make_chain(secret, count)
        assert keccak(chain.keys[0]) == chain.anchor == world.state().terms.seal_anchor
        for block in blocks(world):
            assert secret not in block
            assert not any(key in block for key in chain.keys)
        journal = world.machines["requester"].path / "journal.sqlite"
        assert journal.stat().st_mode & 0o077 == 0

    play(story, tmp_path, monkeypatch, trainers=0)


# -- rows that are none --------------------------------------------------------------------------------
Forge = Callable[[list[bytes], Sequence[bytes]], list[bytes]]


def garbage(shards: list[bytes], _: Sequence[bytes]) -> list[bytes]:
    return [os.urandom(200) for _ in shards]


def another_key(shards: list[bytes], keys_: Sequence[bytes]) -> list[bytes]:
    return [sealing.seal(shard, keys_[0], place + 1) for place, shard in enumerate(shards)]


def too_large(shards: list[bytes], keys_: Sequence[bytes]) -> list[bytes]:
    return [sealing.seal(bytes(2000), key, place) for place, key in enumerate(keys_)]


def no_rows(shards: list[bytes], keys_: Sequence[bytes]) -> list[bytes]:
    return [sealing.seal(b"no rows", key, place) for place, key in enumerate(keys_)]


def swapped(shards: list[bytes], keys_: Sequence[bytes]) -> list[bytes]:
    made = [sealing.seal(shard, key, at) for at, (shard, key) in enumerate(zip(shards, keys_, strict=True))]
    return made[::-1]


def too_few(shards: list[bytes], keys_: Sequence[bytes]) -> list[bytes]:
    return [sealing.seal(shards[0], keys_[0], 0)]


@pytest.mark.parametrize(
    "forge", [garbage, another_key, too_large, no_rows, swapped, too_few], ids=lambda f: f.__name__
)
def test_rows_that_are_none_are_as_if_they_had_not_been_unsealed(
    forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "MAX_VALIDATION_BYTES", 4000)

    async def story(world: World) -> None:
        node = world.running["requester"]
        parts = node.parts
        spec = jobspec.parse(TOML.format(rounds=2, min_nodes=3, quorum=2, settle_s=60))
        rows = await parts.trainer.validation_rows(spec.app)
        chain = sealing.make_chain(bytes(32), 2)
        forged = forge(list(await parts.trainer.shards(rows, 2, 1)), chain.keys)
        listed = ShardList(tuple([await parts.store.put(shard) for shard in forged]))
        parts.journal.keep_seal(chain.anchor, bytes(32), 2)
        spec = spec.with_validation(await parts.store.put(listed.encode()), chain.anchor)
        model = await parts.trainer.init_model(model_config(spec), spec.training.seed)
        model_cid, spec_cid = await parts.store.put(model), await parts.store.put(spec.encode())
        MemoryLedger(world.chain, parts.ledger.address).create_job(spec.terms(spec_cid, model_cid))
        await world.until(lambda: world.is_settled(2), "all is settled")
        for round_ in (1, 2):
            check_shared_alike(world, round_)
            assert [check.what for check in await verify(world, round_)] == ALL
        assert [position for position, _ in keys(world)] == [0, 1]
        check_nobody_lost(world)

    play(story, tmp_path, monkeypatch)


def test_a_lie_about_a_sealed_round_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel that says that it could not measure anything, though the shard was there."""

    async def story(world: World) -> None:
        with pytest.MonkeyPatch.context() as patch:

            async def none(*_: Any) -> bool:
                return False

            patch.setattr(sealed, "has_rows", none)
            await submit(world, rounds=1)
            await world.until_over()
        check_shared_alike(world, 1)
        with pytest.raises(VerificationFailed, match="the check of its scores"):
            await verify(world, 1)

    play(story, tmp_path, monkeypatch)


# -- which rows ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["path", "cid"])
def test_rows_of_ones_own_are_sealed(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        parts, given = world.running["requester"].parts, list[bytes]()
        rows = await parts.trainer.validation_rows("rows of my own")
        honest = MemoryTrainer.shards

        async def shards(self: MemoryTrainer, validation: bytes, *more: Any) -> tuple[bytes, ...]:
            given.append(validation)
            return await honest(self, validation, *more)

        monkeypatch.setattr(MemoryTrainer, "shards", shards)
        (tmp_path / "rows.npz").write_bytes(rows)
        named = str(tmp_path / "rows.npz") if how == "path" else str(await parts.store.put(rows))
        await submit(world, text=TOML + 'validation = "{named}"\n', named=named)
        assert given == [rows]
        spec = jobspec.decode(world.blob(world.state().terms.spec) or b"")
        listed = ShardList.decode(world.blob(spec.validation) or b"", 3)
        assert all(world.blob(cid) for cid in listed.shards)
        if how == "path":
            assert not any(rows in block for block in blocks(world))

    play(story, tmp_path, monkeypatch, trainers=0)


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "large", "too many rounds"])
def test_rows_that_cannot_be_sealed_cost_no_money(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "MAX_VALIDATION_BYTES", 1000)

    async def story(world: World) -> None:
        path, rounds = tmp_path / "rows.npz", 3
        match what:
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "large":
                path.write_bytes(bytes(1001))
            case "too many rounds":
                path.write_bytes(await MemoryTrainer().validation_rows("x"))
                rounds = 11
        before = world.chain.token.balances[world.machines["requester"].address]
        with pytest.raises(UsageError if rounds == 11 else SpecInvalid):
            await submit(world, text=TOML + f'validation = "{path}"\n', rounds=rounds)
        assert world.chain.token.balances[world.machines["requester"].address] == before
        assert not world.job_events("JobCreated")

    play(story, tmp_path, monkeypatch, trainers=0)


def test_a_list_of_shards_reads_back_and_nothing_else_does() -> None:
    listed = ShardList((Cid.of(b"a", 0x70), Cid.of(b"b", 0x55)))
    assert ShardList.decode(listed.encode(), 2) == listed
    for data, count in (
        (listed.encode(), 3),
        (listed.encode()[:-1], 2),
        (b"", 0),
        (b"\xa0", 0),
        (b"\x80", 0),
    ):
        with pytest.raises(VerificationFailed):
            ShardList.decode(data, count)


@pytest.mark.parametrize("case", ["nobody has it", "a liar has it", "not known when"])
def test_what_may_still_come_is_not_called_missing(case: str) -> None:
    """Else one evaluator would say 0 where the others have the rows."""
    key = b"k" * 32
    row = UnsealedRow(0, key, keccak(key), None if case == "not known when" else 0, 8)
    spec = jobspec.parse(TOML.format(rounds=1, min_nodes=3, quorum=2, settle_s=60))
    spec = spec.with_validation(Cid.of(b"list", 0x70), keccak(key))

    class Files:
        async def get(self, cid: Cid, *, max_bytes: int) -> bytes:
            raise CidMismatch("wrong bytes") if case == "a liar has it" else BlobNotFound(f"file {cid}")

    rows: Any = SimpleNamespace(unsealed=lambda job, round_: row)
    with pytest.raises(BlobNotFound):
        trio.run(sealed.shard, Files(), rows, JOB, spec, 1)
