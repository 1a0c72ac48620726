"""The worker's stages, against the whole model trained by torch alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfl_ledger.errors import DflError, SpecInvalid
from dfl_node.train import local_sgd, models, stages, tensors
from dfl_node.train.evaluation import Inputs
from dfl_node.train.optimizers import optimizer
from dfl_node.train.stage import OPTIMIZER_SLOTS, Array, StageConfig, stage_memory_bytes
from dfl_node.train.stages import HeldStage
from dfl_node.train.trainer import LoraConfig, ModelConfig, TrainingConfig
from tests.conformance.stages import ADAMW, TRAINING

CNN = ModelConfig("cnn", {"width": 3, "hidden": 16})
MLP = ModelConfig("mlp", {"hidden": 16, "layers": 3})
MICRO_BATCHES, ROWS = 4, 8
Batch = tuple[Array, Array]


def whole_model(model: ModelConfig) -> nn.Module:
    torch.manual_seed(7)
    return models.build(model)


def open_stages(
    net: nn.Module, model: ModelConfig, cuts: Sequence[str], training: TrainingConfig
) -> list[HeldStage]:
    """With the weights of `net`."""
    opened = []
    for index, piece in enumerate(stages.split(model, cuts, ROWS)):
        config = StageConfig(model, training, tuple(cuts), index, MICRO_BATCHES, ROWS)
        opened.append(HeldStage(config, piece, 0))
        for name in names_of(opened[-1]):
            opened[-1].fill(name, net.state_dict()[name].numpy().tobytes())
    return opened


def names_of(stage: HeldStage) -> list[str]:
    return [name for name, _ in stage._module.named_parameters()]


def step_of(number: int, shape: tuple[int, ...] = (1, 28, 28)) -> list[Batch]:
    """A step's micro-batches of noise with labels that can be learned."""
    random = np.random.RandomState(number)
    found = []
    for _ in range(MICRO_BATCHES):
        labels = random.randint(0, 10, ROWS)
        x = random.randint(0, 100, (ROWS, *shape)) + 15 * labels.reshape(-1, *(1,) * len(shape))
        found.append(
            (
                Array((ROWS, *shape), "U8", x.astype("u1").tobytes()),
                Array((ROWS,), "I64", labels.astype("<i8").tobytes()),
            )
        )
    return found


def train_whole(net: nn.Module, training: TrainingConfig, steps: int, shape: tuple[int, ...]) -> list[float]:
    """The mean of the micro-batches' gradients, a step each."""
    parameters = local_sgd.trainable(net)
    steps_of = optimizer(training, parameters)
    losses = []
    for number in range(steps):
        total = [torch.zeros_like(p) for p in parameters]
        for x, labels in step_of(number, shape):
            rows = torch.frombuffer(bytearray(x.data), dtype=torch.uint8).reshape(x.shape) / 255
            wanted = torch.frombuffer(bytearray(labels.data), dtype=torch.int64)
            loss = functional.cross_entropy(net(rows), wanted)
            gradients = torch.autograd.grad(loss, parameters)
            total = [t + g for t, g in zip(total, gradients, strict=True)]
            losses.append(loss.item())
        steps_of.step([t / MICRO_BATCHES for t in total])
    return losses


def train_stages(line: Sequence[HeldStage], steps: int, shape: tuple[int, ...] = (1, 28, 28)) -> list[float]:
    """In the order of 1F1B with everything in flight: all forward, then all backward."""
    losses = []
    for number in range(steps):
        gradients: list[Array | None] = []
        for micro, (x, labels) in enumerate(step_of(number, shape)):
            for stage in line[:-1]:
                x = stage.forward(micro, x)
            loss, gradient = line[-1].last(micro, x, labels)
            losses.append(loss)
            gradients.append(gradient)
        for micro, gradient in enumerate(gradients):
            for stage in reversed(line[:-1]):
                assert gradient is not None
                gradient = stage.backward(micro, gradient)
            assert gradient is None
        for stage in line:
            stage.step()
    return losses


