"""The models a job may name. One file a model, found by its name: adding one is adding `models/NAME.py`.

A file exports `MODEL: Architecture` and imports torch only inside its `build`, so that a job spec is checked
without it. A model is a name and a few whole numbers; there is no way to bring code.

Models hold parameters and nothing else: buffers such as running statistics are no gradient's business and do
not average. Which of the parameters travel is told by `dfl_node.train.transfer`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING

from dfl_ledger.errors import SpecInvalid
from dfl_node.train import transfer
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
class Architecture:
    """What a model file exports. Its functions get every argument by name; what does not matter to them they
    take as `**_`."""

    args: Mapping[str, IntArg]  # `classes` among them: outputs, the loss is cross-entropy over them
    input_shape: Callable[..., tuple[int, ...]]  # of one row, without the batch. Raises SpecInvalid
    build: Callable[..., nn.Module]  # float32 parameters, no buffers
    cuts: Callable[..., tuple[str, ...]]  # where a stage may begin: submodules, in the order of computation


@dataclass(frozen=True, slots=True)
class ModelKind:
    """What goes into a model and what comes out."""

    input_shape: tuple[int, ...]  # of one row, without the batch
    classes: int


CLASSES = IntArg(10, 2, 10_000)
IMAGE = {"side": IntArg(28, 4, 256), "channels": IntArg(1, 1, 16), "classes": CLASSES}


def image_shape(side: int, channels: int, **_: int) -> tuple[int, ...]:
    return (channels, side, side)


def names() -> tuple[str, ...]:
    """Every model there is."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def _find(config: ModelConfig) -> Architecture:
    if config.name not in names():
        raise SpecInvalid("model.name", f"must be one of {', '.join(names())}, not {config.name!r:.40}")
    found: Architecture = import_module(f"{__name__}.{config.name}").MODEL
    return found


def check(config: ModelConfig) -> dict[str, int]:
    """Every argument, defaults filled in. Raises SpecInvalid with the field's name; imports no torch."""
    found = _find(config)
    for name in config.args:
        if name not in found.args:
            known = ", ".join(found.args) or "none"
            raise SpecInvalid(f"model.args.{str(name)[:80]}", f"{config.name} takes {known}")
    checked = {}
    for name, arg in found.args.items():
        value = config.args.get(name, arg.default)
        field = f"model.args.{name}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise SpecInvalid(field, f"must be a whole number, not {value!r:.40}")
        if not arg.low <= value <= arg.high:
            raise SpecInvalid(field, f"must be from {arg.low} to {arg.high}, not {value!r:.40}")
        checked[name] = value
    found.input_shape(**checked)  # refuses arguments that do not fit each other
    return checked


def kind(config: ModelConfig) -> ModelKind:
    """Raises SpecInvalid; imports no torch."""
    args = check(config)
    return ModelKind(_find(config).input_shape(**args), args["classes"])


def cuts(config: ModelConfig) -> tuple[str, ...]:
    """The submodules at which a stage may begin, in the order of computation, where one tensor passes. Raises
    SpecInvalid; imports no torch."""
    args = check(config)
    return _find(config).cuts(**args)


def build(config: ModelConfig) -> nn.Module:
    """The model on the current default device, initialised by torch's global generator, with its adapters;
    what is neither shared nor personal needs no gradient."""
    from dfl_node.train import lora

    args = check(config)
    net = _find(config).build(**args)
    if config.lora is not None:
        lora.adapt(net, transfer.adapted(lora.layers(net), config), config.lora)
    fixed = transfer.parts([name for name, _ in net.named_parameters()], config).fixed
    for name in fixed:
        net.get_parameter(name).requires_grad_(False)
    return net


def build_meta(config: ModelConfig) -> nn.Module:
    """The same without memory: shapes alone."""
    import torch

    with torch.device("meta"):
        return build(config)


def layout(config: ModelConfig) -> Schema:
    """Names, shapes and dtypes of everything a node holds of a model: shared, personal, fixed, adapters."""
    state = build_meta(config).state_dict()
    return Schema(
        tuple(
            TensorSpec(name, tuple(tensor.shape), _SAFETENSORS_DTYPES[str(tensor.dtype)])
            for name, tensor in sorted(state.items())
        )
    )


def schema(config: ModelConfig) -> Schema:
    """Of the shared state, which travels: of the whole model if nothing is frozen, personal or adapted."""
    whole = layout(config)
    return transfer.some(whole, transfer.parts([tensor.name for tensor in whole.tensors], config).shared)


def full_schema(config: ModelConfig) -> Schema:
    """Of a base and of an exported model: the plain one, whatever of it travels."""
    return layout(transfer.plain(config))


def parameters(found: Schema) -> int:
    """How many numbers a state of this schema holds."""
    return sum(prod(tensor.shape) for tensor in found.tensors)
