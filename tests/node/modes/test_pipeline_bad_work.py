"""Pieces that members make up: refused by everybody alike, unpaid, and no round is lost for one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from dfl_ledger.records import REFUSED, Kind, Phase
from dfl_node.modes.model_parallel import ModelParallel
from dfl_node.modes.pipeline.files import Record, StageFile, StageHeader
from dfl_node.modes.pipeline.plan import Finish, Point
from dfl_node.rounds.vocabulary import Train, Work
from tests.node.modes.pipelines import pieces, submit
from tests.node.modes.world import World, play

Forge = Callable[[ModelParallel, Train], Awaitable[tuple[Kind, bytes]]]
LIAR = "d"


async def junk(mode: ModelParallel, action: Train) -> tuple[Kind, bytes]:
    return Kind.STAGE, b"not a stage"


async def an_update(mode: ModelParallel, action: Train) -> tuple[Kind, bytes]:
    return Kind.UPDATE, bytes(100)


async def a_feed_of_nothing(mode: ModelParallel, action: Train) -> tuple[Kind, bytes]:
    """It says that it conducted, and names files that nobody has."""
    me = mode._context.me
    point = Point(9, me, 5, ("conv2",), (me, me), (action.parent, action.parent), ())
    finish = Finish(9, point, (me, me))
    return Kind.FEED, Record(mode._job, action.round, action.parent, finish, (), (), ()).encode()


async def a_stage_of_nowhere(mode: ModelParallel, action: Train) -> tuple[Kind, bytes]:
    me = mode._context.me
    header = StageHeader(mode._job, action.round, action.parent, 9, me, ("conv2",), 0, 5)
    return Kind.STAGE, StageFile(header, bytes(100)).encode()


async def a_stage_of_impossible_cuts(mode: ModelParallel, action: Train) -> tuple[Kind, bytes]:
    header = StageHeader(mode._job, action.round, action.parent, 9, mode._context.me, ("no cut",), 0, 5)
    return Kind.STAGE, StageFile(header, bytes(100)).encode()


def lie(monkeypatch: pytest.MonkeyPatch, world: World, forge: Forge) -> None:
    """The liar commits what it made up, at once."""
    honest, liar = ModelParallel.train, world.machines[LIAR].address

    async def train(mode: ModelParallel, action: Train) -> Work:
        if mode._context.me != liar:
            return await honest(mode, action)
        kind, data = await forge(mode, action)
        return await mode._context.keep(action, data, samples=8, loss=0.0, train_s=0.0, kind=kind)

    monkeypatch.setattr(ModelParallel, "train", train)


@pytest.mark.parametrize(
    "forge", [junk, an_update, a_feed_of_nothing, a_stage_of_nowhere, a_stage_of_impossible_cuts]
)
def test_a_piece_that_is_made_up_is_refused_and_the_stages_make_the_model(
    forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        lie(monkeypatch, world, forge)
        await submit(world)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 1)
        assert len(pieces(world, 1, Kind.STAGE)) >= 2
        (entry,) = (e for e in world.evidence(1).entries if e.node == world.machines[LIAR].address)
        assert (entry.accepted, entry.score) == (False, REFUSED)
        assert entry.why
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=4)


def test_a_copied_stage_is_not_paid_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The liar waits until the last files are known, and commits one of them as its own."""

    async def copied(mode: ModelParallel, action: Train) -> tuple[Kind, bytes]:
        while True:
            for end in mode._parts.lines._ends.values():
                cid = end.point.snapshots[0]
                return Kind.STAGE, await mode._parts.store.get(cid, max_bytes=mode.max_piece_bytes)
            await trio.sleep(0.05)

    async def story(world: World) -> None:
        lie(monkeypatch, world, copied)
        honest = world.running["a"].parts.lines
        world.running[LIAR].parts.lines._ends = honest._ends  # it has heard of the end somehow
        await submit(world)
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 1)
        assert world.contributions(LIAR) == [1]
        accepted = [e for e in world.evidence(1).entries if e.accepted]
        assert len({entry.cid for entry in accepted}) == len(accepted)
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=4)
