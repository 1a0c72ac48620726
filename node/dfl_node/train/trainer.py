"""The `Trainer` Protocol: a piece of training in, a `ModelUpdate` out.

`ProcessTrainer` runs torch in a process of its own, so that an out-of-memory kill costs one assignment and
not the node; `MemoryTrainer` is its twin. Nothing in this module imports torch or numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dfl_node.train.stage import StageTrainer
from dfl_node.value.scoring import Scores


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on the layers whose names match."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # fnmatch patterns of layer names


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model of the registry (`dfl_node.train.models`) by name and arguments, and which part of it travels.

    Patterns are fnmatch patterns of parameter names; `transfer.parts` tells what becomes of each parameter.
    """

    name: str  # "cnn", "mlp" ...
    args: dict[str, Any]  # plain JSON values
    base: str | None = None  # CID of the full model file that gives what does not travel
    seed: int = 1  # of the initial values that no base gives
    freeze: tuple[str, ...] = ()  # stays as it is, everywhere
    personal: tuple[str, ...] = ()  # trained, and never leaves a node
    lora: LoraConfig | None = None


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
class AggregationConfig:
    """A round's rule: how its updates become one step (`aggregators`), what the step does (`strategies`)."""

    strategy: str = "fedavg"
    strategy_args: dict[str, Any] = field(default_factory=dict)  # plain numbers
    aggregator: str = "mean"
    aggregator_args: dict[str, Any] = field(default_factory=dict)  # plain numbers


PLAIN = AggregationConfig()  # FedAvg: the weighted mean, and nothing else


@dataclass(frozen=True, slots=True)
class WeightedUpdate:
    """An update as it came. It weighs its samples, and is shortened by 1 / sqrt(1 + staleness) (FedBuff,
    Nguyen et al. 2022, arXiv:2106.06639)."""

    data: bytes  # safetensors
    samples: int  # as its node declared them
    staleness: int = 0  # models published between its parent and the round's
    datasets: tuple[int, ...] = ()  # assets that its node declared to have trained on


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
    rule: AggregationConfig = PLAIN
    time_budget_s: float | None = None  # the loop ends before the step that would pass it; one is always done
    local: bytes | None = None  # this node's own state from its last update, None at first
    reference: bool = False  # on one thread, whatever the node gives: an audit can do that again bit for bit


@dataclass(frozen=True, slots=True)
class ModelUpdate:
    """A pseudo-gradient: parent minus trained, tensor by tensor (DiLoCo's sign, arXiv:2311.08105)."""

    delta: bytes  # safetensors, same names, shapes and dtypes as the parent
    samples: int  # training samples processed: steps done * batch size
    loss: float  # mean training loss over the last tenth of the steps
    train_s: float  # seconds in the training loop alone
    local: bytes | None = None  # safetensors for this node's next `Assignment`; never sent to anybody


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows that a node trains on, and what it commits to when it joins an audited job."""

    rows: bytes  # NPZ, as whoever audits gets it
    commitment: bytes  # SHA-256 of the rows themselves, in their order: 32 bytes


@dataclass(frozen=True, slots=True)
class Recomputation:
    """Another node's training as it described it, to be done again."""

    job: int
    round: int
    parent: bytes  # safetensors, as in its `Assignment`
    model: ModelConfig
    training: TrainingConfig
    node_seed: int
    samples: int  # as it declared them: they tell how many steps it took
    shard: bytes  # NPZ, as it opened it
    commitment: bytes  # as it joined with it
    rule: AggregationConfig = PLAIN


@dataclass(frozen=True, slots=True)
class Recomputed:
    delta: bytes  # safetensors: what that work gives here
    distance: float  # ||committed - recomputed|| / ||recomputed||; 0 for the same bytes


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


@dataclass(frozen=True, slots=True)
class Personalized:
    """A model fitted to local rows, and what it was worth before and after on rows kept out of the fit."""

    parameters: bytes  # safetensors: the full model
    before: Evaluation
    after: Evaluation


