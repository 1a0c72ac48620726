"""Audited jobs: whose work is done again, what a jury sees of the rows, who is banned, and who is cleared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from dfl_ledger import vectors
from dfl_ledger.errors import BlobNotFound
from dfl_ledger.explain import Explainer
from dfl_ledger.records import BANNED, Cid, JobId, Phase
from dfl_node.modes import audited as audited_side
from dfl_node.modes import auditing
from dfl_node.modes.auditing import FAILED, PASSED, UNKNOWN, Case
from dfl_node.train.trainer import ModelUpdate, Shard
from tests.conformance.trainer import numbers, with_numbers
from tests.node.modes.buffers import ASYNC
from tests.node.modes.terms import SPEC
from tests.node.modes.test_verifying import verify
from tests.node.modes.world import SCORE_S, STAKE_WEI, Running, When, World, play

JOB = JobId(1)
AUDITED = SPEC + "audits = 2\n"


def bond_wei(world: World) -> int:
    return world.state().terms.bond_wei


def lost_wei(world: World, name: str) -> int:
    return STAKE_WEI - world.chain.registry.stake_of(world.machines[name].address)


def name_of(world: World, address: object) -> str:
    return next(m.name for m in world.machines.values() if m.address == address)


def verdicts(world: World, round_: int, panel: int = 0) -> dict[str, tuple[int, ...]]:
    """What each juror said of the audits of a round, or of the one appealed against."""
    found = {}
    for event in world.job_events("ScoresRevealed"):
        if (event.args["round"], event.args["panel"]) != (round_, panel):
            continue
        data = bytes.fromhex(str(event.args["vector"])[2:])
        scores = vectors.decode(data, len(data) // 8)
        found[name_of(world, event.args["evaluator"])] = scores[-3:-1] if panel == 0 else scores
    return found


def audited(world: World, round_: int) -> list[str]:
    """Whose pieces were drawn."""
    ledger = next(iter(world.running.values())).parts.ledger
    rows = next(iter(world.running.values())).parts.rows.revealed(JOB, round_)
    return [name_of(world, rows[ledger.audited_index(JOB, round_, k)].node) for k in range(2)]


def told(world: World, name: str) -> list[tuple[object, object]]:
    return [(e.args["round"], name_of(world, e.args["node"])) for e in world.job_events(name)]


def longer(update: ModelUpdate) -> ModelUpdate:
    """It claims to have learned more than its rows gave."""
    return replace(update, delta=with_numbers(update.delta, [1.5 * n for n in numbers(update.delta)]))


# -- honest members ------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_honest_work_passes_and_nobody_loses_anything(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.submit(rounds=3, text=AUDITED)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        for round_ in (1, 2, 3):
            said, drawn = verdicts(world, round_), audited(world, round_)
            assert len(said) == 3
            for juror, own in said.items():
                assert own == tuple(UNKNOWN if juror == name else PASSED for name in drawn)
        opened = Counter(told(world, "ShardOpened"))
        assert opened == Counter((r, name) for r in (1, 2, 3) for name in audited(world, r))
        assert not world.job_events("AuditFailed")
        assert not world.job_events("Slashed")
        await world.check_end()

    play(story, tmp_path, monkeypatch, seed=seed)


def test_rows_leave_a_node_only_in_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        await world.submit(rounds=2, text=AUDITED)
        await world.until_over()
        assert world.job_events("ShardOpened")
        for name in "abc":
            node = world.running[name]
            rows = (await node.parts.trainer.shard(node.parts.data["digits"])).rows
            for store in world.swarm.stores.values():
                assert not any(rows[:64] in block for block in store._blocks.values())
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_an_asynchronous_piece_is_done_again_under_the_name_it_was_trained_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may wait for a round that takes it, and its batches were drawn by the round it was made for."""

    async def story(world: World) -> None:
        await world.submit(rounds=6, size=2, max_lag=3, text=ASYNC + "audits = 2\n")
        state = await world.until_over()
        assert state.completed == 6
        found = Counter(v for r in range(1, 7) for own in verdicts(world, r).values() for v in own)
        assert found[PASSED] > found[UNKNOWN]
        assert not found[FAILED]
        waited = 0
        for name in "abc":
            journal = world.running[name].parts.journal
            for row in world.running[name].parts.rows.contributions(node=world.machines[name].address):
                work = journal.work_of(JOB, Cid.parse(row.cid))
                waited += work is not None and work.round != row.round
        assert waited
        assert not world.job_events("AuditFailed")
        assert not world.job_events("Slashed")
        await world.check_end()

    play(story, tmp_path, monkeypatch)


