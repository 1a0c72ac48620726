"""H local steps from a parent on this node's rows (local SGD, Stich 2019, arXiv:1805.09767).

Only the worker imports this: it needs torch.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dfl_ledger.errors import DflError, SpecInvalid
from dfl_node.train.evaluation import Inputs, scaled
from dfl_node.train.trainer import TrainingConfig

PROGRESS_EVERY_S = 0.2
# AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with its usual constants; `momentum` is beta 1.
BETA2, EPSILON, WEIGHT_DECAY = 0.999, 1e-8, 0.01

Progress = Callable[[int, float], None]  # step from 1, loss
Step = Callable[[Sequence[Tensor]], None]  # gradients in the order of the parameters


@dataclass(frozen=True, slots=True)
class Trained:
    samples: int  # steps * batch size
    loss: float  # mean over the last tenth of the steps
    train_s: float


def seed_words(*parts: int) -> NDArray[np.uint32]:
    """A seed of 256 bits from whole numbers, for numpy; its first word seeds torch."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.frombuffer(digest, "<u4")


def batches(n: int, batch_size: int, seed: NDArray[np.uint32]) -> Iterator[NDArray[np.intp]]:
    """Endless places of n rows: every row once before any comes again, also when a batch is larger than n."""
    random = np.random.RandomState(seed)  # its stream is fixed (NEP 19)
    left: NDArray[np.intp] = np.empty(0, np.intp)
    while True:
        while len(left) < batch_size:
            left = np.concatenate([left, random.permutation(n)])
        yield left[:batch_size]
        left = left[batch_size:]


def train(
    model: nn.Module,
    inputs: Inputs,
    config: TrainingConfig,
    *,
    steps: int,
    seed: NDArray[np.uint32],
    progress: Progress,
) -> Trained:
    """Train `model` in place. Raises DflError if the loss leaves the finite numbers."""
    torch.manual_seed(int(seed[0]))
    parameters = list(model.parameters())
    step = _optimizer(config, parameters)
    model.train()
    losses: list[float] = []
    began = told = time.perf_counter()
    places = batches(len(inputs.y), config.batch_size, seed)
    for number in range(1, steps + 1):
        chosen = torch.from_numpy(next(places))
        logits = model(scaled(inputs.x[chosen]))  # (B, classes)
        loss = functional.cross_entropy(logits, inputs.y[chosen])
        step(torch.autograd.grad(loss, parameters))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise DflError(
                "training diverged",
                why=f"the loss is {losses[-1]} at step {number} of {steps}, lr = {config.lr:g}",
                help_command="dfl-node job submit job.toml  # with a smaller training.lr",
            )
        if (now := time.perf_counter()) - told > PROGRESS_EVERY_S:
            progress(number, losses[-1])
            told = now
    tail = losses[-max(1, steps // 10) :]
    return Trained(steps * config.batch_size, sum(tail) / len(tail), time.perf_counter() - began)


def _optimizer(config: TrainingConfig, parameters: list[nn.Parameter]) -> Step:
    """The two optimizers there are. `torch.optim` would import the compiler: 70 MB for nothing."""
    match config.optimizer:
        case "sgd":
            return _sgd(config.lr, config.momentum, parameters)
        case "adamw":
            return _adamw(config.lr, config.momentum, parameters)
        case other:
            raise SpecInvalid("training.optimizer", f"must be sgd or adamw, not {other!r:.40}")


def _sgd(lr: float, momentum: float, parameters: list[nn.Parameter]) -> Step:
    """v <- momentum * v + g,  p <- p - lr * v (Sutskever et al. 2013, the form without dampening)."""
    velocity = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(gradients: Sequence[Tensor]) -> None:
        for p, g, v in zip(parameters, gradients, velocity, strict=True):
            v.mul_(momentum).add_(g)
            p.sub_(v, alpha=lr)

    return step


def _adamw(lr: float, beta1: float, parameters: list[nn.Parameter]) -> Step:
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    t = 0

    @torch.no_grad()
    def step(gradients: Sequence[Tensor]) -> None:
        nonlocal t
        t += 1
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            m.mul_(beta1).add_(g, alpha=1 - beta1)
            v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            root = (v / (1 - BETA2**t)).sqrt_().add_(EPSILON)
            p.mul_(1 - lr * WEIGHT_DECAY).addcdiv_(m, root, value=-lr / (1 - beta1**t))

    return step
