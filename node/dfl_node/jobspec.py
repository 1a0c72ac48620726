"""The job spec: what a requester wants trained, how, and for how much.

People write TOML; the network keeps the same fields as canonical DAG-CBOR, named by a CID on chain. Both
go through one table of fields, so that what is refused locally is what peers refuse. Which fields fit
together is in `specrules.py`.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dfl_ledger import codec
from dfl_ledger.errors import SpecInvalid, UsageError, VerificationFailed
from dfl_ledger.records import Cid, JobTerms, Mode
from dfl_node import specrewards, specrules
from dfl_node.specfields import Table, choice, cid, name, number, plain_args, texts, vnx, wei, whole
from dfl_node.specrewards import RewardSpec

SPEC_VERSION = 1
MAX_SPEC_BYTES = 64 * 1024
MAX_ROUNDS = 10_000
MAX_NODES = 10_000
MAX_WINDOW_S = 30 * 24 * 3600 - 1
MAX_UPDATE_BYTES = 1 << 30
MAX_PATTERNS = 32  # of parameter names
MAX_STAGES = 64

MODES = {"sync": Mode.SYNC, "async": Mode.ASYNC, "pipeline": Mode.PIPELINE, "chained": Mode.CHAINED}


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on the layers that `targets` match."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    name: str
    args: dict[str, Any]
    base: str | None = None  # CID of a full model file to start from
    freeze: tuple[str, ...] = ()  # patterns of parameter names that stay as the base has them
    personal: tuple[str, ...] = ()  # patterns of what never leaves a node
    lora: LoraSpec | None = None


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    rounds: int
    local_steps: int  # H; in mode pipeline: steps of the whole pipeline in a round
    batch_size: int
    lr: float
    momentum: float
    optimizer: str
    strategy: str
    seed: int
    max_update_bytes: int
    strategy_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    aggregator: str = "mean"
    aggregator_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    time_budget_s: float = 0.0  # a node does as many of its local steps as fit; 0 = half its commit window


@dataclass(frozen=True, slots=True)
class RoundSpec:
    """Who makes a round, and how long each phase may last (seconds)."""

    min_nodes: int
    quorum: int
    open_s: int
    commit_s: int  # in mode chained: the lease of one hop
    reveal_s: int
    aggregate_s: int
    settle_s: int
    challenge_s: int
    sample: int = 0  # mode sync: members drawn for each round; 0 = all of them


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """Mode async: FedBuff (Nguyen et al. 2022, arXiv:2106.06639)."""

    size: int  # updates that make a model
    max_lag: int  # published models that an update's parent may be behind


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """Mode pipeline: the model split over nodes."""

    stages: int
    micro_batches: int  # of a batch, in flight at once
    snapshot_steps: int  # between two snapshots of every stage: what a dead node costs at most


@dataclass(frozen=True, slots=True)
class JobSpec:
    name: str
    app: str
    mode: Mode
    model: ModelSpec
    training: TrainingSpec
    round: RoundSpec
    reward: RewardSpec
    buffer: BufferSpec | None = None  # of mode async alone
    pipeline: PipelineSpec | None = None  # of mode pipeline alone

    @property
    def budget_wei(self) -> int:
        return self.reward.round_budget_wei * self.training.rounds

    @property
    def validation(self) -> Cid:
        """The validation file. Raises SpecInvalid before it has been published."""
        return cid("reward.validation", self.reward.validation)

    @property
    def target(self) -> int:
        """Contributions that end COMMIT at once; 0 = those of all members."""
        if self.buffer is not None:
            return self.buffer.size
        if self.pipeline is not None:  # every stage, and who feeds it unless it must hold a stage too
            return min(self.pipeline.stages + 1, self.round.min_nodes)
        return self.round.sample

    def with_validation(self, published: Cid, anchor: bytes = b"") -> JobSpec:
        """With its validation file or, if it is sealed, its list of shards and their keys' anchor."""
        reward = dataclasses.replace(
            self.reward, validation=str(published), seal_anchor=anchor.hex() if anchor else ""
        )
        return dataclasses.replace(self, reward=reward)

    def encode(self) -> bytes:
        """Canonical bytes; the same spec always has the same CID."""
        self.validation  # noqa: B018  an unpublished validation set must not reach the network
        of_mode = {"async": self.buffer, "pipeline": self.pipeline}
        return codec.encode(
            {
                "version": SPEC_VERSION,
                "name": self.name,
                "app": self.app,
                "mode": self.mode.name.lower(),
                "model": _without_none(dataclasses.asdict(self.model)),
                "training": dataclasses.asdict(self.training),
                "round": dataclasses.asdict(self.round),
                "reward": specrewards.encode(self.reward),
                **{table: dataclasses.asdict(own) for table, own in of_mode.items() if own is not None},
            }
        )

    def terms(self, spec: Cid, model: Cid) -> JobTerms:
        """What goes on chain."""
        return JobTerms(
            spec=spec,
            model=model,
            mode=self.mode,
            rounds=self.training.rounds,
            quorum=self.round.quorum,
            min_nodes=self.round.min_nodes,
            open_window_s=self.round.open_s,
            commit_window_s=self.round.commit_s,
            reveal_window_s=self.round.reveal_s,
            aggregate_window_s=self.round.aggregate_s,
            target=self.target,
            settle_window_s=self.round.settle_s,
            challenge_window_s=self.round.challenge_s,
            round_budget_wei=self.reward.round_budget_wei,
            required_stake_wei=self.reward.required_stake_wei,
            bond_wei=self.reward.bond_wei,
            score_window_s=self.reward.score_s,
            evaluators=self.reward.evaluators,
            audits=self.reward.audits,
            data_bps=self.reward.shares.data_bps,
            model_bps=self.reward.shares.model_bps,
            algorithm_bps=self.reward.shares.algorithm_bps,
            evaluator_bps=self.reward.shares.evaluators_bps,
            model_asset=self.reward.model_asset,
            algorithm_asset=self.reward.algorithm_asset,
            seal_anchor=bytes.fromhex(self.reward.seal_anchor) or bytes(32),
        )


