"""Any schedule of faults, in any mode, leaves the money in its place and no phase beyond its deadline.

The seed fixes the schedule, the order of tasks and who is drawn: it is all that a failure needs.
`pytest tests/faults/test_seeds.py -k "chained and seed-17"` plays it again.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from dfl_ledger.records import Mode, Phase
from tests.faults.matrix import JOBS, Fault, check_deadlines, play, strike
from tests.node.modes.world import World
from tests.seeds import seeds

FAST, ALL = 4, 200
EVERYBODY = "everybody"
PAUSE_S = 6.0  # between two strokes, on average
SHORTEST_S, LONGEST_S = 2.0, 35.0  # that a fault lasts
LONGEST_OUTAGE_S = 20.0  # of everybody's RPC endpoint


@dataclass(frozen=True)
class Stroke:
    after_s: float  # the one before
    fault: Fault
    whom: str
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.after_s:.1f} s later {self.whom}: {self.fault.name} for {self.lasts_s:.1f} s"


def schedule(draw: random.Random, names: str) -> list[Stroke]:
    strokes = []
    for _ in range(draw.randint(2, 6)):
        fault, whom = draw.choice(list(Fault)), draw.choice(names)
        lasts_s = draw.uniform(SHORTEST_S, LONGEST_S)
        if fault is Fault.RPC_DOWN_FOR_ALL:
            whom, lasts_s = EVERYBODY, min(lasts_s, LONGEST_OUTAGE_S)
        if fault in (Fault.KILLED, Fault.DISK_FULL_FOR_EVER):
            lasts_s = math.inf
        strokes.append(Stroke(draw.expovariate(1 / PAUSE_S), fault, whom, lasts_s))
    return strokes


@pytest.mark.parametrize("seed", seeds(ALL, fast=FAST))
@pytest.mark.parametrize("mode", JOBS, ids=lambda mode: mode.name.lower())
def test_any_schedule_of_faults_ends_with_the_money_in_its_place(
    mode: Mode, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = JOBS[mode]
    strokes = schedule(random.Random(f"{mode.name} {seed}"), "abcdefgh"[: job.trainers])  # noqa: S311
    print(f"{mode.name.lower()}, seed {seed}:", *strokes, sep="\n  ")

    async def story(world: World) -> None:
        suffering: dict[str, Fault] = {}  # one fault at a time

        async def suffer(stroke: Stroke) -> None:
            suffering[stroke.whom] = stroke.fault
            one = "a" if stroke.whom == EVERYBODY else stroke.whom
            await strike(world, mode, stroke.fault, one, for_s=stroke.lasts_s)
            if stroke.lasts_s < math.inf:
                del suffering[stroke.whom]

        await job.submit(world)
        async with trio.open_nursery() as nursery:
            for stroke in strokes:
                await trio.sleep(stroke.after_s)
                if stroke.whom not in suffering:
                    nursery.start_soon(suffer, stroke)
        for name, fault in suffering.items():  # what does not pass by itself
            if fault is Fault.KILLED:
                await world.start(name)
        await world.until(lambda: world.state().phase.terminal, "the job ends")
        for name, fault in suffering.items():
            if fault is Fault.DISK_FULL_FOR_EVER:  # it cannot learn of the end, and has to be stopped
                world.kill(name)
        state = await world.until_over()
        assert state.phase in (Phase.COMPLETED, Phase.FAILED)
        outages_s = sum(s.lasts_s for s in strokes if s.fault is Fault.RPC_DOWN_FOR_ALL)
        check_deadlines(world, outages_s)
        await world.check_end()

    play(story, tmp_path, monkeypatch, seed=seed, trainers=job.trainers)
