"""Fitting to rows at hand: a model's personal part for a measurement, a finished model for its user.

Only the worker imports this: it needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dfl_ledger.errors import DflError, UsageError
from dfl_node.train import evaluation, optimizers, transfer
from dfl_node.train.evaluation import Inputs, scaled
from dfl_node.train.local_sgd import batches, seed_words
from dfl_node.train.tensors import State
from dfl_node.train.trainer import Evaluation, TrainingConfig

BATCH = 32
HELD_OUT = 5  # one row of so many measures a fit
# A model with personal parts is measured as a linear probe measures features (Alain and Bengio 2016,
# arXiv:1610.01644): whoever has the shared state and the rows finds the same.
PROBE_STEPS, PROBE_LR, PROBE_SEED = 30, 0.01, 1

_ADAMW = TrainingConfig(
    local_steps=1, batch_size=BATCH, lr=0.0, momentum=0.9, optimizer="adamw", seed=0, max_update_bytes=0
)
Progress = Callable[[int, float], None]  # step from 1, loss


def measure(net: nn.Module, personal: State, inputs: Inputs) -> Evaluation:
    """What a shared state is worth. `personal` is where the personal tensors begin: they are fitted to the
    even rows, and the odd ones measure. Without personal tensors all rows do."""
    if not personal:
        return evaluation.evaluate(net, inputs)
    if len(inputs.y) < 2:
        raise UsageError("the data cannot measure this model", why="with personal parts it takes two rows")
    even, odd = (Inputs(inputs.x[first::2], inputs.y[first::2]) for first in (0, 1))
    evaluation.set_state(net, personal)
    parameters = [net.get_parameter(name) for name in sorted(personal)]
    _fit(net, parameters, even, PROBE_STEPS, PROBE_LR, PROBE_SEED)
    return evaluation.evaluate(net, odd)


def personalize(
    net: nn.Module,
    inputs: Inputs,
    *,
    steps: int,
    lr: float,
    patterns: Sequence[str],
    seed: int,
    progress: Progress,
) -> tuple[Evaluation, Evaluation]:
    """Fit in place the parameters whose names match. What held-out rows say before and after."""
    names = [name for name, _ in net.named_parameters()]
    chosen = [net.get_parameter(name) for name in names if transfer.matches(name, patterns)]
    if not chosen:
        raise UsageError(
            "there is nothing to fit",
            why=f"no parameter's name matches; there are {', '.join(names)[:300]}",
            help_command="dfl-node personalize DIR --data FILE.npz -o OUT --train '*'",
        )
    n = len(inputs.y)
    if n < HELD_OUT:
        raise UsageError("too few rows to fit a model to", why=f"{n}, not {HELD_OUT} at least")
    order = np.random.RandomState(seed_words(seed)).permutation(n)  # its stream is fixed (NEP 19)
    held, own = (
        Inputs(inputs.x[places], inputs.y[places])
        for places in map(torch.from_numpy, np.split(order, [n // HELD_OUT]))
    )
    before = evaluation.evaluate(net, held)
    loss = _fit(net, chosen, own, steps, lr, seed, progress)
    after = evaluation.evaluate(net, held)
    if not (math.isfinite(loss) and math.isfinite(after.loss)):
        raise DflError(
            "the fit diverged",
            why=f"the loss is {loss:g} after {steps} steps, lr = {lr:g}",
            help_command="dfl-node personalize DIR --data FILE.npz -o OUT --lr 0.001",
        )
    return before, after


def _fit(
    net: nn.Module,
    parameters: Sequence[nn.Parameter],
    inputs: Inputs,
    steps: int,
    lr: float,
    seed: int,
    progress: Progress = lambda step, loss: None,
) -> float:
    """AdamW on these parameters alone. The last step's loss."""
    optimizer = optimizers.optimizer(replace(_ADAMW, lr=lr), parameters)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    net.train()
    places = batches(len(inputs.y), BATCH, seed_words(seed))
    loss = math.nan
    for step in range(1, steps + 1):
        chosen = torch.from_numpy(next(places))
        found = functional.cross_entropy(net(scaled(inputs.x[chosen])), inputs.y[chosen])
        optimizer.step(torch.autograd.grad(found, parameters))
        loss = found.item()
        progress(step, loss)
    return loss