def parse(text: str) -> JobSpec:
    """A spec from the requester's TOML. Raises SpecInvalid with the field's name, UsageError for bad TOML."""
    try:
        if len(text.encode()) > MAX_SPEC_BYTES:
            raise UsageError("the job spec is too large", why=f"more than {MAX_SPEC_BYTES} bytes")
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as bad:  # not only TOMLDecodeError: numbers too long, tables too deep
        why = f"{bad}"[:200]
        raise UsageError("the job spec is not TOML", why=why, help_command="dfl-node job check FILE") from bad
    return _read(Table(values, ""), money=vnx, money_suffix="")


def decode(data: bytes) -> JobSpec:
    """A published spec. Raises SpecInvalid; hostile bytes are refused before they take memory."""
    try:
        values = codec.decode(data, max_bytes=MAX_SPEC_BYTES)
    except VerificationFailed as bad:  # of bytes that its CID names: final, so nobody waits for better ones
        raise SpecInvalid("(all)", bad.why) from bad
    table = Table(values, "(all)" if not isinstance(values, dict) else "")
    table.take("version", whole(SPEC_VERSION, SPEC_VERSION))
    spec = _read(table, money=wei, money_suffix="_wei")
    spec.validation  # noqa: B018  must be a CID by now
    return spec


def _read(top: Table, *, money: Callable[[str, Any], int], money_suffix: str) -> JobSpec:
    job_name = top.take("name", name)
    app = top.take("app", name)
    mode = MODES[top.take("mode", choice(*MODES), "sync")]
    model = _read_model(top.table("model"))
    training = _read_training(top.table("training"))
    pipeline = _read_pipeline(top.optional("pipeline")) if mode is Mode.PIPELINE else None
    buffer = top.optional("async") if mode is Mode.ASYNC else None
    round_, buffer_ = _read_round(top.table("round"), pipeline, buffer)

    reward = specrewards.read(top.table("reward"), mode, money=money, money_suffix=money_suffix)
    for other in ("async", "pipeline"):
        if other in top:
            raise SpecInvalid(
                other, f"is a table of mode {other}, and this job's mode is {mode.name.lower()}"
            )
    top.end()
    spec = JobSpec(job_name, app, mode, model, training, round_, reward, buffer_, pipeline)
    specrules.check(spec)
    return spec


