"""Rows as tensors, and a model's loss and accuracy on them. Only the worker imports this: it needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfl_ledger.errors import UsageError
from dfl_node.train.models import ModelKind
from dfl_node.train.rows import Rows
from dfl_node.train.tensors import State
from dfl_node.train.trainer import Evaluation

BATCH = 100  # rows: the activations of a batch stay in a few megabytes


@dataclass(frozen=True, slots=True)
class Inputs:
    x: Tensor  # (n, *input_shape), uint8 or float32
    y: Tensor  # (n,) int64


def inputs_of(rows: Rows, kind: ModelKind) -> Inputs:
    """Raises UsageError if these rows do not fit the model."""
    shape = rows.X.shape[1:]
    if prod(shape) != prod(kind.input_shape):
        raise UsageError("the data does not fit the model", why=f"rows of {shape}, not {kind.input_shape}")
    if int(rows.y.max()) >= kind.classes:
        why = f"label {int(rows.y.max())}, but the model knows 0 to {kind.classes - 1}"
        raise UsageError("the data does not fit the model", why=why)
    x = torch.from_numpy(np.require(rows.X, requirements=["C", "W"]))
    return Inputs(x.reshape(len(rows), *kind.input_shape), torch.from_numpy(rows.y))


def scaled(x: Tensor) -> Tensor:
    """uint8 pixels to float32 in [0, 1]; floats as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def set_state(model: nn.Module, state: State) -> None:
    """Copies: `state` may be a read-only view of a file. What it does not name stays as it is."""
    with torch.no_grad():
        for name, tensor in state.items():
            model.get_parameter(name).copy_(torch.from_numpy(np.array(tensor)))


def get_state(model: nn.Module) -> State:
    """Views of the model's own memory."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def evaluate(model: nn.Module, inputs: Inputs) -> Evaluation:
    """Mean cross-entropy, summed in float64, and the share of rows whose largest output is the label."""
    model.eval()
    loss, correct, n = 0.0, 0, len(inputs.y)
    with torch.inference_mode():
        for x, y in zip(torch.split(inputs.x, BATCH), torch.split(inputs.y, BATCH), strict=True):
            logits = model(scaled(x)).double()  # (B, classes)
            loss += functional.cross_entropy(logits, y, reduction="sum").item()
            correct += int((logits.argmax(1) == y).sum())
    return Evaluation(accuracy=correct / n, loss=loss / n, samples=n)
