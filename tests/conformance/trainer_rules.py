"""What every `Trainer` makes of a round's rule: strategies, aggregators, staleness, time budgets."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import ANY

import pytest

from dfl_ledger.errors import SpecInvalid, UpdateRefused
from dfl_node.train import aggregators, strategies
from dfl_node.train.trainer import AggregationConfig, WeightedUpdate
from tests.conformance.trainer import (
    HOSTILE,
    LIMIT,
    MODEL,
    TRAINING,
    Check,
    World,
    assignment,
    numbers,
    split,
    tensors,
    weigh,
    with_numbers,
)


async def check_staleness(world: World) -> None:
    """An update on a model three versions old is half as long, and so is a step of stale updates alone."""
    second = (await world.trainer.train(assignment(world.parent, node=2))).delta
    for updates in (
        [WeightedUpdate(world.delta, 40, staleness=3), WeightedUpdate(second, 60)],
        [WeightedUpdate(world.delta, 40, staleness=3)],
    ):
        made = (await world.trainer.aggregate(MODEL, world.parent, updates, max_update_bytes=LIMIT)).model
        total = sum(update.samples for update in updates)
        expected = numbers(world.parent)
        for update in updates:
            share = update.samples / total / (1 + update.staleness) ** 0.5
            expected = [e - share * d for e, d in zip(expected, numbers(update.data), strict=True)]
        assert numbers(made) == pytest.approx(expected, abs=1e-6)


async def check_strategies(world: World) -> None:
    """Every strategy's files go round: model file, update, the node's own state, next model file."""
    for name in strategies.NAMES:
        rule = AggregationConfig(name)
        model = await world.trainer.init_model(MODEL, 1, rule)
        assert model == await world.trainer.init_model(MODEL, 1, rule), name
        assert tensors(world.parent).items() <= tensors(model).items(), name
        layout, local, before = split(model)[0], None, model
        for round_ in (1, 2):
            todo = replace(assignment(model, round_=round_), rule=rule, local=local)
            update = await world.trainer.train(todo)
            assert (await world.trainer.train(todo)) == replace(update, train_s=ANY), name
            result = await world.trainer.aggregate(
                MODEL, model, weigh((update.delta, update.samples)), max_update_bytes=LIMIT, rule=rule
            )
            assert result.verdicts[0].accepted, name
            assert split(result.model)[0] == layout, name
            assert result.model != model, name
            model, local = result.model, update.local
            assert (local is not None) == (name == "scaffold")
        scores = await world.trainer.score(
            MODEL,
            before,
            weigh((update.delta, 1)),
            world.validation,
            method="shapley",
            max_update_bytes=LIMIT,
            rule=rule,
        )
        assert len(scores.worths) == 1
        assert scores.worths[0] != 0, name


async def check_server_state(world: World) -> None:
    """DiLoCo's momentum lives in the model file: the second of two equal steps goes further, as it should."""
    rule = AggregationConfig("diloco", {"lr": 0.5, "momentum": 0.8})
    model = await world.trainer.init_model(MODEL, 1, rule)
    delta = tensors(world.delta)
    momentum = {name: [0.0] * len(numbers) for name, numbers in delta.items()}
    for _ in range(2):
        result = await world.trainer.aggregate(
            MODEL, model, weigh((world.delta, 7)), max_update_bytes=LIMIT, rule=rule
        )
        before, after, model = tensors(model), tensors(result.model), result.model
        for name, step in delta.items():
            momentum[name] = [0.8 * u + d for u, d in zip(momentum[name], step, strict=True)]
            moved = [d + 0.8 * u for u, d in zip(momentum[name], step, strict=True)]
            expected = [p - 0.5 * m for p, m in zip(before[name], moved, strict=True)]
            assert after[name] == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert after[f"server.momentum.{name}"] == pytest.approx(momentum[name], rel=1e-5, abs=1e-9)


