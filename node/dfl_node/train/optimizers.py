"""The two optimizers there are, with their state in the open, so that a stage's can travel in a snapshot.

`torch.optim` would import the compiler: 70 MB for nothing. Only the worker imports this: it needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dfl_ledger.errors import SpecInvalid
from dfl_node.train.trainer import TrainingConfig

# AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with its usual constants; `momentum` is beta 1.
BETA2, EPSILON, WEIGHT_DECAY = 0.999, 1e-8, 0.01


class Optimizer(Protocol):
    """Steps `parameters` in place. `slots` and `steps` are its whole state."""

    steps: int  # done

    @property
    def slots(self) -> Mapping[str, Sequence[Tensor]]:
        """By what they hold; each one tensor a parameter, in their order."""
        ...

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Gradients in the order of the parameters."""
        ...


def optimizer(config: TrainingConfig, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """A fresh one. Raises SpecInvalid."""
    match config.optimizer:
        case "sgd":
            return Sgd(config.lr, config.momentum, parameters)
        case "adamw":
            return AdamW(config.lr, config.momentum, parameters)
        case other:
            raise SpecInvalid("training.optimizer", f"must be sgd or adamw, not {other!r:.40}")


class Sgd:
    """v <- momentum * v + g,  p <- p - lr * v (Sutskever et al. 2013, the form without dampening)."""

    def __init__(self, lr: float, momentum: float, parameters: Sequence[nn.Parameter]) -> None:
        self._lr, self._momentum, self._parameters = lr, momentum, parameters
        self.slots = {"velocity": [torch.zeros_like(p) for p in parameters]}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        for p, g, v in zip(self._parameters, gradients, self.slots["velocity"], strict=True):
            v.mul_(self._momentum).add_(g)
            p.sub_(v, alpha=self._lr)


class AdamW:
    def __init__(self, lr: float, beta1: float, parameters: Sequence[nn.Parameter]) -> None:
        self._lr, self._beta1, self._parameters = lr, beta1, parameters
        self.slots = {slot: [torch.zeros_like(p) for p in parameters] for slot in ("first", "second")}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        lr, beta1, t = self._lr, self._beta1, self.steps
        first, second = self.slots["first"], self.slots["second"]
        for p, g, m, v in zip(self._parameters, gradients, first, second, strict=True):
            m.mul_(beta1).add_(g, alpha=1 - beta1)
            v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            root = (v / (1 - BETA2**t)).sqrt_().add_(EPSILON)
            p.mul_(1 - lr * WEIGHT_DECAY).addcdiv_(m, root, value=-lr / (1 - beta1**t))