def _read_model(table: Table) -> ModelSpec:
    patterns = texts(MAX_PATTERNS)
    lora = None
    if (own := table.optional("lora")).given:
        lora = LoraSpec(
            rank=own.take("rank", whole(1, 1024)),
            alpha=own.take("alpha", number(0, 10_000, above=True), 8.0),
            targets=own.take("targets", patterns, ["*"]),
        )
        own.end()
    model = ModelSpec(
        name=table.take("name", name),
        args=table.take("args", plain_args, {}),
        base=table.take("base", _cid_text, None) if "base" in table else None,
        freeze=table.take("freeze", patterns, []),
        personal=table.take("personal", patterns, []),
        lora=lora,
    )
    table.end()
    return model


def _read_training(table: Table) -> TrainingSpec:
    training = TrainingSpec(
        rounds=table.take("rounds", whole(1, MAX_ROUNDS)),
        local_steps=table.take("local_steps", whole(1, 100_000)),
        batch_size=table.take("batch_size", whole(1, 65_536)),
        lr=table.take("lr", number(0, 100, above=True)),
        momentum=table.take("momentum", number(0, 0.9999), 0.9),
        optimizer=table.take("optimizer", choice("sgd", "adamw"), "sgd"),
        strategy=table.take("strategy", name, "fedavg"),
        seed=table.take("seed", whole(0, 2**31 - 1), 1),
        max_update_bytes=table.take("max_update_bytes", whole(1, MAX_UPDATE_BYTES), 64 * 1024 * 1024),
        strategy_args=table.take("strategy_args", plain_args, {}),
        aggregator=table.take("aggregator", name, "mean"),
        aggregator_args=table.take("aggregator_args", plain_args, {}),
        time_budget_s=table.take("time_budget_s", number(0, MAX_WINDOW_S), 0),
    )
    table.end()
    return training


def _read_round(
    table: Table, pipeline: PipelineSpec | None, buffered: Table | None
) -> tuple[RoundSpec, BufferSpec | None]:
    window = whole(1, MAX_WINDOW_S)
    min_nodes = table.take("min_nodes", whole(1, MAX_NODES))
    quorum, buffer = max(1, min_nodes // 2 + 1), None
    if pipeline is not None:
        quorum = pipeline.stages
    if buffered is not None:
        buffer = _read_buffer(buffered, default_size=quorum)
        quorum = max(1, buffer.size - 1)  # who dies between commit and reveal must not void the round
    round_ = RoundSpec(
        min_nodes=min_nodes,
        quorum=table.take("quorum", whole(1, MAX_NODES), quorum),
        open_s=table.take("open_s", window, 600),
        commit_s=table.take("commit_s", window, 120),
        reveal_s=table.take("reveal_s", window, 60),
        aggregate_s=table.take("aggregate_s", window, 120),
        settle_s=table.take("settle_s", whole(2, MAX_WINDOW_S), 3600),
        challenge_s=table.take("challenge_s", window, 600),
        sample=table.take("sample", whole(0, MAX_NODES), 0),
    )
    table.end()
    return round_, buffer


def _read_buffer(table: Table, *, default_size: int) -> BufferSpec:
    buffer = BufferSpec(
        size=table.take("size", whole(1, MAX_NODES), default_size),
        max_lag=table.take("max_lag", whole(0, 1000), 16),
    )
    table.end()
    return buffer


def _read_pipeline(table: Table) -> PipelineSpec:
    pipeline = PipelineSpec(
        stages=table.take("stages", whole(1, MAX_STAGES), 2),
        micro_batches=table.take("micro_batches", whole(1, 1024), 4),
        snapshot_steps=table.take("snapshot_steps", whole(1, 100_000), 20),
    )
    table.end()
    return pipeline


def _cid_text(field: str, value: Any) -> str:
    return str(cid(field, value))


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}
