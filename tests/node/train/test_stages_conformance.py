"""One suite for the stages of the twin and of the trainer with a process of its own."""

from __future__ import annotations

import pytest
import trio

from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.process import open_trainer
from dfl_node.train.trainer import Trainer
from tests.conformance import stages as suite

WITHIN_S = 300.0  # on a machine that may be busy


async def hold(trainer: Trainer, check: suite.Check) -> None:
    with trio.fail_after(WITHIN_S):
        await check(await suite.World.of(trainer))


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_memory(check: suite.Check) -> None:
    trio.run(hold, MemoryTrainer(), check)


def test_process() -> None:
    """Every check on one worker: it takes seconds to start."""

    async def main() -> None:
        async with open_trainer() as trainer:
            for check in suite.CHECKS:
                try:
                    await hold(trainer, check)
                except BaseException as failed:
                    failed.add_note(f"in {check.__name__}")
                    raise

    trio.run(main)
