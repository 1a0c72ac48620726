"""A strategy's part at the member, against torch's own gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfl_node.train import aggregation, evaluation, local_sgd, member, models
from dfl_node.train.evaluation import Inputs
from dfl_node.train.rows import Rows
from dfl_node.train.tensors import State
from dfl_node.train.trainer import PLAIN, AggregationConfig, ModelConfig, TrainingConfig

CONFIG = TrainingConfig(
    local_steps=5, batch_size=8, lr=0.05, momentum=0.0, optimizer="sgd", seed=1, max_update_bytes=1 << 20
)
MLP = ModelConfig("mlp", {"hidden": 6})
SEED = local_sgd.seed_words(1, 2, 3)


def inputs(seed: int = 4) -> Inputs:
    random = np.random.RandomState(seed)
    rows = Rows(random.randint(0, 256, (40, 28, 28)).astype(np.uint8), random.randint(0, 10, 40))
    return evaluation.inputs_of(rows, models.kind(MLP))


def fresh() -> nn.Module:
    torch.manual_seed(3)
    return models.build(MLP)


def silent(_: int, __: float) -> None:
    """No progress asked for."""


def copied(model: nn.Module) -> State:
    return {name: tensor.copy() for name, tensor in evaluation.get_state(model).items()}


def loss_of(model: nn.Module, data: Inputs, places: Tensor) -> Tensor:
    return functional.cross_entropy(model(data.x[places].float() / 255), data.y[places])


def shift(
    name: str, shape: tuple[int, ...], scale: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    random = np.random.RandomState(len(name))
    return (random.standard_normal(shape) * scale).astype(np.float32)


def test_fedprox_is_the_gradient_of_its_loss() -> None:
    """Steps on loss + mu / 2 ||x - parent||^2, differentiated by torch."""
    mu, data, ours, theirs = 2.0, inputs(), fresh(), fresh()
    config = AggregationConfig("fedprox", {"mu": mu})
    correct = member.correction(config, ours, copied(ours), {})
    local_sgd.train(ours, data, CONFIG, steps=5, seed=SEED, progress=silent, correct=correct)
    parent = [p.detach().clone() for p in theirs.parameters()]
    outer = torch.optim.SGD(theirs.parameters(), lr=CONFIG.lr)
    for places in islice(local_sgd.batches(40, 8, SEED), 5):
        outer.zero_grad()
        pairs = zip(theirs.parameters(), parent, strict=True)
        away = torch.stack([((p - start) ** 2).sum() for p, start in pairs]).sum()
        (loss_of(theirs, data, torch.from_numpy(places)) + mu / 2 * away).backward()
        outer.step()
    for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-6)


def test_fedprox_stays_nearer_to_its_parent() -> None:
    moved = []
    for mu in (0.0, 1.0, 10.0):
        model, config = fresh(), AggregationConfig("fedprox", {"mu": mu})
        start = copied(model)
        correct = member.correction(config, model, start, {})
        local_sgd.train(model, inputs(), CONFIG, steps=30, seed=SEED, progress=silent, correct=correct)
        after = evaluation.get_state(model)
        moved.append(sum(float(((after[name] - start[name]) ** 2).sum()) for name in start))
    assert moved[0] > moved[1] > moved[2]


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedyogi", "diloco"])
def test_other_strategies_leave_gradients_alone(name: str) -> None:
    assert member.correction(AggregationConfig(name), fresh(), {}, {}) is None


def test_scaffold_steps_against_drift() -> None:
    """y <- y - eta (g - c_i + c), and c_i' is the mean of the gradients on the way (option II)."""
    data, ours, theirs = inputs(), fresh(), fresh()
    config = AggregationConfig("scaffold")
    parent = aggregation.first_file(copied(ours), config)
    parent |= {n: shift(n, t.shape, 0.02) for n, t in parent.items() if n.startswith("server.control.")}
    local = {f"control.{n}": shift("x" + n, t.shape, 0.03) for n, t in copied(ours).items()}
    correct = member.correction(config, ours, parent, local)
    trained = local_sgd.train(ours, data, CONFIG, steps=5, seed=SEED, progress=silent, correct=correct)

    names = [name for name, _ in theirs.named_parameters()]
    total = {name: torch.zeros_like(p) for name, p in theirs.named_parameters()}
    for places in islice(local_sgd.batches(40, 8, SEED), 5):
        gradients = torch.autograd.grad(
            loss_of(theirs, data, torch.from_numpy(places)), list(theirs.parameters())
        )
        with torch.no_grad():
            for name, p, g in zip(names, theirs.parameters(), gradients, strict=True):
                total[name] += g
                c, own = parent[f"server.control.{name}"], local[f"control.{name}"]
                p.sub_(CONFIG.lr * (g + torch.from_numpy(np.asarray(c - own, np.float32))))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)

    start = aggregation.shared_part(parent)
    delta: State = {name: start[name] - tensor for name, tensor in evaluation.get_state(ours).items()}
    kept, change = member.next_control(parent, local, delta, trained, CONFIG)
    for name in names:
        np.testing.assert_allclose(kept[f"control.{name}"], (total[name] / 5).numpy(), rtol=1e-3, atol=2e-5)
        expected = kept[f"control.{name}"] - local[f"control.{name}"]
        np.testing.assert_allclose(change[f"control.{name}"], expected, rtol=1e-6, atol=1e-8)


def test_a_control_variate_with_momentum_is_a_mean_of_gradients() -> None:
    """At a gradient that never changes, c_i' is that gradient, whatever the momentum and the steps."""
    slope = {"w": np.array([2.0, -1.0])}
    for momentum, steps in ((0.0, 1), (0.9, 7), (0.5, 40)):
        x, velocity = np.zeros(2), np.zeros(2)
        for _ in range(steps):
            velocity = momentum * velocity + slope["w"]
            x = x - CONFIG.lr * velocity
        parent: State = {"w": np.zeros(2), "server.control.w": np.zeros(2)}
        trained = local_sgd.Trained(steps, 8 * steps, 0.0, 0.0)
        training = replace(CONFIG, momentum=momentum)
        kept, _ = member.next_control(parent, {}, {"w": -x}, trained, training)
        np.testing.assert_allclose(kept["control.w"], slope["w"])


def test_personal_parameters_have_no_control_variate() -> None:
    """What the server does not know is trained as it is."""
    model, config = fresh(), AggregationConfig("scaffold")
    names = [name for name, _ in model.named_parameters()]
    shared = {name: tensor for name, tensor in copied(model).items() if name != names[-1]}
    parent = aggregation.first_file(shared, config)
    parent |= {n: np.ones_like(t) for n, t in parent.items() if n.startswith("server.control.")}
    correct = member.correction(config, model, parent, {})
    assert correct is not None
    shifts = correct([torch.zeros_like(p) for p in model.parameters()])
    assert [bool(s.any()) for s in shifts] == [name != names[-1] for name in names]
    assert member.correction(PLAIN, model, parent, {}) is None
