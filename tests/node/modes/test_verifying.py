"""Whoever was not there finds what a settler lied about, and nothing where all were honest. In every mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger import rewards, vectors
from dfl_ledger.errors import BlobNotFound, VerificationFailed
from dfl_ledger.facts import RoundFacts
from dfl_ledger.records import REFUSED, Cid, JobId, Leaf, Mode
from dfl_node.journal import Scores
from dfl_node.modes.data_parallel import DataParallel
from dfl_node.modes.judging import Judge
from dfl_node.modes.mode import Worths
from dfl_node.train.memory import MemoryTrainer
from dfl_node.verifying import Check, open_verifier
from tests.faults.matrix import JOBS
from tests.faults.matrix import play as play_linked
from tests.node.modes.world import World, play

ALL = [
    *("evidence", "chain", "medians", "score tree", "rewards", "cumulative", "reward tree"),
    *("model", "scores", "payouts"),
]


async def verify(world: World, round_: int) -> list[Check]:
    """As anybody would on the requester's ledger, with files from wherever they are."""
    node, said = world.running["requester"], list[Check]()
    verifier = await open_verifier(
        JobId(1), node.parts.rows, node.machine.store, MemoryTrainer(), said.append
    )
    await verifier.verify_round(round_)
    return said


@pytest.mark.parametrize("mode", JOBS, ids=lambda mode: mode.name.lower())
def test_an_honest_job_holds(mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = JOBS[mode]

    async def story(world: World) -> None:
        await job.submit(world)
        await world.until_over()
        await world.claim_all()
        settled = [int(str(event.args["round"])) for event in world.job_events("Settled")]
        assert settled
        for round_ in settled:
            assert [check.what for check in await verify(world, round_)] == ALL

    play_linked(story, tmp_path, monkeypatch, trainers=job.trainers)


def lie_about_scores(patch: pytest.MonkeyPatch, world: World) -> None:
    honest = DataParallel.worth

    async def worth(self: DataParallel, *args: Any) -> Worths:
        found = await honest(self, *args)
        return replace(found, pieces=(10**12, *found.pieces[1:]))

    patch.setattr(DataParallel, "worth", worth)


def lie_about_the_model(patch: pytest.MonkeyPatch, world: World) -> None:
    for machine in world.machines.values():
        machine.forge_model = lambda model: model[:-4] + bytes(4)


def lie_about_the_split(patch: pytest.MonkeyPatch, world: World) -> None:
    honest = rewards.leaves

    def leaves(facts: RoundFacts, before: Sequence[Leaf]) -> tuple[Leaf, ...]:
        shares = replace(facts.shares, round_budget_wei=facts.shares.round_budget_wei // 2)
        return honest(replace(facts, shares=shares), before)

    patch.setattr(rewards, "leaves", leaves)


def lie_about_a_refusal(patch: pytest.MonkeyPatch, world: World) -> None:
    """An update that counted in the model is said to have been refused, so that it earns nothing."""
    honest = Judge._measured

    async def measured(self: Judge, *where: Any) -> Scores:
        made = await honest(self, *where)
        subjects = len(made.vector) // 8
        return replace(made, vector=vectors.encode([REFUSED, *vectors.decode(made.vector, subjects)[1:]]))

    patch.setattr(Judge, "_measured", measured)


LIES: dict[str, tuple[Callable[[pytest.MonkeyPatch, World], None], str, list[str]]] = {
    "scores": (lie_about_scores, "the check of its scores", ALL[:8]),
    "model": (lie_about_the_model, "the check of its model", ALL[:7]),
    "split": (lie_about_the_split, "the check of its rewards.*is due", ALL[:4]),
    "refusal": (lie_about_a_refusal, "the check of its scores", ALL[:8]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell, said, before = LIES[lie]

    async def story(world: World) -> None:
        with pytest.MonkeyPatch.context() as patch:
            tell(patch, world)
            await world.submit(rounds=1)
            await world.until_over()
        assert world.job_events("Settled")
        checks: list[Check] = []
        node = world.running["requester"]
        verifier = await open_verifier(
            JobId(1), node.parts.rows, node.machine.store, MemoryTrainer(), checks.append
        )
        with pytest.raises(VerificationFailed, match=said):
            await verifier.verify_round(1)
        assert [check.what for check in checks] == before

    play(story, tmp_path, monkeypatch)


def test_a_piece_that_nobody_has_is_no_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        await world.submit(rounds=1)
        await world.until_over()
        node = world.running["requester"]
        gone = Cid.parse(node.parts.rows.revealed(1, 1)[0].cid)

        class Without:
            put = node.machine.store.put

            async def get(self, cid: Cid, **how: Any) -> bytes:
                if cid == gone:
                    raise BlobNotFound(f"file {cid}")
                return await node.machine.store.get(cid, **how)

        verifier = await open_verifier(
            JobId(1), node.parts.rows, Without(), MemoryTrainer(), lambda check: None
        )
        with pytest.raises(BlobNotFound, match=f"piece {gone}"):
            await verifier.verify_round(1)

    play(story, tmp_path, monkeypatch)