# -- who takes part ------------------------------------------------------------------------------------
def test_a_node_that_may_not_show_its_rows_declines_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        shy = world.machine("d")
        shy.share_rows = False
        await world.start("d")
        await world.submit(rounds=2, text=AUDITED)
        await world.until(lambda: JOB in world.running["d"].jobs, "it knows of the job")
        assert "--share-rows" in world.running["d"].jobs[JOB].declined
        assert not world.running["a"].jobs[JOB].declined
        await world.until_over()
        assert "d" not in {name_of(world, e.args["node"]) for e in world.job_events("NodeJoined")}
        (row,) = await world.running["d"].operator.jobs()
        assert "--share-rows" in row["declined"]
        (row,) = await world.running["a"].operator.jobs()
        assert row["declined"] == ""
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_who_comes_back_with_other_rows_stops_training_and_is_not_banned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        machine = world.machines["c"]

        def other_rows(node: Running) -> None:
            world.kill("c")
            machine.shard = 11

        world.trap("settle", When.AFTER, other_rows)
        await world.submit(rounds=4, text=AUDITED)
        await world.until(lambda: "c" not in world.running, "it is killed")
        await trio.sleep(5)
        before = len(world.contributions("c"))
        await world.start("c")
        await world.until_over()
        assert before == len(world.contributions("c"))
        assert "has no use for the rows of this node" in world.running["c"].jobs[JOB].declined
        assert not world.job_events("AuditFailed")
        assert not [e for e in world.job_events("Slashed") if e.args["node"] == machine.address]

    play(story, tmp_path, monkeypatch)


def test_rows_are_not_shown_once_their_owner_has_withdrawn_its_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That costs the node its place, and a bond: no more, for it cannot appeal without showing them."""

    async def story(world: World) -> None:
        def withdraw(node: Running) -> None:
            world.kill("c")
            node.machine.share_rows = False

        world.trap("reveal", When.AFTER, withdraw, of="c")
        await world.submit(rounds=3, text=AUDITED)
        await world.until(lambda: "c" not in world.running, "it is killed")
        await world.start("c")
        await world.until_over()
        assert "c" not in {name for _, name in told(world, "ShardOpened")}
        assert not world.job_events("Appealed")
        assert {name for _, name in told(world, "AuditFailed")} <= {"c"}
        assert lost_wei(world, "c") == len(told(world, "AuditFailed")) * bond_wei(world)
        assert len(world.contributions("c")) == 1

    play(story, tmp_path, monkeypatch)


# -- cheats --------------------------------------------------------------------------------------------
def test_an_update_that_its_rows_do_not_give_is_found_banned_and_slashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.machines["b"].forge = longer
        await world.submit(rounds=5, text=AUDITED)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 5)
        failed = told(world, "AuditFailed")
        assert {name for _, name in failed} == {"b"}
        assert world.chain.jobs.jobs[JOB].active[world.machines["b"].address] == BANNED
        banned_at = world.job_events("AuditFailed")[0].block
        committed = [e for e in world.job_events("ContributionCommitted") if e.block > banned_at]
        assert world.machines["b"].address not in {e.args["node"] for e in committed}
        assert committed, "the others go on"
        assert not world.job_events("Appealed"), "it can do its own work again, and sees that it was right"
        assert lost_wei(world, "b") == len(failed) * bond_wei(world)
        assert all(lost_wei(world, name) == 0 for name in ("a", "c", "requester"))
        decided = world.job_events("AuditDecided")
        assert [e.args["upheld"] for e in decided] == [True] * len(failed)
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_who_opens_nothing_is_banned_and_slashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        world.machines["b"].blocked.add("open_shard")
        await world.submit(rounds=4, text=AUDITED)
        await world.until_over()
        failed = told(world, "AuditFailed")
        assert {name for _, name in failed} == {"b"}
        appeals = len(world.job_events("Appealed"))
        assert appeals, "its work was right: it tries"
        assert all(e.args["upheld"] for e in world.job_events("AuditDecided"))
        assert lost_wei(world, "b") == (len(failed) + appeals) * bond_wei(world)
        assert all(lost_wei(world, name) == 0 for name in ("a", "c", "requester"))
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def other_rows(shard: Shard) -> Shard:
    return Shard(shard.rows + b"!", shard.commitment)


def test_rows_that_were_not_committed_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        world.machines["b"].forge_shard = other_rows
        await world.submit(rounds=4, text=AUDITED)
        await world.until_over()
        assert {name for _, name in told(world, "AuditFailed")} == {"b"}
        assert lost_wei(world, "b") >= bond_wei(world)
        assert all(lost_wei(world, name) == 0 for name in ("a", "c", "requester"))
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_boxes_that_nobody_delivers_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        def hide(node: Running) -> None:
            store = node.machine.store
            keep = store.put

            async def put(data: bytes, *, pin: bool = True) -> Any:
                cid = await keep(data, pin=pin)
                if data.startswith(b"dfl boxes"):
                    await store.unpin(cid)
                    store._blocks.pop(cid.digest)
                return cid

            monkeypatch.setattr(store, "put", put)

        hide(world.running["b"])
        await world.submit(rounds=4, text=AUDITED)
        await world.until_over()
        assert {name for _, name in told(world, "AuditFailed")} == {"b"}
        assert "b" in {name for _, name in told(world, "ShardOpened")}
        assert all(lost_wei(world, name) == 0 for name in ("a", "c", "requester"))

    play(story, tmp_path, monkeypatch)


# -- jurors that lack something --------------------------------------------------------------------------
def test_a_juror_without_its_key_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lack is no fault of whom it judges; and a round is scored all the same."""

    async def story(world: World) -> None:
        for node in world.running.values():
            object.__setattr__(node.parts, "node_key", None)
        await world.submit(rounds=2, text=AUDITED)
        await world.until_over()
        assert {v for r in (1, 2) for own in verdicts(world, r).values() for v in own} == {UNKNOWN}
        assert not world.job_events("AuditFailed")
        await world.check_end()

    play(story, tmp_path, monkeypatch)