class Trainer(StageTrainer, Protocol):
    """Raises UpdateRefused for hostile files, DflError for a dead worker.

    Passes tests/conformance/trainer.py.
    """

    async def init_model(self, model: ModelConfig, seed: int, rule: AggregationConfig = PLAIN) -> bytes:
        """The first model file: fresh parameters and what the rule's strategy keeps beside them, the same
        bytes for the same arguments."""
        ...

    async def train(self, assignment: Assignment) -> ModelUpdate: ...

    async def shard(self, data: DataConfig) -> Shard:
        """The rows of a data configuration, in the order in which `train` knows them."""
        ...

    async def recompute(self, work: Recomputation, committed: bytes) -> Recomputed:
        """Do a training again and compare: an audit. It gives the same bytes as `train` with the same rows
        and as many steps by `reference`, whatever time either took: on one kind of processor, that is, and
        within `audit.TOLERANCE` where another one's kernels add up in another order.

        Raises VerificationFailed for a shard that is not the committed one and for samples that no training
        gives, UpdateRefused for a committed file that is no update, SpecInvalid for a job whose updates
        depend on what never leaves a node (`audit.check_recomputable`).
        """
        ...

    async def aggregate(
        self,
        model: ModelConfig,
        parent: bytes,
        updates: Sequence[WeightedUpdate],
        *,
        max_update_bytes: int,
        rule: AggregationConfig = PLAIN,
    ) -> Aggregate:
        """The model file that follows `parent`: the rule's aggregator makes one step of the updates, its
        strategy applies it. By default FedAvg (McMahan et al. 2017, arXiv:1602.05629), parent -
        sum(w_k * delta_k) / sum(w_k).

        The arithmetic runs in the order of the updates, fixed by the caller, in float64, so that every node
        derives the same bytes. A refused update counts for nothing; with none accepted the parent comes back
        unchanged.
        """
        ...

    async def score(
        self,
        model: ModelConfig,
        parent: bytes,
        updates: Sequence[WeightedUpdate],
        validation: bytes,
        *,
        method: str,
        max_update_bytes: int,
        rule: AggregationConfig = PLAIN,
        seed: int = 0,
    ) -> Scores:
        """Each update's worth in 1e-9 of validation loss, 0 for a refused one, and that of each dataset.

        A coalition's model is parent minus its weighted mean step, whatever the rule: a server's optimizer
        mixes earlier rounds into a step, and a robust aggregator gives none for a coalition below its f.
        Near-duplicates (`value.duplicates`) are one member of it and share its worth.
        `method` is "shapley" (exact up to 8, above that estimated: `value.gtg`) or "leave-one-out"; `seed`
        draws what is estimated with. At most `scoring.most_evaluations` models are measured. `validation` is
        an NPZ file with X and y as the application wrote it (no pickle).
        """
        ...

    async def evaluate(self, model: ModelConfig, parameters: bytes, data: bytes) -> Evaluation:
        """Accuracy and loss of a shared state on an NPZ file with X and y."""
        ...

    async def loss(
        self, model: ModelConfig, parameters: bytes, data: bytes, rule: AggregationConfig = PLAIN
    ) -> float:
        """The loss of a model file, with the server state of the rule's strategy in it, on an NPZ file with X
        and y. Personal tensors are fitted to its even rows, and the loss is that of the odd ones."""
        ...

    async def check(self, model: ModelConfig) -> None:
        """Raises SpecInvalid, with the field's name, for a model that cannot be trained: patterns that match
        nothing, nothing left to train or to share, a base of another architecture."""
        ...

    def has_base(self, cid: str) -> bool:
        """Whether `keep_base` was given this file."""
        ...

    async def keep_base(self, cid: str, data: bytes) -> None:
        """The base that models name by this CID. Kept until the trainer is closed."""
        ...

    async def export(self, model: ModelConfig, parameters: bytes, rule: AggregationConfig = PLAIN) -> bytes:
        """A full, plain model file of a model file as it travels: what the base gives is put in, adapters are
        merged, a strategy's server state is left out. Personal tensors are as they were at first: theirs are
        the nodes'."""
        ...

    async def personalize(
        self,
        model: ModelConfig,
        parameters: bytes,
        data: bytes,
        *,
        steps: int,
        lr: float,
        patterns: Sequence[str],
        seed: int,
    ) -> Personalized:
        """Fit a full model file, as `export` gives it, to an NPZ file with X and y: only the parameters whose
        names match one of the fnmatch patterns. A fifth of the rows is kept out of it, to measure with."""
        ...

    async def validation_rows(self, app: str) -> bytes:
        """An application's validation rows as an NPZ file, for a requester to publish."""
        ...

    async def shards(self, validation: bytes, count: int, seed: int) -> tuple[bytes, ...]:
        """Validation rows as `count` NPZ files of their own, no row in two, each with every class
        (`value.shards`). Raises UsageError if there are too few rows for that."""
        ...

    async def aclose(self) -> None:
        """End the worker process."""
        ...
