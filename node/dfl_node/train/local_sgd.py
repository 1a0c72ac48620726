"""H local steps from a parent on this node's rows (local SGD, Stich 2019, arXiv:1805.09767).

Only the worker imports this: it needs torch.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dfl_ledger.errors import DflError
from dfl_node.train import optimizers
from dfl_node.train.evaluation import Inputs, scaled
from dfl_node.train.trainer import TrainingConfig

PROGRESS_EVERY_S = 0.2
# What the first step may take for itself: memory, threads, kernels chosen. It is no measure of the next.
WARM_UP_S = 0.5

Progress = Callable[[int, float], None]  # step from 1, loss
Clock = Callable[[], float]  # seconds
Correction = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # of gradients, in the order of `trainable`


@dataclass(frozen=True, slots=True)
class Trained:
    steps: int  # done
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
    correct: Correction | None = None,
    budget_s: float | None = None,
    clock: Clock = time.perf_counter,
) -> Trained:
    """Train in place what of `model` may be trained. Raises DflError if the loss leaves the finite numbers.

    `correct` is what a strategy does to a member's gradients. With a budget the loop ends before the step
    that would pass it at the pace so far; one step is always done.
    """
    under_way = training(
        model,
        inputs,
        config,
        steps=steps,
        seed=seed,
        progress=progress,
        correct=correct,
        budget_s=budget_s,
        clock=clock,
    )
    while True:
        try:
            next(under_way)
        except StopIteration as end:
            done: Trained = end.value
            return done


def training(
    model: nn.Module,
    inputs: Inputs,
    config: TrainingConfig,
    *,
    steps: int,
    seed: NDArray[np.uint32],
    progress: Progress,
    correct: Correction | None = None,
    budget_s: float | None = None,
    clock: Clock = time.perf_counter,
) -> Generator[None, None, Trained]:
    """`train`, one step at a time: the caller may do something else in between, which its budget pays for."""
    torch.manual_seed(int(seed[0]))
    parameters = trainable(model)
    optimizer = optimizers.optimizer(config, parameters)
    model.train()
    losses: list[float] = []
    places = batches(len(inputs.y), config.batch_size, seed)
    pace = _Pace(clock, budget_s)
    told = pace.began
    for number in range(1, steps + 1):
        chosen = torch.from_numpy(next(places))
        logits = model(scaled(inputs.x[chosen]))  # (B, classes)
        loss = functional.cross_entropy(logits, inputs.y[chosen])
        gradients: Sequence[Tensor] = torch.autograd.grad(loss, parameters)
        optimizer.step(gradients if correct is None else correct(gradients))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise DflError(
                "training diverged",
                why=f"the loss is {losses[-1]} at step {number} of {steps}, lr = {config.lr:g}",
                help_command="dfl-node job submit job.toml  # with a smaller training.lr",
            )
        if (now := clock()) - told > PROGRESS_EVERY_S:
            progress(number, losses[-1])
            told = now
        if pace.spent(number, now):
            break
        yield
    tail = losses[-max(1, len(losses) // 10) :]
    return Trained(len(losses), len(losses) * config.batch_size, sum(tail) / len(tail), clock() - pace.began)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """In the order of the model's own list."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class _Pace:
    """When a budget of seconds is used up."""

    def __init__(self, clock: Clock, budget_s: float | None) -> None:
        self.began = clock()
        self._budget_s = math.inf if budget_s is None else budget_s
        self._first = 0.0  # when the first step was done

    def spent(self, done: int, now: float) -> bool:
        """Whether another step, after `done` of them, would pass the budget."""
        if done == 1:
            self._first = now
            next_s = max(0.0, now - self.began - WARM_UP_S)
        else:
            next_s = (now - self._first) / (done - 1)
        return now - self.began + next_s > self._budget_s