@pytest.mark.parametrize("training", [TRAINING, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    ("model", "cuts"),
    [
        (CNN, ()),
        (CNN, ("fc1",)),
        (CNN, ("conv2", "fc1")),
        (CNN, ("conv2", "fc1", "fc2")),
        (MLP, ("5",)),
    ],
    ids=lambda value: "-".join(value) or "whole" if isinstance(value, tuple) else value.name,
)
def test_stages_are_the_whole_model(
    model: ModelConfig, cuts: tuple[str, ...], training: TrainingConfig
) -> None:
    net = whole_model(model)
    line = open_stages(net, model, cuts, training)
    shape = models.kind(model).input_shape
    expected = train_whole(net, training, 6, shape)
    assert train_stages(line, 6, shape) == pytest.approx(expected, abs=1e-6)
    for stage in line:
        for name in names_of(stage):
            ours = np.frombuffer(stage.take(name), "<f4")
            assert ours == pytest.approx(net.state_dict()[name].numpy().ravel(), abs=1e-6)


@pytest.mark.parametrize("name", models.names())
def test_every_model_at_all_its_cuts(name: str) -> None:
    model = ModelConfig(name, {})
    net, shape = whole_model(model), models.kind(model).input_shape
    line = open_stages(net, model, models.cuts(model), TRAINING)
    assert len(line) >= 2
    assert train_stages(line, 2, shape) == pytest.approx(train_whole(net, TRAINING, 2, shape), abs=1e-5)


PARTS = {
    "first stage frozen": ModelConfig(CNN.name, CNN.args, seed=3, freeze=("conv*",)),
    "last stage frozen": ModelConfig(CNN.name, CNN.args, seed=3, freeze=("fc*",)),
    "one bias frozen": ModelConfig(CNN.name, CNN.args, seed=3, freeze=("conv2.bias",)),
    "adapters": ModelConfig(CNN.name, CNN.args, seed=3, lora=LoraConfig(2, 4.0, ("conv2", "fc1"))),
}


@pytest.mark.parametrize("with_base", [False, True], ids=["seed", "base"])
@pytest.mark.parametrize("model", PARTS.values(), ids=PARTS.keys())
def test_what_is_fixed_stays(model: ModelConfig, with_base: bool, tmp_path: Path) -> None:
    """Fixed tensors come from the base or the seed; the rest trains as in the whole model."""
    torch.manual_seed(model.seed)
    net = models.build(model)
    base = None
    if with_base:
        schema = models.full_schema(model)
        drawn = {tensor.name: net.get_parameter(tensor.name) for tensor in schema.tensors}
        with torch.no_grad():
            for parameter in drawn.values():
                parameter.mul_(1.25)
        base = tmp_path / "base.safetensors"
        base.write_bytes(tensors.encode({k: v.detach().numpy() for k, v in drawn.items()}, schema))
    shared = {tensor.name for tensor in models.schema(model).tensors}
    line = []
    for index, piece in enumerate(stages.split(model, ("conv2", "fc1"), ROWS)):
        config = StageConfig(model, ADAMW, ("conv2", "fc1"), index, MICRO_BATCHES, ROWS)
        line.append(HeldStage(config, piece, 0))
        line[-1].fill_fixed(base)
        for name in shared.intersection(names_of(line[-1])):
            line[-1].fill(name, net.get_parameter(name).detach().numpy().tobytes())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert train_stages(line, 4) == pytest.approx(train_whole(net, ADAMW, 4, (1, 28, 28)), abs=1e-6)
    for stage in line:
        for name in names_of(stage):
            ours = torch.frombuffer(bytearray(stage.take(name)), dtype=torch.float32)
            assert torch.allclose(ours, net.get_parameter(name).detach().ravel(), atol=1e-6)
            assert torch.equal(ours, before[name].ravel()) == (name not in shared)


def test_a_base_of_another_architecture(tmp_path: Path) -> None:
    other, path = ModelConfig("cnn", {"width": 4, "hidden": 16}), tmp_path / "base.safetensors"
    net = whole_model(other).state_dict()
    path.write_bytes(tensors.encode({k: v.numpy() for k, v in net.items()}, models.schema(other)))
    model = PARTS["first stage frozen"]
    config = StageConfig(model, TRAINING, ("fc1",), 0, MICRO_BATCHES, ROWS)
    stage = HeldStage(config, stages.split(model, ("fc1",), ROWS)[0], 0)
    with pytest.raises(SpecInvalid) as caught:
        stage.fill_fixed(path)
    assert caught.value.field == "model.base"


def test_only_its_own_tensors_are_in_memory() -> None:
    cuts = ("conv2", "fc1")
    line = open_stages(whole_model(CNN), CNN, cuts, TRAINING)
    held = [dict(stage._module.named_parameters()) for stage in line]
    assert [sorted({name.split(".")[0] for name in tensors}) for tensors in held] == [
        ["conv1"],
        ["conv2"],
        ["fc1", "fc2"],
    ]
    assert all(p.device.type == "cpu" for tensors in held for p in tensors.values())


def test_a_parameter_that_shares_its_gradient_with_another() -> None:
    """autograd may hand out one tensor for both; they are added up separately."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.zeros(ROWS, 10))
            self.b = nn.Parameter(torch.zeros(ROWS, 10))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] + self.a + self.b

    (stage,) = open_stages(whole_model(CNN), CNN, (), replace(TRAINING, lr=1.0, momentum=0.0))
    stage._module = Shared()
    stage._parameters = list(stage._module.parameters())
    stage._optimizer = optimizer(replace(TRAINING, lr=1.0, momentum=0.0), stage._parameters)
    total = torch.zeros(ROWS, 10)
    for micro, (x, labels) in enumerate(step_of(0)):
        stage.last(micro, x, labels)
        rows = torch.frombuffer(bytearray(x.data), dtype=torch.uint8).reshape(ROWS, -1)[:, :10] / 255
        wanted = torch.frombuffer(bytearray(labels.data), dtype=torch.int64)
        total += (rows.softmax(1) - functional.one_hot(wanted, 10)) / ROWS
    stage.step()
    for parameter in stage._parameters:
        assert torch.allclose(parameter, -total / MICRO_BATCHES, atol=1e-6)


def test_divergence_is_named() -> None:
    (stage,) = open_stages(whole_model(MLP), MLP, (), replace(TRAINING, lr=1e30))
    with pytest.raises(DflError, match=r"training diverged: stage 0 at step \d: .*; lr = 1e\+30"):
        train_stages([stage], 5, (784,))
    first, last = open_stages(whole_model(MLP), MLP, ("5",), replace(TRAINING, lr=1e30))
    with pytest.raises(DflError, match="training diverged"):
        train_stages([first, last], 5, (784,))


def test_every_row_once_before_any_comes_again() -> None:
    n = 20
    inputs = Inputs(torch.arange(n, dtype=torch.uint8)[:, None], torch.arange(n))
    drawn = [
        label
        for first in range(0, 2 * n, ROWS)
        for label in np.frombuffer(stages.micro_batch(inputs, (1,), rows=ROWS, first=first)[1].data, "<i8")
    ]
    assert sorted(drawn[:n]) == sorted(drawn[n : 2 * n]) == list(range(n))
    assert drawn[:n] != drawn[n : 2 * n]
    few = Inputs(inputs.x[:3], inputs.y[:3])
    x, labels = stages.micro_batch(few, (1,), rows=ROWS, first=5)
    assert x.shape == (ROWS, 1)
    assert set(np.frombuffer(labels.data, "<i8")) == {0, 1, 2}


def test_costs_are_those_of_the_model() -> None:
    costs = stages.segment_costs(CNN)
    assert [cost.name for cost in costs] == ["", "conv2", "fc1", "fc2"]
    assert sum(cost.parameter_bytes for cost in costs) == models.schema(CNN).payload_bytes
    # fc2 takes (B, 16) and gives (B, 10): forward, and both gradients, 2 flops a weight and row.
    assert costs[3].flops == 3 * 2 * 16 * 10
    assert costs[3].activation_bytes == 4 * (16 + 10)
    # Float32: (B, 3, 14, 14), then (B, 6 * 7 * 7), (B, 16), and the (B, 10) logits.
    assert [cost.passes_bytes for cost in costs] == [4 * 3 * 14 * 14, 4 * 6 * 7 * 7, 4 * 16, 4 * 10]
    # conv1 keeps its scaled input, its output, and, as int64, where the maxima were.
    assert costs[0].activation_bytes >= 4 * 28 * 28 * (1 + 3) + 8 * 3 * 14 * 14


def test_memory_is_that_of_what_is_kept() -> None:
    costs = stages.segment_costs(CNN)
    weights = sum(cost.parameter_bytes for cost in costs[1:3])
    kept = sum(cost.activation_bytes for cost in costs[1:3]) * ROWS
    stage = StageConfig(CNN, TRAINING, ("conv2", "fc2"), 1, MICRO_BATCHES, ROWS)
    assert stage_memory_bytes(costs[1:3], stage) == 4 * weights + 3 * kept  # two in flight, one at hand
    assert stage_memory_bytes(costs[1:3], replace(stage, training=ADAMW)) == 5 * weights + 3 * kept
    assert stage_memory_bytes(costs[1:3], replace(stage, micro_batches=1)) == 4 * weights + 2 * kept


@pytest.mark.parametrize("training", [TRAINING, ADAMW], ids=["sgd", "adamw"])
def test_optimizers_keep_what_snapshots_hold(training: TrainingConfig) -> None:
    found = optimizer(training, local_sgd.trainable(whole_model(CNN)))
    assert tuple(found.slots) == OPTIMIZER_SLOTS[training.optimizer]
