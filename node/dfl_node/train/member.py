"""A strategy's part at the member: what it does to gradients, and the control variate it keeps.

Only the worker imports this: it needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dfl_node.train import strategies
from dfl_node.train.aggregation import control_part, shared_part
from dfl_node.train.local_sgd import Correction, Trained, trainable
from dfl_node.train.strategies import CONTROL, SERVER, scaffold
from dfl_node.train.tensors import Array, State
from dfl_node.train.trainer import AggregationConfig, TrainingConfig

_SERVER_CONTROL = f"{SERVER}{CONTROL}"


def correction(
    rule: AggregationConfig, model: nn.Module, parent: Mapping[str, Array], local: Mapping[str, Array]
) -> Correction | None:
    """What the strategy does to the gradients of a model that stands at its parent. `parent` is the model
    file, `local` this node's own state, empty at first."""
    args = strategies.check(rule.strategy, rule.strategy_args)
    if rule.strategy == "fedprox":
        return proximal(args["mu"], trainable(model))
    if strategies.find(rule.strategy).control:
        return shifted(_shifts(model, parent, control_part(local)))
    return None


def proximal(mu: float, parameters: Sequence[Tensor]) -> Correction:
    """The gradient of FedProx's term mu / 2 * ||x - parent||^2 (Li et al. 2020, arXiv:1812.06127).
    `parameters` have the parent's values when this is called."""
    parent = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def correct(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        return [g.add(p - start, alpha=mu) for g, p, start in zip(gradients, parameters, parent, strict=True)]

    return correct


def shifted(shifts: Sequence[Tensor]) -> Correction:
    """The same addition to every step's gradients: SCAFFOLD's c - c_i (Karimireddy et al. 2020,
    arXiv:1910.06378)."""

    def correct(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        return [g + shift for g, shift in zip(gradients, shifts, strict=True)]

    return correct


def _shifts(model: nn.Module, parent: Mapping[str, Array], own: Mapping[str, Array]) -> list[Tensor]:
    """c - c_i for each trainable parameter; nothing for personal ones, which are not the server's."""
    shifts = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        server = parent.get(_SERVER_CONTROL + name, np.zeros((), np.float32))
        shift = server - own[name] if name in own else server
        shifts.append(torch.from_numpy(np.array(shift, np.float32)).expand_as(parameter))
    return shifts


def next_control(
    parent: Mapping[str, Array],
    local: Mapping[str, Array],
    delta: Mapping[str, Array],
    trained: Trained,
    training: TrainingConfig,
) -> tuple[State, State]:
    """SCAFFOLD's control variate after the local steps, and its change: both as tensors `control.NAME`."""
    reach = scaffold.reach(trained.steps, training.lr, training.momentum)
    own = control_part(local)
    after: State = {}
    change: State = {}
    for name, tensor in shared_part(parent).items():
        before = own[name].astype(np.float64) if own else np.zeros(tensor.shape)
        server = parent[_SERVER_CONTROL + name].astype(np.float64)
        moved = delta[name].astype(np.float64)
        kept = scaffold.control(before, server, moved, reach).astype(tensor.dtype)
        after[CONTROL + name] = kept
        change[CONTROL + name] = (kept - before).astype(tensor.dtype)  # of what is kept, rounding included
    return after, change
