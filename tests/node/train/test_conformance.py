"""One suite for the twin and the trainer with a process of its own."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.process import open_trainer
from dfl_node.train.trainer import Trainer
from tests.conformance import trainer as suite
from tests.conformance import trainer_audit, trainer_rules, trainer_scores, trainer_transfer

WITHIN_S = 180.0  # all checks on one worker, on a machine that may be busy
CHECKS = (
    *trainer_rules.CHECKS,
    *trainer_scores.CHECKS,
    *trainer_transfer.CHECKS,
    *trainer_audit.CHECKS,
    *suite.CHECKS,  # the last one closes the trainer
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_memory(check: suite.Check) -> None:
    async def main() -> None:
        with trio.fail_after(WITHIN_S):
            await check(await suite.World.of(MemoryTrainer()))

    trio.run(main)


def test_process() -> None:
    """Every check on one worker: it takes seconds to start."""

    async def main() -> None:
        with trio.fail_after(WITHIN_S):
            async with open_trainer() as trainer:
                world = await suite.World.of(trainer)
                for check in CHECKS:
                    try:
                        await check(world)
                    except BaseException as failed:
                        failed.add_note(f"in {check.__name__}")
                        raise

    trio.run(main)


def test_both_are_trainers() -> None:
    """mypy holds these assignments to the Protocol."""
    twin: type[Trainer] = MemoryTrainer
    assert {name for name in vars(Trainer) if not name.startswith("_")} <= set(dir(twin))


def test_twin_takes_the_time_it_is_told() -> None:
    async def main() -> None:
        trainer = MemoryTrainer(train_s=30.0)
        parent = await trainer.init_model(suite.MODEL, 1)
        began = trio.current_time()
        update = await trainer.train(suite.assignment(parent))
        assert trio.current_time() - began == update.train_s == 30.0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
