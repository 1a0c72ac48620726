"""The `Trainer` Protocol: a piece of training in, a `ModelUpdate` out.

`ProcessTrainer` runs torch in a process of its own, so that an out-of-memory kill costs one assignment and
not the node; `MemoryTrainer` is its twin. Nothing in this module imports torch or numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model of the registry (`dfl_node.train.models`) by name and arguments."""

    name: str  # "cnn", "mlp" ...
    args: dict[str, Any]  # plain JSON values


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    local_steps: int  # H
    batch_size: int
    lr: float
    momentum: float
    optimizer: str  # "sgd" | "adamw"
    seed: int
    max_update_bytes: int


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which rows this node holds: an application's data, split, and the parts that are ours."""

    app: str  # entry point name in the group `dfl.apps`
    path: str | None  # the application's own default if None
    shard: tuple[int, int, int]  # (first, last, of): parts first..last of `of`, counted from 1
    dirichlet_alpha: float | None  # None = IID


@dataclass(frozen=True, slots=True)
class Assignment:
    """Train `parent` for a round on our data."""

    job: int
    round: int
    parent: bytes  # safetensors: every parameter and buffer, float32 unless the model says otherwise
    model: ModelConfig
    training: TrainingConfig
    data: DataConfig
    node_seed: int  # differs per node, so that two nodes with the same data do not do the same work


@dataclass(frozen=True, slots=True)
class ModelUpdate:
    """A pseudo-gradient: parent minus trained, tensor by tensor (DiLoCo's sign, arXiv:2311.08105)."""

    delta: bytes  # safetensors, same names, shapes and dtypes as the parent
    samples: int  # training samples processed: steps done * batch size
    loss: float  # mean training loss over the last tenth of the steps
    train_s: float  # seconds in the training loop alone


@dataclass(frozen=True, slots=True)
class Verdict:
    """What aggregation made of one update: accepted, or refused and why."""

    accepted: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Aggregate:
    model: bytes  # safetensors
    verdicts: tuple[Verdict, ...]  # one an update, in the order given


@dataclass(frozen=True, slots=True)
class Evaluation:
    accuracy: float  # share of correct answers, NaN for a regression
    loss: float
    samples: int


class Trainer(Protocol):
    """Raises UpdateRefused for hostile files, DflError for a dead worker.

    Passes tests/conformance/trainer.py.
    """

    async def init_model(self, model: ModelConfig, seed: int) -> bytes:
        """Fresh parameters, the same bytes for the same arguments."""
        ...

    async def train(self, assignment: Assignment) -> ModelUpdate: ...

    async def aggregate(
        self,
        model: ModelConfig,
        parent: bytes,
        updates: Sequence[tuple[bytes, int]],
        *,
        max_update_bytes: int,
    ) -> Aggregate:
        """FedAvg (McMahan et al. 2017, arXiv:1602.05629): parent - sum(n_k * delta_k) / sum(n_k).

        `updates` are (safetensors, samples) in the order fixed by the caller; the arithmetic runs in that
        order in float64, so that every node derives the same bytes. A refused update has weight zero; with
        none accepted the parent comes back unchanged.
        """
        ...

    async def score(
        self,
        model: ModelConfig,
        parent: bytes,
        updates: Sequence[tuple[bytes, int]],
        validation: bytes,
        *,
        method: str,
        max_update_bytes: int,
    ) -> tuple[int, ...]:
        """Each update's worth in 1e-9 of validation loss, 0 for a refused one.

        `method` is "shapley" (exact, up to 8 updates) or "leave-one-out". `validation` is an NPZ file with
        X and y as the application wrote it (no pickle).
        """
        ...

    async def evaluate(self, model: ModelConfig, parameters: bytes, data: bytes) -> Evaluation:
        """Accuracy and loss on an NPZ file with X and y."""
        ...

    async def validation_rows(self, app: str) -> bytes:
        """An application's validation rows as an NPZ file, for a requester to publish."""
        ...

    async def aclose(self) -> None:
        """End the worker process."""
        ...