class _CutOff:
    """A store and a channel without anybody at the other end."""

    def peers(self) -> tuple[()]:
        return ()

    async def get(self, cid: Cid, **_: Any) -> bytes:
        await trio.sleep(1)
        raise BlobNotFound(f"file {cid}", why="nobody is there")


def test_a_juror_that_is_cut_off_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        await world.submit(rounds=2, text=AUDITED)
        await world.until(lambda: JOB in world.running["requester"].jobs, "it knows of the job")
        auditor = world.running["requester"].jobs[JOB]._judge._auditor
        assert auditor is not None
        none: Any = _CutOff()
        auditor._parts = replace(auditor._parts, store=none, channel=none)
        await world.until_over()
        own = [v for r in (1, 2) for v in verdicts(world, r).get("requester", ())]
        assert set(own) == {UNKNOWN}
        assert not world.job_events("AuditFailed")
        assert {v for r in (1, 2) for said in verdicts(world, r).values() for v in said} == {PASSED, UNKNOWN}
        await world.check_end()

    play(story, tmp_path, monkeypatch)


# -- appeals ---------------------------------------------------------------------------------------------
def lying(monkeypatch: pytest.MonkeyPatch, lies: Callable[[Case], bool]) -> None:
    """Jurors who say of every piece of these cases that it failed."""
    real = auditing.Auditor._objection

    async def objection(self: Any, found: Case, pieces: Any) -> str:
        return "a lie" if lies(found) else await real(self, found, pieces)

    monkeypatch.setattr(auditing.Auditor, "_objection", objection)


def test_who_is_banned_by_liars_appeals_and_is_cleared_by_a_fresh_jury(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        victim = world.machines["b"].address
        lying(monkeypatch, lambda found: found.node == victim and found.panel == 0 and found.round <= 2)
        await world.submit(rounds=6, text=AUDITED)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 6)
        failed = told(world, "AuditFailed")
        assert {name for _, name in failed} == {"b"}
        assert len(world.job_events("Appealed")) == len(failed)
        assert [e.args["upheld"] for e in world.job_events("AuditDecided")] == [False] * len(failed)
        assert len(world.job_events("NodeUnbanned")) >= 1
        for event in world.job_events("AuditFailed"):
            jury = verdicts(world, int(str(event.args["round"])), int(str(event.args["audit"])) + 1)
            assert {own for name, own in jury.items() if name != "b"} == {(PASSED,)}
        assert not world.job_events("Slashed")
        assert max(world.contributions("b")) == 6, "it is back"
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=4)


