"""The models a job may name. One file a model, found by its name: adding one is adding `models/NAME.py`.

A file exports `MODEL: ModelKind` and imports torch only inside its `build`, so that a job spec is checked
without it. A model is a name and a few whole numbers; there is no way to bring code.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING

from dfl_ledger.errors import SpecInvalid
from dfl_node.train.codec import Schema, TensorSpec
from dfl_node.train.trainer import ModelConfig

if TYPE_CHECKING:
    from torch import nn

_SAFETENSORS_DTYPES = {"torch.float32": "F32", "torch.float64": "F64", "torch.float16": "F16"}


@dataclass(frozen=True, slots=True)
class IntArg:
    """A whole number a model is built with."""

    default: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class ModelKind:
    """What a model file exports. `build` gets every argument by name and returns float32 parameters."""

    args: Mapping[str, IntArg]
    input_shape: tuple[int, ...]  # of one row, without the batch
    classes: int  # outputs; the loss is cross-entropy over them
    build: Callable[..., nn.Module]


def names() -> tuple[str, ...]:
    """Every model there is."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def kind(config: ModelConfig) -> ModelKind:
    """The model of this name. Raises SpecInvalid."""
    if config.name not in names():
        raise SpecInvalid("model.name", f"must be one of {', '.join(names())}, not {config.name!r:.40}")
    found: ModelKind = import_module(f"{__name__}.{config.name}").MODEL
    return found


def check(config: ModelConfig) -> dict[str, int]:
    """Every argument, defaults filled in. Raises SpecInvalid with the field's name; imports no torch."""
    wanted = kind(config).args
    for name in config.args:
        if name not in wanted:
            known = ", ".join(wanted) or "none"
            raise SpecInvalid(f"model.args.{str(name)[:80]}", f"{config.name} takes {known}")
    checked = {}
    for name, arg in wanted.items():
        value = config.args.get(name, arg.default)
        field = f"model.args.{name}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise SpecInvalid(field, f"must be a whole number, not {value!r:.40}")
        if not arg.low <= value <= arg.high:
            raise SpecInvalid(field, f"must be from {arg.low} to {arg.high}, not {value!r:.40}")
        checked[name] = value
    return checked


def build(config: ModelConfig) -> nn.Module:
    """The model on the current default device, initialised by torch's global generator."""
    args = check(config)
    return kind(config).build(**args)


def schema(config: ModelConfig) -> Schema:
    """Names, shapes and dtypes of a model's state, derived from its configuration alone."""
    import torch

    with torch.device("meta"):  # shapes without memory
        state = build(config).state_dict()
    return Schema(
        tuple(
            TensorSpec(name, tuple(tensor.shape), _SAFETENSORS_DTYPES[str(tensor.dtype)])
            for name, tensor in sorted(state.items())
        )
    )


def parameters(found: Schema) -> int:
    """How many numbers a state of this schema holds."""
    return sum(prod(tensor.shape) for tensor in found.tensors)
