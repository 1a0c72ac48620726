"""Which fields of a job spec fit together: checked before money is escrowed, and again by every peer.

What needs the tensors themselves (a base of another architecture, patterns that leave nothing to train) is
asked of the trainer at submission: `Trainer.check`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfl_ledger.errors import SpecInvalid
from dfl_ledger.records import Mode
from dfl_node.train import aggregators, models, strategies
from dfl_node.train.trainer import LoraConfig, ModelConfig

if TYPE_CHECKING:
    from dfl_node.jobspec import JobSpec

# SCAFFOLD's control variates describe members that all start from the same model.
ASYNC_STRATEGIES = tuple(name for name in strategies.NAMES if name != "scaffold")
_VALUATIONS = {
    Mode.SYNC: ("shapley", "leave-one-out"),
    Mode.ASYNC: ("shapley", "leave-one-out"),
    Mode.CHAINED: ("hop-gain",),
    Mode.PIPELINE: ("micro-batches",),
}


def valuations(mode: Mode) -> tuple[str, ...]:
    """What may measure the worth of a mode's pieces, the default first."""
    return _VALUATIONS[mode]


def check(spec: JobSpec) -> None:
    """Raises SpecInvalid with the name of the first field that does not fit the others."""
    models.check(model_config(spec))
    strategies.check(spec.training.strategy, spec.training.strategy_args)
    strategies.check_optimizer(spec.training.strategy, spec.training.optimizer)
    aggregators.check(spec.training.aggregator, spec.training.aggregator_args)
    _check_numbers(spec)
    _check_work(spec)
    _check_audits(spec)
    _check_pipeline(spec)


def model_config(spec: JobSpec) -> ModelConfig:
    """What the trainer needs to know of a job's model."""
    own = spec.model
    lora = None if own.lora is None else LoraConfig(own.lora.rank, own.lora.alpha, own.lora.targets)
    return ModelConfig(
        own.name,
        own.args,
        base=own.base,
        seed=spec.training.seed,
        freeze=own.freeze,
        personal=own.personal,
        lora=lora,
    )


def _check_numbers(spec: JobSpec) -> None:
    """How many members, contributions, stages."""
    own = spec.round
    if spec.pipeline is not None and own.min_nodes < spec.pipeline.stages:
        why = f"is {spec.pipeline.stages}, above round.min_nodes = {own.min_nodes}: a stage needs a node"
        raise SpecInvalid("pipeline.stages", why)
    if own.quorum > own.min_nodes:
        raise SpecInvalid("round.quorum", f"is {own.quorum}, above round.min_nodes = {own.min_nodes}")
    if own.sample and spec.mode is not Mode.SYNC:
        raise SpecInvalid("round.sample", "draws members of a round in mode sync alone")
    if own.sample and not own.quorum <= own.sample <= own.min_nodes:
        why = f"is {own.sample}, not from round.quorum = {own.quorum} to round.min_nodes = {own.min_nodes}"
        raise SpecInvalid("round.sample", why)
    if spec.buffer is not None and not own.quorum <= spec.buffer.size <= own.min_nodes:
        least, most = f"round.quorum = {own.quorum}", f"round.min_nodes = {own.min_nodes}"
        raise SpecInvalid("async.size", f"is {spec.buffer.size}, not from {least} to {most}")
    if spec.pipeline is not None and own.quorum != spec.pipeline.stages:
        why = f"is {own.quorum}, not pipeline.stages = {spec.pipeline.stages}: a model needs every stage"
        raise SpecInvalid("round.quorum", why)


def _check_work(spec: JobSpec) -> None:
    """How pieces are made and measured."""
    training, mode = spec.training, spec.mode.name.lower()
    if spec.reward.valuation not in _VALUATIONS[spec.mode]:
        choices = ", ".join(_VALUATIONS[spec.mode])
        raise SpecInvalid("reward.valuation", f"must be one of {choices} in mode {mode}")
    if spec.mode is Mode.ASYNC and training.strategy not in ASYNC_STRATEGIES:
        why = f"must be one of {', '.join(ASYNC_STRATEGIES)} in mode async"
        raise SpecInvalid("training.strategy", why)
    if spec.mode in (Mode.CHAINED, Mode.PIPELINE):  # there is one update at a time, or one model in pieces
        if training.strategy != "fedavg":
            raise SpecInvalid("training.strategy", f"combines updates, of which mode {mode} has none")
        if training.aggregator != "mean":
            raise SpecInvalid("training.aggregator", f"combines updates, of which mode {mode} has none")


def _check_audits(spec: JobSpec) -> None:
    """What an evaluator could not make again from the committed rows alone."""
    if not spec.reward.audits:
        return
    if spec.model.personal:
        raise SpecInvalid(
            "reward.audits", "cannot recompute what depends on model.personal, which never leaves a node"
        )
    if spec.training.strategy == "scaffold":
        raise SpecInvalid(
            "reward.audits", "cannot recompute scaffold, whose control variates stay with the nodes"
        )


def _check_pipeline(spec: JobSpec) -> None:
    own = spec.pipeline
    if own is None:
        return
    cuts = models.cuts(model_config(spec))
    if own.stages > len(cuts) + 1:
        why = f"is {own.stages}, but this {spec.model.name} can be cut into {len(cuts) + 1} at most"
        raise SpecInvalid("pipeline.stages", why)
    if spec.training.batch_size % own.micro_batches:
        why = (
            f"is {own.micro_batches}, which does not divide training.batch_size = {spec.training.batch_size}"
        )
        raise SpecInvalid("pipeline.micro_batches", why)
    if spec.model.personal:
        raise SpecInvalid(
            "model.personal", "needs the whole model beside the rows: not in mode pipeline, where it is split"
        )