async def check_control_variates(world: World) -> None:
    """SCAFFOLD: a node's own state comes back to it, changes its next work, and is checked as any file."""
    rule = AggregationConfig("scaffold")
    model = await world.trainer.init_model(MODEL, 1, rule)
    first = await world.trainer.train(replace(assignment(model), rule=rule))
    assert first.local is not None
    sent, own = tensors(first.delta), tensors(first.local)
    for name, expected in own.items():
        assert sent[name] == pytest.approx(expected)  # the first change is from nothing
    assert {name: sent[name] for name in tensors(world.delta)} == tensors(world.delta)  # as without control
    again = replace(assignment(model, round_=2), rule=rule)
    with_own = await world.trainer.train(replace(again, local=first.local))
    assert with_own.delta != (await world.trainer.train(again)).delta
    result = await world.trainer.aggregate(
        MODEL, model, weigh((first.delta, 64)), max_update_bytes=LIMIT, rule=rule
    )
    after = tensors(result.model)
    for name, expected in own.items():
        assert after[f"server.{name}"] == pytest.approx(expected)
    for name in ("NaN", "truncated payload", "missing tensor", "pickle"):
        with pytest.raises(UpdateRefused):
            await world.trainer.train(replace(again, local=HOSTILE[name][0](first.local)))
    without = weigh((world.delta, 64))  # an update that lacks its control variate's change
    refused = await world.trainer.aggregate(MODEL, model, without, max_update_bytes=LIMIT, rule=rule)
    assert "missing" in refused.verdicts[0].why
    assert refused.model == model


async def check_robust_aggregators(world: World) -> None:
    """Two of seven, as large as may be: the mean goes with them, no other rule does."""
    honest = [(await world.trainer.train(assignment(world.parent, node=node))).delta for node in range(5)]
    hostile = with_numbers(world.delta, [9e5] * len(numbers(world.delta)))
    updates = weigh(*((hostile, 10**6) for _ in range(2)), *((delta, 1) for delta in honest))
    furthest = 2 * max(abs(d) for delta in honest for d in numbers(delta))
    start = numbers(world.parent)
    for name in aggregators.NAMES:
        for mixing in (0, 1):
            rule = AggregationConfig("fedavg", {}, name, {"f": 2, "mixing": mixing})
            result = await world.trainer.aggregate(
                MODEL, world.parent, updates, max_update_bytes=LIMIT, rule=rule
            )
            assert all(verdict.accepted for verdict in result.verdicts)
            moved = max(abs(p - q) for p, q in zip(start, numbers(result.model), strict=True))
            if name == "mean":
                assert moved > 1e5
            else:
                assert moved < furthest, (name, mixing)


async def check_impossible_rules(world: World) -> None:
    for rule, field in (
        (AggregationConfig("magic"), "training.strategy"),
        (AggregationConfig("fedadam", {"lr": -1}), "training.strategy_args.lr"),
        (AggregationConfig("fedavg", {}, "nose"), "training.aggregator"),
        (AggregationConfig("fedavg", {}, "median", {"f": 0.5}), "training.aggregator_args.f"),
    ):
        with pytest.raises(SpecInvalid) as caught:
            await world.trainer.aggregate(
                MODEL, world.parent, weigh((world.delta, 1)), max_update_bytes=LIMIT, rule=rule
            )
        assert caught.value.field == field
    scaffold = AggregationConfig("scaffold")
    work = assignment(await world.trainer.init_model(MODEL, 1, scaffold))
    with pytest.raises(SpecInvalid) as caught:
        await world.trainer.train(replace(work, rule=scaffold, training=replace(TRAINING, optimizer="adamw")))
    assert caught.value.field == "training.optimizer"


async def check_time_budget(world: World) -> None:
    """One step at least, all of them when there is time; samples tell."""
    for budget_s, steps in ((0.0, 1), (1e6, TRAINING.local_steps), (None, TRAINING.local_steps)):
        update = await world.trainer.train(replace(assignment(world.parent), time_budget_s=budget_s))
        assert update.samples == steps * TRAINING.batch_size
        assert (update.delta == world.delta) == (steps == TRAINING.local_steps)


CHECKS: tuple[Check, ...] = (
    check_staleness,
    check_strategies,
    check_server_state,
    check_control_variates,
    check_robust_aggregators,
    check_impossible_rules,
    check_time_budget,
)
