"""From a model file and the accepted updates to the next one, as a rule has it: elementwise float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dfl_node.train import aggregators, strategies
from dfl_node.train.aggregators import arrays
from dfl_node.train.aggregators.arrays import Array64
from dfl_node.train.strategies import CONTROL, SERVER, Step
from dfl_node.train.tensors import Array, State
from dfl_node.train.trainer import PLAIN, AggregationConfig

Weighted = tuple[State, float]  # an update's tensors, and its weight


def first_file(shared: Mapping[str, Array], rule: AggregationConfig) -> State:
    """The first model file: a shared state and the strategy's server state beside it."""
    args = strategies.check(rule.strategy, rule.strategy_args)
    kept = {
        f"{SERVER}{what}.{name}": np.full_like(tensor, fill(args))
        for what, fill in strategies.find(rule.strategy).server.items()
        for name, tensor in shared.items()
    }
    return {**shared, **kept}


def shared_part(file: Mapping[str, Array]) -> State:
    """What of a model file or of an update is the model's."""
    return {name: tensor for name, tensor in file.items() if not name.startswith((SERVER, CONTROL))}


def control_part(file: Mapping[str, Array]) -> State:
    """The control variate of an update, of a node's local state, by the names of the model's tensors."""
    return {name.removeprefix(CONTROL): tensor for name, tensor in file.items() if name.startswith(CONTROL)}


def next_file(parent: Mapping[str, Array], updates: Sequence[Weighted], rule: AggregationConfig) -> State:
    """The model file that follows, in the parent's dtypes; the parent itself if there are no updates.

    Numbers that leave float32 come out as Inf: whoever encodes the file refuses it.
    """
    if not updates:
        return dict(parent)
    strategy, args = strategies.find(rule.strategy), strategies.check(rule.strategy, rule.strategy_args)
    weights = [weight for _, weight in updates]
    deltas = _combined([shared_part(update) for update, _ in updates], weights, rule)
    # Apart from the deltas: theirs are other units, and the longer of the two would decide who is near whom.
    controls = (
        _combined([control_part(update) for update, _ in updates], weights, rule) if strategy.control else {}
    )
    result: State = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, tensor in shared_part(parent).items():
            kept = {what: parent[f"{SERVER}{what}.{name}"].astype(np.float64) for what in strategy.server}
            step = Step(deltas[name], controls.get(name), len(updates))
            moved, kept = strategy.apply(tensor.astype(np.float64), kept, step, args)
            result[name] = moved.astype(tensor.dtype)
            for what, value in kept.items():
                result[f"{SERVER}{what}.{name}"] = value.astype(tensor.dtype)
    return result


def coalition(parent: Mapping[str, Array], updates: Sequence[Weighted]) -> State:
    """The shared state that some updates alone would give, for scoring: parent minus their weighted mean."""
    return next_file(
        shared_part(parent), [(shared_part(update), weight) for update, weight in updates], PLAIN
    )


def mean(updates: Sequence[Weighted]) -> State:
    """Their weighted mean step, in float64."""
    weights = [weight for _, weight in updates]
    return dict(_combined([update for update, _ in updates], weights, PLAIN))


def _combined(
    vectors: Sequence[State], weights: Sequence[float], rule: AggregationConfig
) -> dict[str, Array64]:
    plan = aggregators.plan(rule.aggregator, rule.aggregator_args, weights, lambda: arrays.distances(vectors))
    return arrays.execute(plan, vectors)
