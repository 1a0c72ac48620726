"""The demo's model trained in one place, to compare with: beside the network, on what its nodes leave of the
cores."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

if TYPE_CHECKING:
    from dfl_node.jobspec import JobSpec
    from dfl_node.train.trainer import Evaluation

NICE = 10  # the trainers of nodes have 5: they go first


class Comparison:
    """A central run that is begun ahead with as many samples as the network should train on.

    A context manager; leaving it ends the run.
    """

    def __init__(self, spec: JobSpec, samples: int | None) -> None:
        """`samples` is None where nobody can tell them ahead."""
        self._spec = spec
        self._samples = samples
        self._found: Evaluation | None = None
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._under_way = threading.Event()
        self._thread = threading.Thread(target=self._ahead, name="comparison")

    def __enter__(self) -> Self:
        if self._samples is not None:
            self._thread.start()
            self._under_way.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)
            self._thread.join()

    def after(self, samples: int) -> Evaluation:
        """On rows that nobody trained on, after training with `samples`. Raises DflError.

        A run with another number of samples, or one that failed, counts for nothing and is made again.
        """
        if self._token is not None:
            self._thread.join()
        if self._found is None or self._samples != samples:
            return trio.run(_train, self._spec, samples, 0)
        return self._found

    def _ahead(self) -> None:
        try:
            trio.run(self._train_ahead)
        finally:  # whatever happened, nobody waits for it
            self._under_way.set()

    async def _train_ahead(self) -> None:
        from dfl_ledger.errors import DflError

        assert self._samples is not None  # noqa: S101 - else there is no thread
        self._token = trio.lowlevel.current_trio_token()
        self._under_way.set()
        with self._scope, suppress(DflError):
            self._found = await _train(self._spec, self._samples, NICE)


async def _train(spec: JobSpec, samples: int, nice: int) -> Evaluation:
    """On one core: more of them take no time off a model this small."""
    from dfl_node.modes.mode import training_config
    from dfl_node.specrules import model_config
    from dfl_node.train.process import open_trainer

    async with open_trainer(nice=nice) as trainer:
        return await trainer.train_central(model_config(spec), training_config(spec), spec.app, samples)