def test_an_appeal_that_a_fresh_jury_refuses_costs_two_bonds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The banned node sees nothing wrong with its work, but it did not deliver that."""

    async def story(world: World) -> None:
        cheat = world.machines["b"]
        cheat.forge = longer

        async def nothing(*_: Any, **__: Any) -> str:
            return ""

        monkeypatch.setattr(audited_side, "objection", nothing)
        await world.submit(rounds=4, text=AUDITED)
        await world.until_over()
        failed = told(world, "AuditFailed")
        assert {name for _, name in failed} == {"b"}
        assert len(world.job_events("Appealed")) == len(failed)
        assert all(e.args["upheld"] for e in world.job_events("AuditDecided"))
        assert lost_wei(world, "b") == 2 * len(failed) * bond_wei(world)
        assert not world.job_events("NodeUnbanned")
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_whoever_was_not_there_is_told_of_verdicts_bans_and_appeals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        victim = world.machines["b"].address
        lying(monkeypatch, lambda found: found.node == victim and found.panel == 0 and found.round == 1)
        await world.submit(rounds=2, text=AUDITED.replace("audits = 2", "audits = 3"))
        await world.until_over()
        assert told(world, "AuditFailed") == [(1, "b")]
        said = {check.what: check.detail for check in await verify(world, 1)}
        assert "failed" in said["audits"]
        assert "opened to the jury only" in said["audits"]
        rows = world.running["requester"].parts.rows
        (own,) = rows.contributions(node=victim, job=JOB, round_=1)
        (note,) = Explainer(rows, world.now()).contribution(own).money.notes
        assert "which was overruled on appeal" in note
        jurors, appeal = note.split("; the appeal's: ")
        assert jurors.count(" failed") >= 2, "the audit's name, and its jurors"
        assert appeal.count(" passed") >= 1
        assert "failed" not in appeal
        assert str(victim) not in note

    play(story, tmp_path, monkeypatch, trainers=3)


@pytest.mark.parametrize(
    ("call", "when"),
    [
        ("draw", When.AFTER),
        ("shard", When.BEFORE),
        ("open_shard", When.BEFORE),
        ("open_shard", When.AFTER),
    ],
)
def test_an_audited_node_that_is_killed_and_comes_back_at_once_loses_nothing(
    call: str, when: When, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims: list[str] = []

    def kill(node: Running) -> None:
        victims.append(node.machine.name)
        node.world.kill(node.machine.name)

    async def story(world: World) -> None:
        await world.submit(rounds=2, text=AUDITED)
        world.trap(call, when, kill)
        await world.until(lambda: bool(victims), "somebody is killed")
        await trio.sleep(SCORE_S / 10)
        await world.start(victims[0])
        await world.until_over()
        assert not world.job_events("AuditFailed")
        assert not world.job_events("Slashed")
        await world.check_end()

    play(story, tmp_path, monkeypatch)


def test_who_dies_while_it_is_audited_may_appeal_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims: list[str] = []

    def kill(node: Running) -> None:
        victims.append(node.machine.name)
        node.world.kill(node.machine.name)

    async def story(world: World) -> None:
        world.trap("open_shard", When.BEFORE, kill)
        await world.submit(
            rounds=4, text=AUDITED.replace("challenge_s = 10", "challenge_s = 60"), settle_s=60
        )
        await world.until(lambda: bool(world.job_events("AuditFailed")), "it is banned")
        await world.start(victims[0])
        await world.until(lambda: bool(world.job_events("AuditDecided")), "it was heard")
        await world.until_over()
        (decided,) = world.job_events("AuditDecided")
        assert not decided.args["upheld"]
        assert world.job_events("NodeUnbanned")
        withheld = world.job_events("RevealWithheld") + world.job_events("ScoresWithheld")
        assert lost_wei(world, victims[0]) == len(withheld) * bond_wei(world), "not for the audit"

    play(story, tmp_path, monkeypatch)
