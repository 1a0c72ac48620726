"""Which part of a model travels, and what becomes of the rest: bases, adapters, frozen and personal parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfl_apps.digits import APP
from dfl_ledger.errors import DflError, SpecInvalid, UsageError
from dfl_node.train import evaluation, fitting, local_sgd, lora, models, network, tensors, transfer
from dfl_node.train.evaluation import Inputs
from dfl_node.train.tensors import State
from dfl_node.train.trainer import Evaluation, LoraConfig, ModelConfig, TrainingConfig
from dfl_node.train.transfer import Parts
from tests.node.train.test_models_architectures import SMALL

CNN = ModelConfig("cnn", {"width": 2, "hidden": 8})
ADAPTERS = LoraConfig(rank=3, alpha=6.0, targets=("*",))
STEPS = 30


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """As the worker computes: what is not deterministic raises."""
    mode, threads = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    torch.set_deterministic_debug_mode("error")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture(scope="module")
def digits() -> Inputs:
    rows = APP.load(None, (1, 1, 12), None)
    return evaluation.inputs_of(rows.take(np.arange(256)), models.kind(CNN))


def rows_for(config: ModelConfig, inputs: Inputs) -> Inputs:
    return Inputs(inputs.x.reshape(-1, *models.kind(config).input_shape), inputs.y)


def everything(net: nn.Module) -> State:
    return {name: tensor.copy() for name, tensor in evaluation.get_state(net).items()}


def same(state: State, other: State, names: tuple[str, ...]) -> bool:
    return all(np.array_equal(state[name], other[name]) for name in names)


# -- names ------------------------------------------------------------------------------------------------
NAMES = ("conv.bias", "conv.weight", "fc.bias", "fc.lora_a", "fc.lora_b", "fc.weight")
PLAIN = tuple(name for name in NAMES if "lora" not in name)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CNN, Parts(PLAIN, (), ())),
        (replace(CNN, freeze=("conv*",)), Parts(PLAIN[2:], (), PLAIN[:2])),
        (replace(CNN, freeze=("CONV*", "*.Bias")), Parts(PLAIN, (), ())),  # another case is another name
        (replace(CNN, personal=("fc.*",)), Parts(PLAIN[:2], PLAIN[2:], ())),
        (replace(CNN, personal=("fc.*",), freeze=("*.bias",)), Parts(PLAIN[1:2], PLAIN[2:], PLAIN[:1])),
        (replace(CNN, lora=ADAPTERS), Parts(NAMES[3:5], (), PLAIN)),
        (
            replace(CNN, lora=ADAPTERS, personal=("*.bias",)),
            Parts(NAMES[3:5], ("conv.bias", "fc.bias"), ("conv.weight", "fc.weight")),
        ),
        (replace(CNN, lora=ADAPTERS, personal=("*.lora_b",)), Parts(NAMES[3:4], NAMES[4:5], PLAIN)),
    ],
)
def test_each_parameter_is_shared_personal_or_fixed(config: ModelConfig, expected: Parts) -> None:
    names = NAMES if config.lora else PLAIN
    assert transfer.parts(names, config) == expected
    assert sorted((*expected.shared, *expected.personal, *expected.fixed)) == sorted(names)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (CNN, []),
        (replace(CNN, lora=ADAPTERS), ["conv1", "conv2", "fc1", "fc2"]),
        (replace(CNN, lora=LoraConfig(1, 1.0, ("fc?",))), ["fc1", "fc2"]),
        (replace(CNN, lora=ADAPTERS, freeze=("conv*",)), ["fc1", "fc2"]),
        (replace(CNN, lora=ADAPTERS, personal=("fc2.*",)), ["conv1", "conv2", "fc1"]),
        (replace(CNN, lora=ADAPTERS, freeze=("*.bias",)), ["conv1", "conv2", "fc1", "fc2"]),
    ],
)
def test_layers_with_an_adapter(config: ModelConfig, layers: list[str]) -> None:
    found = [name for name, layer in models.build_meta(config).named_modules() if hasattr(layer, "lora_a")]
    assert found == layers


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        ({"freeze": ("conv1.*", "conv9.*")}, "model.freeze", "'conv9.*' matches no parameter: conv1.bias,"),
        ({"freeze": ("*",)}, "model.freeze", "nothing to train"),
        ({"personal": ("head.*",)}, "model.personal", "matches no parameter"),
        ({"personal": ("*",)}, "model.personal", "nothing to share"),
        ({"personal": ("fc*",), "freeze": ("conv*",)}, "model.personal", "nothing to share"),
        ({"personal": ("fc*",), "freeze": ("fc1.*",)}, "model.personal", "fc1.bias is frozen"),
        ({"lora": LoraConfig(1, 1.0, ("nose",))}, "model.lora.targets", "match no layer"),
        ({"lora": ADAPTERS, "freeze": ("*",)}, "model.lora.targets", "neither frozen nor personal"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_field(changes: dict[str, object], field: str, why: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        network.check(replace(CNN, **changes), None)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert why in caught.value.why


# -- adapters ---------------------------------------------------------------------------------------------
def test_an_adapter_adds_a_product_of_small_matrices() -> None:
    torch.manual_seed(1)
    plain: dict[str, nn.Linear | nn.Conv2d] = {
        "linear": nn.Linear(5, 4),
        "no bias": nn.Linear(5, 4, bias=False),
        "conv": nn.Conv2d(2, 6, 3, stride=2, padding=1),
    }
    x = {"linear": torch.randn(7, 5), "no bias": torch.randn(7, 3, 5), "conv": torch.randn(7, 2, 9, 9)}
    for name, layer in plain.items():
        net = nn.Sequential(layer)
        before: Tensor = net(x[name])
        assert lora.layers(net) == ["0"]
        lora.adapt(net, ["0"], ADAPTERS)
        assert torch.equal(net(x[name]), before), "B is zeros at first"
        a, b = net.get_parameter("0.lora_a"), net.get_parameter("0.lora_b")
        with torch.no_grad():
            b.normal_()
            weight = layer.weight + 6.0 / 3 * (b @ a).reshape(layer.weight.shape)
            bias = layer.bias
            expected = (
                functional.conv2d(x[name], weight, bias, stride=2, padding=1)
                if name == "conv"
                else functional.linear(x[name], weight, bias)
            )
        torch.testing.assert_close(net(x[name]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.names())
def test_merged_adapters_compute_the_same_in_a_plain_model(name: str) -> None:
    config = ModelConfig(name, SMALL[name], lora=ADAPTERS)
    net = network.start(config, None)
    for tensor, parameter in net.named_parameters():
        if tensor.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.1)
    plain = models.build(transfer.plain(config))
    evaluation.set_state(plain, network.merged(net, config))
    x = torch.rand(5, *models.kind(config).input_shape)
    torch.testing.assert_close(plain(x), net(x), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(network.start(config, None)(x), net(x), atol=1e-3)


# -- training ---------------------------------------------------------------------------------------------
SETTINGS: dict[str, dict[str, object]] = {
    "adapters": {"lora": ADAPTERS},
    "frozen": {"freeze": ("*.bias",)},
    "personal head": {},  # the last layer, whatever its name
}


def last_layer(config: ModelConfig) -> str:
    return models.cuts(config)[-1]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", models.names())
def test_every_model_learns_in_every_setting(name: str, setting: str, digits: Inputs) -> None:
    """And what is fixed stays as it is, to the bit."""
    config = replace(ModelConfig(name, SMALL[name]), **SETTINGS[setting])  # type: ignore[arg-type]
    if setting == "personal head":
        config = replace(config, personal=(f"{last_layer(config)}.*",))
    network.check(config, None)
    net, inputs = network.start(config, None), rows_for(config, digits)
    before, first = everything(net), evaluation.evaluate(net, inputs)
    training = TrainingConfig(STEPS, 32, 0.005, 0.9, "adamw", 1, 1 << 30)
    seed = local_sgd.seed_words(1)
    local_sgd.train(net, inputs, training, steps=STEPS, seed=seed, progress=lambda step, loss: None)
    found, after = network.parts(net, config), everything(net)
    assert evaluation.evaluate(net, inputs).loss < first.loss - 0.03
    assert same(before, after, found.fixed)
    assert not any(same(before, after, (name,)) for name in (*found.shared, *found.personal))
    assert bool(found.fixed) == (setting != "personal head")
    assert {spec.name for spec in models.schema(config).tensors} == set(found.shared)


def test_adapters_are_a_small_part_of_a_model() -> None:
    config = ModelConfig("cnn", {}, lora=LoraConfig(4, 8.0, ("fc*",)))
    assert models.parameters(models.schema(config)) < models.parameters(models.full_schema(config)) / 15


# -- bases ------------------------------------------------------------------------------------------------
def written(path: Path, config: ModelConfig) -> Path:
    net = network.start(config, None)
    path.write_bytes(tensors.encode(evaluation.get_state(net), models.full_schema(config)))
    return path


def test_a_base_gives_everything_but_adapters(tmp_path: Path) -> None:
    base = written(tmp_path / "base", replace(CNN, seed=5))
    given = everything(network.start(replace(CNN, seed=5), None))
    config = replace(CNN, base="cid", seed=6, lora=ADAPTERS)
    net = network.start(config, base)
    assert same(everything(net), given, tuple(given))
    assert not same(everything(network.start(replace(config, base=None), None)), given, ("fc1.weight",))
    again, other = network.start(config, base), network.start(replace(config, seed=7), base)
    assert same(everything(again), everything(net), ("fc1.lora_a", "conv1.lora_a"))
    assert not same(everything(other), everything(net), ("fc1.lora_a",))


def test_fixed_parameters_alone(tmp_path: Path) -> None:
    base = written(tmp_path / "base", replace(CNN, seed=5))
    for config, path in ((replace(CNN, base="cid"), base), (CNN, None)):
        begun = everything(network.start(config, path))
        found = network.fixed(config, path, ["fc1.bias", "conv2.weight"])
        assert sorted(found) == ["conv2.weight", "fc1.bias"]
        assert same(found, begun, tuple(found))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data + b"\0", "after the last tensor"),
        (lambda data: b"", "an empty file"),
        (lambda data: b"PK\x03\x04" + data, "a zip file"),
        (lambda data: data[:-4] + b"\0\0\xc0\x7f", "NaN"),
    ],
    ids=["truncated", "longer", "empty", "zip", "NaN"],
)
def test_a_base_that_is_no_sound_file(tmp_path: Path, spoil: object, why: str) -> None:
    assert callable(spoil)
    base = written(tmp_path / "base", CNN)
    base.write_bytes(spoil(base.read_bytes()))
    for read in (network.check, network.start):
        with pytest.raises(SpecInvalid, match=why) as caught:
            read(replace(CNN, base="cid"), base)
        assert caught.value.field == "model.base"


@pytest.mark.parametrize("other", [ModelConfig("mlp", {}), ModelConfig("cnn", {"width": 3, "hidden": 8})])
def test_a_base_of_another_architecture(tmp_path: Path, other: ModelConfig) -> None:
    base = written(tmp_path / "base", other)
    with pytest.raises(SpecInvalid) as caught:
        network.check(replace(CNN, base="cid"), base)
    assert caught.value.field == "model.base"
    assert "is no cnn with these arguments" in caught.value.why


# -- fitting ----------------------------------------------------------------------------------------------
def probe(inputs: Inputs) -> tuple[Evaluation, State]:
    """What a model with a personal head of zeros is measured as, and the head it was fitted."""
    config = ModelConfig("cnn", {}, personal=("fc2.*",))
    net = network.start(config, None)
    head = {
        name: np.zeros_like(tensor) for name, tensor in network.copy(net, ["fc2.weight", "fc2.bias"]).items()
    }
    shared = network.copy(net, network.parts(net, config).shared)
    found = fitting.measure(net, head, inputs)
    assert found == fitting.measure(net, head, inputs), "whatever it was fitted to before"
    assert same(everything(net), shared, tuple(shared))
    return found, network.copy(net, list(head))


def test_a_personal_part_is_fitted_to_even_rows_and_measured_on_odd_ones(digits: Inputs) -> None:
    found, head = probe(digits)
    assert found.samples == 128
    assert found.loss < 2.25  # ln 10 = 2.30 is what it began with
    shifted = Inputs(digits.x, digits.y.clone())
    shifted.y[1::2] = (shifted.y[1::2] + 1) % 10
    worse, same_head = probe(shifted)
    assert same(head, same_head, tuple(head))
    assert worse.loss > found.loss


def test_without_personal_parts_every_row_measures(digits: Inputs) -> None:
    net = network.start(CNN, None)
    assert fitting.measure(net, {}, digits) == evaluation.evaluate(net, digits)


def test_one_row_cannot_measure_a_personal_part(digits: Inputs) -> None:
    with pytest.raises(UsageError, match="cannot measure"):
        probe(Inputs(digits.x[:1], digits.y[:1]))


def fit(inputs: Inputs, net: nn.Module, **changes: object) -> tuple[Evaluation, Evaluation]:
    arguments = {"steps": 40, "lr": 0.01, "patterns": ["*"], "seed": 1, "progress": lambda step, loss: None}
    return fitting.personalize(net, inputs, **{**arguments, **changes})  # type: ignore[arg-type]


def test_a_model_is_fitted_to_other_rows(digits: Inputs) -> None:
    """Labels of one's own: a head alone learns them over the features that are there."""
    own = Inputs(digits.x, (digits.y + 3) % 10)
    net = network.start(replace(CNN, args={}), None)
    before, after = fit(own, net)
    assert before.samples == after.samples == 256 // 5
    assert after.accuracy > before.accuracy + 0.3
    start = everything(net)
    relabelled = Inputs(digits.x, (digits.y + 5) % 10)
    before, after = fit(relabelled, net, patterns=["fc2.*"])
    assert after.loss < before.loss
    kept = tuple(name for name in start if not name.startswith("fc2"))
    assert same(start, everything(net), kept)
    assert not same(start, everything(net), ("fc2.weight",))


@pytest.mark.parametrize(
    ("rows", "changes", "error", "why"),
    [
        (4, {}, UsageError, "too few rows"),
        (256, {"patterns": ["nose*"]}, UsageError, "nothing to fit"),
        (256, {"patterns": []}, UsageError, "nothing to fit"),
        (256, {"lr": 1e30}, DflError, "diverged"),
    ],
)
def test_a_fit_that_cannot_be(
    rows: int, changes: dict[str, object], error: type[DflError], why: str, digits: Inputs
) -> None:
    with pytest.raises(error, match=why):
        fit(Inputs(digits.x[:rows], digits.y[:rows]), network.start(CNN, None), **changes)
