"""Stages of a model: what a node asks of its trainer in mode pipeline. Neither torch nor numpy.

    stage = await trainer.open_stage(config, parent=model, snapshot=None)
    y = await stage.forward(micro, x)  # down the line
    gradient = await stage.backward(micro, g)  # and up again
    await stage.step()  # when all micro-batches of the step are back

A model is cut at names out of `models.cuts(model)` into pieces that one tensor passes between (GPipe, Huang
et al. 2019, arXiv:1811.06965). `ProcessTrainer` and `MemoryTrainer` both are a `StageTrainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol

from dfl_ledger.errors import DflError, SpecInvalid, UpdateRefused

if TYPE_CHECKING:
    from dfl_node.train.trainer import DataConfig, ModelConfig, TrainingConfig

ARRAY_DTYPE_BYTES = {"F32": 4, "U8": 1, "I64": 8}
MAX_ARRAY_BYTES = 256 << 20
MAX_ARRAY_DIMENSIONS = 8
OPTIMIZER_SLOTS = {"sgd": ("velocity",), "adamw": ("first", "second")}  # what each keeps a parameter

# What a worker that splits models takes before it holds a stage: private memory, which `max_memory_bytes`
# bounds.
WORKER_BYTES = 352 << 20
_GRADIENTS = 2  # for each weight: those added up so far, and those of the micro-batch at hand


class StageLost(DflError):
    """The worker that held this stage is gone: killed, out of memory, or replaced. Whoever wants to go on
    opens the stage from a snapshot."""


@dataclass(frozen=True, slots=True)
class Array:
    """A tensor between stages, C order, little-endian. Raises UpdateRefused if bytes and shape disagree."""

    shape: tuple[int, ...]
    dtype: str  # a key of ARRAY_DTYPE_BYTES
    data: bytes

    def __post_init__(self) -> None:
        expected = array_bytes(self.shape, self.dtype)
        if len(self.data) != expected:
            raise array_refusal(f"{len(self.data)} bytes, but {self.dtype} {list(self.shape)} has {expected}")


def array_bytes(shape: Sequence[int], dtype: str) -> int:
    """What such an array takes: a peer's word, to be checked before memory is taken. Raises UpdateRefused."""
    if dtype not in ARRAY_DTYPE_BYTES:
        raise array_refusal(f"dtype {dtype!r:.20} is not one of {', '.join(ARRAY_DTYPE_BYTES)}")
    if not 1 <= len(shape) <= MAX_ARRAY_DIMENSIONS:
        raise array_refusal(f"{len(shape)} dimensions, not 1 to {MAX_ARRAY_DIMENSIONS}")
    if any(type(side) is not int or not 1 <= side <= MAX_ARRAY_BYTES for side in shape):
        raise array_refusal(f"shape {str(list(shape))[:80]}")
    size = prod(shape) * ARRAY_DTYPE_BYTES[dtype]
    if size > MAX_ARRAY_BYTES:
        raise array_refusal(f"{size} bytes, more than the {MAX_ARRAY_BYTES} allowed")
    return size


@dataclass(frozen=True, slots=True)
class StageConfig:
    """One stage of a pipelined run."""

    model: ModelConfig
    training: TrainingConfig
    cuts: tuple[
        str, ...
    ]  # where stages 1, 2, … begin: stages - 1 names out of `models.cuts(model)`, in order
    index: int  # this stage, from 0
    micro_batches: int  # M of a step
    rows: int  # of a micro-batch

    @property
    def stages(self) -> int:
        return len(self.cuts) + 1


@dataclass(frozen=True, slots=True)
class SegmentCost:
    """What the piece of a model from one possible cut to the next takes. Estimates, all but the first."""

    name: str  # of the cut it begins at; "" for the first piece
    parameter_bytes: int
    activation_bytes: int  # a row: what is kept from forward to backward
    flops: int  # a row: forward and backward
    frozen_bytes: int = 0  # of the parameters: these have no gradient and no optimizer's state
    passes_bytes: int = 0  # a row: what leaves it forward; its gradient, as large, comes back


def stage_memory_bytes(costs: Sequence[SegmentCost], config: StageConfig) -> int:
    """What a stage takes in its worker, beyond WORKER_BYTES. `costs` are those of its own pieces.

    At most `stages - index` micro-batches are in flight (1F1B: PipeDream-flush, Narayanan et al. 2021,
    arXiv:2006.09503), and one more is at hand.
    """
    weights = sum(cost.parameter_bytes for cost in costs)
    trained = weights - sum(cost.frozen_bytes for cost in costs)
    kept = sum(cost.activation_bytes for cost in costs) * config.rows
    in_flight = min(config.stages - config.index, config.micro_batches)
    beside = _GRADIENTS + len(OPTIMIZER_SLOTS[config.training.optimizer])
    return weights + trained * beside + kept * (in_flight + 1)


