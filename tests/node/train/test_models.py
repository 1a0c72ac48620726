"""What a job spec may ask for, and that shapes follow from it alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dfl_ledger.errors import SpecInvalid
from dfl_node.train import evaluation, models
from dfl_node.train.trainer import ModelConfig


@pytest.mark.parametrize("name", models.names())
def test_schema_is_that_of_the_built_model(name: str) -> None:
    config = ModelConfig(name, {})
    schema = models.schema(config)
    model = models.build(config)
    state = evaluation.get_state(model)
    assert [tensor.name for tensor in schema.tensors] == sorted(state)
    assert all(state[tensor.name].shape == tensor.shape for tensor in schema.tensors)
    assert {tensor.dtype for tensor in schema.tensors} == {"F32"}
    kind = models.kind(config)
    assert model(torch.zeros(2, *kind.input_shape)).shape == (2, kind.classes)


@pytest.mark.parametrize(("args", "parameters"), [({}, 83_514), ({"hidden": 1000}, 1_194_546)])
def test_sizes_of_the_cnn(args: dict[str, Any], parameters: int) -> None:
    """The digits model, and the 1.2 M one of the benchmark."""
    assert models.parameters(models.schema(ModelConfig("cnn", args))) == parameters


@pytest.mark.parametrize(
    ("name", "args", "field"),
    [
        ("resnet", {}, "model.name"),
        ("../cnn", {}, "model.name"),
        ("__init__", {}, "model.name"),
        ("", {}, "model.name"),
        ("cnn", {"depth": 3}, "model.args.depth"),
        ("cnn", {"width": "12"}, "model.args.width"),
        ("cnn", {"width": 12.0}, "model.args.width"),
        ("cnn", {"width": True}, "model.args.width"),
        ("cnn", {"width": 0}, "model.args.width"),
        ("cnn", {"width": 129}, "model.args.width"),
        ("cnn", {"hidden": 10**30}, "model.args.hidden"),
        ("mlp", {"layers": -1}, "model.args.layers"),
    ],
)
def test_impossible_models_are_refused_by_field(name: str, args: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        models.check(ModelConfig(name, args))
    assert caught.value.field == field


def test_defaults_are_filled_in() -> None:
    everything = {"width": 12, "hidden": 7, "side": 28, "channels": 1, "classes": 10}
    assert models.check(ModelConfig("cnn", {"hidden": 7})) == everything
