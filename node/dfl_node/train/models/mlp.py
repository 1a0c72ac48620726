"""A multilayer perceptron for 28x28 grey images: `layers` hidden layers of `hidden` units."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfl_node.train.models import IntArg, ModelKind

if TYPE_CHECKING:
    from torch import nn

INPUTS = 28 * 28
CLASSES = 10


def _build(hidden: int, layers: int) -> nn.Module:
    from torch import nn

    stack: list[nn.Module] = [nn.Flatten()]  # (B, 784)
    for inputs in (INPUTS, *(hidden,) * (layers - 1)):
        stack += [nn.Linear(inputs, hidden), nn.ReLU()]  # (B, hidden)
    return nn.Sequential(*stack, nn.Linear(hidden, CLASSES))  # (B, 10)


MODEL = ModelKind(
    args={"hidden": IntArg(64, 1, 4096), "layers": IntArg(1, 1, 8)},
    input_shape=(1, 28, 28),
    classes=CLASSES,
    build=_build,
)
