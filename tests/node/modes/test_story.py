from __future__ import annotations
from pathlib import Path
import pytest
from dfl_ledger.records import Phase
from tests.node.modes.world import BUDGET_WEI, World, play

def test_three_nodes_complete_a_job_and_every_claim_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        await world.submit()
        state = await world.until_over()
        assert (state.phase, state.completed) == (Phase.COMPLETED, 3)
        await world.check_end()
        print(world.now(), [ (e.name, e.args) for e in world.job_events("Settled")])
    play(story, tmp_path, monkeypatch)
