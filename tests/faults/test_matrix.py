"""Every mode under every fault: the job ends as it should, in time, and every wei is accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfl_ledger.records import Mode, Phase
from tests.faults.matrix import (
    DOWN_S,
    JOBS,
    Fault,
    check_deadlines,
    play,
    refusals,
    strike,
)
from tests.node.modes.world import World


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize("mode", JOBS, ids=lambda mode: mode.name.lower())
def test_a_job_survives(mode: Mode, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = JOBS[mode]

    async def story(world: World) -> None:
        await job.submit(world)
        victim = await job.at_work(world)
        await strike(world, mode, fault, victim)
        await world.until(lambda: world.state().phase.terminal, "the job ends")
        if fault is Fault.DISK_FULL_FOR_EVER:
            world.kill(victim)
        state = await world.until_over()
        print(
            state.phase,
            state.completed,
            refusals(world, victim),
            world.now() - 1750000000,
            len(world.job_events("RoundVoided")),
        )
        check_deadlines(world, DOWN_S if fault is Fault.RPC_DOWN_FOR_ALL else 0.0)
        assert (state.phase, state.completed) == (Phase.COMPLETED, job.rounds)
        await world.check_end()

    play(story, tmp_path, monkeypatch, trainers=job.trainers)
