"""The twin's aggregation: the real plans and strategies, on lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dfl_node.train import aggregators, strategies
from dfl_node.train.aggregators import Plan, Sum
from dfl_node.train.memory_files import Numbers, Tensors
from dfl_node.train.strategies import CONTROL, SERVER, Step
from dfl_node.train.trainer import PLAIN, AggregationConfig
from dfl_node.value import duplicates


def first_file(shared: Tensors, rule: AggregationConfig) -> Tensors:
    """A shared state and the strategy's server state."""
    args = strategies.check(rule.strategy, rule.strategy_args)
    fills = {what: fill(args) for what, fill in strategies.find(rule.strategy).server.items()}
    kept = {
        f"{SERVER}{what}.{name}": [fill] * len(numbers)
        for what, fill in fills.items()
        for name, numbers in shared.items()
    }
    return shared | kept


def shared_part(file: Mapping[str, Numbers]) -> Tensors:
    return {name: numbers for name, numbers in file.items() if not name.startswith((SERVER, CONTROL))}


def under(prefix: str, file: Mapping[str, Numbers]) -> Tensors:
    """The tensors PREFIX.NAME by NAME."""
    return {name.removeprefix(prefix): numbers for name, numbers in file.items() if name.startswith(prefix)}


def next_file(parent: Tensors, updates: Sequence[tuple[Tensors, float]], rule: AggregationConfig) -> Tensors:
    """The model file that follows; the parent itself if there are no updates."""
    if not updates:
        return parent
    strategy, args = strategies.find(rule.strategy), strategies.check(rule.strategy, rule.strategy_args)
    weights = [weight for _, weight in updates]
    deltas = _combined([shared_part(update) for update, _ in updates], weights, rule)
    controls = (
        _combined([under(CONTROL, update) for update, _ in updates], weights, rule)
        if strategy.control
        else {}
    )
    result = {name: numbers.copy() for name, numbers in parent.items()}
    for name, numbers in shared_part(parent).items():
        for place, number in enumerate(numbers):
            server = {what: parent[f"{SERVER}{what}.{name}"][place] for what in strategy.server}
            control = controls[name][place] if strategy.control else None
            step = Step(deltas[name][place], control, len(updates))
            result[name][place], kept = strategy.apply(number, server, step, args)
            for what, value in kept.items():
                result[f"{SERVER}{what}.{name}"][place] = value
    return result


def groups(steps: Sequence[Tensors]) -> tuple[int, ...]:
    """For each step the first of its near-duplicates."""

    def dot(one: Tensors, other: Tensors) -> float:
        return math.fsum(x * y for name in one for x, y in zip(one[name], other[name], strict=True))

    squares = [dot(step, step) for step in steps]
    return duplicates.groups(
        len(steps), lambda i, j: duplicates.alike(dot(steps[i], steps[j]), squares[i], squares[j])
    )


def players(updates: Sequence[tuple[Tensors, float]], first: Sequence[int]) -> list[tuple[Tensors, float]]:
    """One update a group of near-duplicates."""
    found = []
    for group in duplicates.members(first):
        steps, weights = zip(*(updates[i] for i in group), strict=True)
        step = _combined(steps, weights, PLAIN) if len(group) > 1 else steps[0]
        found.append((step, max(weights)))
    return found


def _combined(vectors: Sequence[Tensors], weights: Sequence[float], rule: AggregationConfig) -> Tensors:
    flat = [[number for name in sorted(vector) for number in vector[name]] for vector in vectors]
    points = [*flat, [0.0] * len(flat[0])]

    def distances() -> list[list[float]]:
        return [[math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for b in points] for a in points]

    plan = aggregators.plan(rule.aggregator, rule.aggregator_args, weights, distances)
    numbers = iter([_value(plan, column) for column in zip(*flat, strict=True)])
    return {name: [next(numbers) for _ in vectors[0][name]] for name in sorted(vectors[0])}


def _value(plan: Plan, column: Sequence[float]) -> float:
    """What a plan makes of one coordinate of every update."""
    if isinstance(plan, Sum):
        total = 0.0
        for number, weight in zip(column, plan.weights, strict=True):
            total += number * weight
        return total / plan.total
    ordered = sorted(sum(column[k] for k in group) / len(group) for group in plan.groups)
    middle = ordered[plan.trim : len(ordered) - plan.trim]
    return sum(middle) / len(middle)