class Stage(Protocol):
    """A stage under training, with an optimizer of its own.

    UpdateRefused blames whoever made the array that was passed in: shape, dtype, NaN, Inf. DflError: this
    stage itself left the finite numbers. StageLost ends it. Each micro-batch of a step goes forward once and
    comes backward once, in any order: the result does not depend on it.
    """

    @property
    def steps(self) -> int:
        """Optimizer steps done since the round's parent."""
        ...

    async def forward(self, micro: int, x: Array) -> Array:
        """What the next stage gets. Kept until `backward`."""
        ...

    async def backward(self, micro: int, gradient: Array) -> Array | None:
        """The gradient for the stage before, from the one for this stage's output. None from stage 0."""
        ...

    async def last(self, micro: int, x: Array, labels: Array) -> tuple[float, Array | None]:
        """The last stage's part, also of a model in one piece: forward, mean loss, backward. Instead of
        `forward` and `backward`; None as gradient if this is stage 0 too."""
        ...

    async def step(self) -> int:
        """One optimizer step along the mean of the micro-batches' gradients, when all are back: added up from
        micro-batch 0 on. Answers `steps`."""
        ...

    async def snapshot(self) -> bytes:
        """Weights, optimizer state and steps as one file, to go on from bit for bit. Taken between two steps:
        micro-batches under way are not in it."""
        ...

    async def aclose(self) -> None:
        """Give its memory back. Idempotent; never raises StageLost."""
        ...


class Feed(Protocol):
    """A node's rows as micro-batches: those of step s are the s-th batch of an endless shuffle."""

    async def batch(self, step: int, micro: int) -> tuple[Array, Array]:
        """Rows (batch_size / micro_batches, *shape) and their labels; the same for the same arguments."""
        ...

    async def aclose(self) -> None: ...


class StageTrainer(Protocol):
    """What a trainer does for mode pipeline. Passes tests/conformance/stages.py."""

    async def segment_costs(self, model: ModelConfig) -> tuple[SegmentCost, ...]:
        """One a piece between neighbouring possible cuts, in order: one more than there are cuts."""
        ...

    async def open_stage(self, config: StageConfig, parent: bytes | None, snapshot: bytes | None) -> Stage:
        """From `snapshot`; without one from the round's parent, a shared-state file, and a fresh optimizer.

        Raises UpdateRefused for a hostile file, SpecInvalid for a split that is none.
        """
        ...

    async def open_feed(
        self,
        data: DataConfig,
        model: ModelConfig,
        training: TrainingConfig,
        *,
        micro_batches: int,
        seed: tuple[int, ...],
    ) -> Feed: ...

    async def inspect_stage(self, model: ModelConfig, cuts: Sequence[str], data: bytes) -> tuple[int, int]:
        """Which stage's snapshot this is, and its steps. Raises UpdateRefused if it is no sound one."""
        ...

    async def restack(
        self, model: ModelConfig, cuts: Sequence[str], snapshots: Sequence[bytes], *, max_update_bytes: int
    ) -> bytes:
        """The weights of all stages, given in order, as one shared-state file. Raises UpdateRefused, which
        names the stage that does not fit."""
        ...


def check_config(config: StageConfig) -> None:
    """Raises SpecInvalid for what can be told without the model."""
    if config.training.optimizer not in OPTIMIZER_SLOTS:
        known = " or ".join(OPTIMIZER_SLOTS)
        raise SpecInvalid("training.optimizer", f"must be {known}, not {config.training.optimizer!r:.40}")
    if config.model.personal:
        why = "needs the whole model beside the rows: not in mode pipeline, where it is split"
        raise SpecInvalid("model.personal", why)
    if not 0 <= config.index < config.stages:
        raise SpecInvalid("pipeline.stages", f"is {config.stages}: there is no stage {config.index}")


def micro_batch_rows(training: TrainingConfig, micro_batches: int) -> int:
    """Rows of a micro-batch. Raises SpecInvalid."""
    if micro_batches < 1 or training.batch_size % micro_batches:
        why = f"is {micro_batches}, which does not divide training.batch_size = {training.batch_size}"
        raise SpecInvalid("pipeline.micro_batches", why)
    return training.batch_size // micro_batches


def check_cuts(cuts: Sequence[str], possible: Sequence[str]) -> None:
    """Raises SpecInvalid unless `cuts` are some of the possible ones, in their order."""
    places = [possible.index(cut) if cut in possible else -1 for cut in cuts]
    if -1 in places or places != sorted(set(places)):
        known = ", ".join(possible) or "none"
        why = f"cut at {', '.join(cuts)[:200]}, but this model can be cut, in this order, at {known}"
        raise SpecInvalid("pipeline.stages", why)


def array_refusal(why: str) -> UpdateRefused:
    return UpdateRefused("array between stages refused", why=why)
