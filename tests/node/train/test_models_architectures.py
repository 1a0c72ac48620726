"""Every architecture there is: what travels follows from its arguments, it learns, and it comes apart at its
cuts into pieces that compute the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfl_apps.digits import APP
from dfl_ledger.errors import SpecInvalid
from dfl_node.train import evaluation, local_sgd, models, stages, tensors
from dfl_node.train.evaluation import Inputs
from dfl_node.train.trainer import ModelConfig, TrainingConfig

# Small, of the same structure, and with more than one layer wherever there can be.
SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"width": 2, "hidden": 8},
    "cnn_lstm": {"width": 2, "hidden": 4, "layers": 2},
    "lstm": {"steps": 7, "features": 112, "hidden": 4, "layers": 3},
    "mlp": {"hidden": 8, "layers": 3},
    "resnet18": {"width": 4},
    "transformer": {"depth": 3, "heads": 2, "head_width": 4},
}
# What the digits are learned with; group normalisation in 18 layers wants the smaller step.
LEARNING: dict[str, tuple[dict[str, Any], float]] = {"resnet18": ({"width": 8}, 0.0005)}
OTHERS: tuple[dict[str, Any], float] = ({}, 0.002)
STEPS = 20


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """As the worker computes: what is not deterministic raises. On one thread, for models as small as these
    wait longer for a second one than they compute."""
    mode, threads = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    torch.set_deterministic_debug_mode("error")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture(scope="module")
def digits() -> Inputs:
    rows = APP.load(None, (1, 1, 12), None)
    return evaluation.inputs_of(rows.take(np.arange(256)), models.kind(ModelConfig("cnn", {})))


def seeded(config: ModelConfig, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(config)


def encoded(net: nn.Module, config: ModelConfig) -> bytes:
    return tensors.encode(evaluation.get_state(net), models.schema(config))


@pytest.mark.parametrize("name", models.names())
def test_a_state_is_floats_that_follow_from_the_seed(name: str) -> None:
    one, other = ModelConfig(name, SMALL[name], seed=1), ModelConfig(name, SMALL[name], seed=2)
    assert models.schema(one) == models.schema(other)
    assert {tensor.dtype for tensor in models.schema(one).tensors} == {"F32"}
    assert not list(models.build_meta(one).buffers())  # which do not average
    assert encoded(seeded(one, 1), one) == encoded(seeded(one, 1), one)
    assert encoded(seeded(one, 1), one) != encoded(seeded(one, 2), one)


@pytest.mark.parametrize("name", models.names())
def test_any_number_of_rows_and_each_for_itself(name: str) -> None:
    """A row's outputs do not depend on who is in its batch, as they would with batch normalisation."""
    config = ModelConfig(name, SMALL[name])
    net, kind = seeded(config, 1), models.kind(config)
    x = torch.rand(5, *kind.input_shape)
    y = net(x)
    assert y.shape == (5, kind.classes)
    torch.testing.assert_close(net(x[3:4]), y[3:4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.names())
def test_learns_digits_and_the_same_each_time(name: str, digits: Inputs) -> None:
    args, lr = LEARNING.get(name, OTHERS)
    config = ModelConfig(name, args)
    shape = models.kind(config).input_shape
    inputs = Inputs(digits.x.reshape(-1, *shape), digits.y)
    training = TrainingConfig(STEPS, 32, lr, 0.9, "adamw", 1, 1 << 30)
    files = []
    for _ in range(2):
        net = seeded(config, 1)
        before = evaluation.evaluate(net, inputs).loss
        local_sgd.train(
            net, inputs, training, steps=STEPS, seed=local_sgd.seed_words(1), progress=lambda *_: None
        )
        assert evaluation.evaluate(net, inputs).loss < before - 0.15
        files.append(encoded(net, config))
    assert files[0] == files[1]


def ways_to_cut(name: str) -> list[tuple[str, ...]]:
    """At each possible cut alone, and at all of them together."""
    cuts = models.cuts(ModelConfig(name, SMALL[name]))
    return [*((cut,) for cut in cuts), cuts]


@pytest.mark.parametrize(
    ("name", "cuts"),
    [(name, cuts) for name in models.names() for cuts in ways_to_cut(name)],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_pieces_compute_what_the_whole_does(name: str, cuts: tuple[str, ...]) -> None:
    config = ModelConfig(name, SMALL[name])
    net, kind = seeded(config, 1), models.kind(config)
    x, wanted = torch.rand(3, *kind.input_shape), torch.arange(3)
    pieces = stages.split(config, cuts, 3)
    assert len(pieces) == len(cuts) + 1
    modules = [filled(piece.module, net) for piece in pieces]
    names = [name for module in modules for name in module.state_dict()]
    assert sorted(names) == sorted(net.state_dict())  # each tensor in exactly one piece

    y = x
    for module, piece in zip(modules, pieces, strict=True):
        assert tuple(y.shape) == piece.takes
        y = module(y)
        assert tuple(y.shape) == piece.gives
    torch.testing.assert_close(y, net(x), rtol=1e-4, atol=1e-5)

    expected = gradients(net(x), wanted, [net])
    found = gradients(y, wanted, modules)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def filled(module: nn.Module, net: nn.Module) -> nn.Module:
    """A piece in memory, with the weights of the whole."""
    state = net.state_dict()
    held = module.to_empty(device="cpu")
    held.load_state_dict({name: state[name] for name in held.state_dict()})
    return held


def gradients(y: Tensor, wanted: Tensor, modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    named = {name: p for module in modules for name, p in module.named_parameters()}
    found = torch.autograd.grad(functional.cross_entropy(y, wanted), list(named.values()))
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize(
    ("name", "args", "field"),
    [
        ("resnet18", {"width": 0}, "model.args.width"),
        ("resnet18", {"depth": 34}, "model.args.depth"),
        ("lstm", {"layers": 9}, "model.args.layers"),
        ("lstm", {"hidden": 2.5}, "model.args.hidden"),
        ("lstm", {"layers": 5}, "model.args.layers"),  # of 28 steps
        ("cnn_lstm", {"layers": 0}, "model.args.layers"),
        ("cnn_lstm", {"side": 256, "layers": 3}, "model.args.layers"),  # of 64 columns
        ("transformer", {"heads": 0}, "model.args.heads"),
        ("transformer", {"patch": 5}, "model.args.patch"),  # 28 / 5
        ("transformer", {"side": 256, "patch": 4}, "model.args.patch"),  # 64 * 64 tokens
    ],
)
def test_wrong_arguments_are_refused_by_field(name: str, args: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        models.check(ModelConfig(name, args))
    assert caught.value.field == field
