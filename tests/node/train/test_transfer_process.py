"""Base models and the worker process: kept on disk, there for every worker, gone with the trainer."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from dfl_ledger.errors import DflError, UsageError
from dfl_node.train.base_files import Bases
from dfl_node.train.frames import WorkerDied
from dfl_node.train.process import open_trainer
from tests.conformance.trainer import MODEL
from tests.conformance.trainer_transfer import BASE, FROZEN

WITHIN_S = 60.0


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(WITHIN_S):
            await story()

    trio.run(bounded)


def sizes(directory: Path) -> list[int]:
    """Bytes of every file in it."""
    return [path.stat().st_size for path in directory.rglob("*") if path.is_file()]


def test_a_base_outlives_a_worker_and_not_the_trainer(temporary: Path) -> None:
    async def main() -> None:
        async with open_trainer() as trainer:
            base = await trainer.init_model(MODEL, 3)
            await trainer.keep_base(BASE, base)
            await trainer.keep_base(BASE, base)
            model = replace(FROZEN, base=BASE)
            parent = await trainer.init_model(model, 1)
            assert trainer.pid is not None
            os.kill(trainer.pid, signal.SIGKILL)
            while trainer.pid is not None:  # noqa: ASYNC110  the kernel takes its time
                await trio.sleep(0.01)
            assert await trainer.export(model, parent) == base
            assert sizes(temporary) == [len(base)]
        assert sizes(temporary) == []
        assert not trainer.has_base(BASE)
        with pytest.raises(WorkerDied, match="closed"):
            await trainer.keep_base(BASE, base)

    run(main)


def test_a_base_that_nobody_gave_is_asked_for_without_a_worker() -> None:
    async def main() -> None:
        async with open_trainer() as trainer:
            with pytest.raises(UsageError, match="the base model 'a-base' is not here"):
                await trainer.check(replace(FROZEN, base=BASE))
            assert trainer.pid is None

    run(main)


def test_a_disk_that_takes_no_base(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "gone"))
    bases = Bases()
    with pytest.raises(DflError, match="cannot be kept"):
        bases.keep(BASE, b"weights")
    assert BASE not in bases
    temporary.joinpath("gone").mkdir()
    bases.keep(BASE, b"weights")
    assert bases.path(BASE).read_bytes() == b"weights"
    bases.close()
    bases.close()
    assert BASE not in bases
