"""What the header of a request to the worker says, as the types it was made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dfl_node.train import aggregators, strategies
from dfl_node.train.frames import Frame
from dfl_node.train.trainer import AggregationConfig, DataConfig, LoraConfig, ModelConfig


def model_of(request: Frame) -> ModelConfig:
    fields = dict(request.header["model"])
    for patterns in ("freeze", "personal"):
        fields[patterns] = tuple(fields[patterns])
    if (own := fields["lora"]) is not None:
        fields["lora"] = LoraConfig(own["rank"], own["alpha"], tuple(own["targets"]))
    return ModelConfig(**fields)


def base_of(request: Frame) -> Path | None:
    """The file of the base that the request's model names."""
    path = request.header.get("base_path")
    return None if path is None else Path(path)


def rule_of(request: Frame) -> AggregationConfig:
    """Raises SpecInvalid: both parts are checked before any work."""
    rule = AggregationConfig(**request.header["rule"])
    strategies.check(rule.strategy, rule.strategy_args)
    aggregators.check(rule.aggregator, rule.aggregator_args)
    return rule


def data_of(fields: dict[str, Any]) -> DataConfig:
    first, last, of = fields["shard"]
    return replace(DataConfig(**fields), shard=(first, last, of))
