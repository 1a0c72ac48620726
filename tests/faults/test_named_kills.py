"""SIGKILL at each named point of a round, 200 trials: zero lost and zero double payments.

A point is a call that a node makes to its journal, its trainer or the chain; it dies right before it, or
right after it without having heard the answer. The trial's number fixes the point, the round, how long the
node stays away and who is drawn. `pytest tests/faults/test_named_kills.py -k trial-17` plays one again.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from dfl_ledger.errors import DflError
from dfl_ledger.records import Mode, Phase
from tests.faults.matrix import JOBS, play
from tests.node.modes.machines import Running, When
from tests.node.modes.world import World

TRIALS = 200
AWAY_S = (0.0, 0.5, 3.0, 15.0, 45.0)


@dataclass(frozen=True)
class Point:
    mode: Mode
    call: str
    when: When

    def __str__(self) -> str:
        return f"{self.mode.name.lower()}-{self.when.value}-{self.call}"


EVERYWHERE = ("join", "record", "publish_model", "settle", "refund", "claim")
CALLS = {
    Mode.SYNC: (*EVERYWHERE, "commit", "reveal"),
    Mode.ASYNC: (*EVERYWHERE, "promise", "commit", "reveal"),
    Mode.CHAINED: (*EVERYWHERE, "hop"),
    Mode.PIPELINE: (*EVERYWHERE, "commit", "reveal"),
}
POINTS = [
    *(Point(mode, call, when) for mode, calls in CALLS.items() for call in calls for when in When),
    *(Point(mode, "train", When.BEFORE) for mode in (Mode.SYNC, Mode.ASYNC, Mode.CHAINED)),
]
FAST = [point for point in POINTS if point.mode is Mode.SYNC]  # the others in the long suite


def trials() -> list[object]:
    return [
        pytest.param(
            number,
            id=f"trial-{number}-{POINTS[number % len(POINTS)]}",
            marks=() if number < len(POINTS) and POINTS[number] in FAST else pytest.mark.long,
        )
        for number in range(TRIALS)
    ]


@pytest.mark.parametrize("trial", trials())
def test_nothing_is_lost_or_paid_twice(trial: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point, draw = POINTS[trial % len(POINTS)], random.Random(trial)  # noqa: S311
    job = JOBS[point.mode]
    away_s, round_ = draw.choice(AWAY_S), 1 if point.call == "join" else draw.randint(1, job.rounds)
    victims: list[str] = []

    def kill(node: Running) -> None:
        victims.append(node.machine.name)
        node.world.kill(node.machine.name)

    async def story(world: World) -> None:
        trap = world.trap(point.call, point.when, kill, round=round_)
        await job.submit(world)
        if point.call not in ("refund", "claim"):
            await world.until(lambda: trap.sprung, f"somebody is killed at {point}")
            await trio.sleep(away_s)
            await world.start(victims[0])
        await world.until(lambda: world.state().phase.terminal, "the job ends")
        if point.call == "refund":
            await world.until(lambda: trap.sprung, "the requester is killed at its refund")
            await trio.sleep(away_s)
            await world.start(victims[0])
        state = await world.until_over()
        assert state.phase is Phase.COMPLETED
        if point.call == "claim":
            for node in tuple(world.running.values()):
                with suppress(DflError):  # the killed one's
                    await node.operator.claim(None)
            assert trap.sprung
            await world.start(victims[0])
            await trio.sleep(away_s)
        await check_paid_once(world)

    play(story, tmp_path, monkeypatch, seed=trial, trainers=job.trainers)


async def check_paid_once(world: World) -> None:
    """With everybody back: what was earned is paid, to the wei and once, and the rest went back."""
    await world.claim_all()
    await trio.sleep(5)  # for the rows to hear of it
    world.check_money()
    await world.check_models()
    state = world.state()
    escrow_wei = state.terms.rounds * state.terms.round_budget_wei
    assert state.spent_wei + state.refunded_wei == escrow_wei
    assert sum(int(str(e.args["amount"])) for e in world.job_events("Claimed")) == state.spent_wei
    for node in world.running.values():
        assert not node.given_up
        earned = node.parts.rows.earnings(node.machine.address)
        assert earned.earned_wei == earned.claimed_wei
