"""A multilayer perceptron: `layers` hidden layers of `hidden` units. By default for 28x28 grey images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfl_node.train.models import CLASSES, Architecture, IntArg

if TYPE_CHECKING:
    from torch import nn


def _build(hidden: int, layers: int, features: int, classes: int) -> nn.Module:
    from torch import nn

    stack: list[nn.Module] = [nn.Flatten()]  # (B, features)
    for inputs in (features, *(hidden,) * (layers - 1)):
        stack += [nn.Linear(inputs, hidden), nn.ReLU()]  # (B, hidden)
    return nn.Sequential(*stack, nn.Linear(hidden, classes))  # (B, classes)


def _input_shape(features: int, **_: int) -> tuple[int, ...]:
    return (features,)


def _cuts(layers: int, **_: int) -> tuple[str, ...]:
    """Every linear layer but the first."""
    return tuple(str(1 + 2 * layer) for layer in range(1, layers + 1))


MODEL = Architecture(
    args={
        "hidden": IntArg(64, 1, 4096),
        "layers": IntArg(1, 1, 8),
        "features": IntArg(28 * 28, 1, 1 << 18),
        "classes": CLASSES,
    },
    input_shape=_input_shape,
    build=_build,
    cuts=_cuts,
)
