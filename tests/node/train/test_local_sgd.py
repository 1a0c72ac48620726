"""Local steps: the optimizers against torch's own, the batches, and what is left of chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, count, islice

import numpy as np
import pytest
import torch
from torch.nn import functional

from dfl_ledger.errors import DflError, UsageError
from dfl_node.train import evaluation, local_sgd, models
from dfl_node.train.evaluation import Inputs
from dfl_node.train.rows import Rows
from dfl_node.train.trainer import ModelConfig, TrainingConfig

CONFIG = TrainingConfig(
    local_steps=25, batch_size=8, lr=0.05, momentum=0.9, optimizer="sgd", seed=1, max_update_bytes=1 << 20
)
MLP = ModelConfig("mlp", {"hidden": 6})
SEED = local_sgd.seed_words(1, 2, 3)


def inputs(n: int) -> Inputs:
    random = np.random.RandomState(4)
    rows = Rows(random.randint(0, 256, (n, 28, 28)).astype(np.uint8), random.randint(0, 10, n))
    return evaluation.inputs_of(rows, models.kind(MLP))


def fresh() -> torch.nn.Module:
    torch.manual_seed(3)
    return models.build(MLP)


def silent(_: int, __: float) -> None:
    """No progress asked for."""


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizers_are_those_of_torch(optimizer: str) -> None:
    config = replace(CONFIG, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.002)
    data, ours, theirs = inputs(50), fresh(), fresh()
    local_sgd.train(ours, data, config, steps=25, seed=SEED, progress=silent)
    other = (
        torch.optim.SGD(theirs.parameters(), lr=config.lr, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.AdamW(theirs.parameters(), lr=config.lr)
    )
    for places in islice(local_sgd.batches(50, 8, SEED), 25):
        other.zero_grad()
        chosen = torch.from_numpy(places)
        functional.cross_entropy(theirs(data.x[chosen].float() / 255), data.y[chosen]).backward()
        other.step()
    for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-5)


def test_every_row_once_before_any_again() -> None:
    drawn = np.concatenate(list(islice(local_sgd.batches(20, 8, SEED), 5)))  # two passes
    assert sorted(drawn[:20]) == sorted(drawn[20:]) == list(range(20))
    assert drawn[:20].tolist() != drawn[20:].tolist()


def test_a_shard_smaller_than_a_batch_trains() -> None:
    result = local_sgd.train(fresh(), inputs(3), CONFIG, steps=4, seed=SEED, progress=silent)
    assert result.samples == 32
    first = next(local_sgd.batches(3, 8, SEED))
    assert len(first) == 8
    assert set(first) == {0, 1, 2}


def test_seeds_differ_by_any_part() -> None:
    words = {local_sgd.seed_words(*parts).tobytes() for parts in ((1, 2, 3), (1, 2, 4), (12, 3), (1, 23))}
    assert len(words) == 4


def test_loss_is_the_mean_of_the_last_tenth() -> None:
    told: list[float] = []
    config = replace(CONFIG, lr=0.001)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_sgd, "PROGRESS_EVERY_S", -1.0)
        result = local_sgd.train(
            fresh(), inputs(50), config, steps=30, seed=SEED, progress=lambda _, loss: told.append(loss)
        )
    assert len(told) == 30
    assert result.loss == pytest.approx(sum(told[-3:]) / 3)


def test_divergence_is_said() -> None:
    with pytest.raises(DflError, match="training diverged"):
        local_sgd.train(fresh(), inputs(50), replace(CONFIG, lr=1e30), steps=30, seed=SEED, progress=silent)


@pytest.mark.parametrize(
    ("shape", "label", "why"),
    [((5, 5), 1, "rows of"), ((28, 28), 10, "label 10, but the model knows 0 to 9")],
)
def test_rows_that_do_not_fit(shape: tuple[int, ...], label: int, why: str) -> None:
    rows = Rows(np.zeros((2, *shape), np.uint8), np.array([0, label]))
    with pytest.raises(UsageError, match=why):
        evaluation.inputs_of(rows, models.kind(MLP))


def test_evaluation_is_independent_of_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = inputs(70), fresh()
    whole = evaluation.evaluate(model, data)
    monkeypatch.setattr(evaluation, "BATCH", 9)
    parts = evaluation.evaluate(model, data)
    assert parts.accuracy == whole.accuracy
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    logits = model(data.x.float() / 255)
    assert whole.loss == pytest.approx(functional.cross_entropy(logits, data.y).item(), rel=1e-5)


# -- time budget ------------------------------------------------------------------------------------------
def paced(step_s: float, first_s: float | None = None) -> tuple[Callable[[], float], list[None]]:
    """A clock by which every step takes `step_s`, the first one `first_s`: it is read once a step."""
    first_s = step_s if first_s is None else first_s
    readings = chain([0.0, first_s], (first_s + k * step_s for k in count(1)))
    read: list[None] = []

    def clock() -> float:
        read.append(None)
        return next(readings)

    return clock, read


@pytest.mark.parametrize(
    ("step_s", "first_s", "budget_s", "done"),
    [
        (0.01, 0.01, None, 25),  # no budget
        (0.01, 0.01, 10.0, 25),  # more than enough
        (1.0, 1.0, 10.5, 10),  # the 11th would end at 11
        (10.0, 10.0, 10.5, 1),  # ten times slower, ten times less
        (60.0, 60.0, 10.5, 1),  # one step is always done
        (1.0, 1.0, 0.0, 1),
        (10.0, 10.0, 15.0, 1),  # a slow device must not take a second step on trust
        (0.25, 0.5, 3.5, 13),  # the first step's warm-up is no measure of the others
    ],
)
def test_a_time_budget(step_s: float, first_s: float, budget_s: float | None, done: int) -> None:
    clock, _ = paced(step_s, first_s)
    data, model = inputs(50), fresh()
    result = local_sgd.train(
        model, data, CONFIG, steps=25, seed=SEED, progress=silent, budget_s=budget_s, clock=clock
    )
    assert result.steps == done
    assert result.samples == result.steps * CONFIG.batch_size
    same = fresh()
    local_sgd.train(same, data, CONFIG, steps=result.steps, seed=SEED, progress=silent)
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_slow_node_does_less_and_is_not_late() -> None:
    for step_s in (0.1, 0.7, 1.3):
        clock, read = paced(step_s)
        result = local_sgd.train(
            fresh(), inputs(50), CONFIG, steps=25, seed=SEED, progress=silent, budget_s=6.0, clock=clock
        )
        assert result.steps == min(25, int(6.0 / step_s))
        assert len(read) == result.steps + 2  # at the beginning, after each step, at the end


def test_frozen_parameters_stay() -> None:
    model, before = fresh(), fresh()
    frozen, *rest = model.parameters()
    frozen.requires_grad_(False)
    local_sgd.train(model, inputs(50), CONFIG, steps=3, seed=SEED, progress=silent)
    untouched, *others = before.parameters()
    assert torch.equal(frozen, untouched)
    assert not any(torch.equal(one, other) for one, other in zip(rest, others, strict=True))
