"""Many members' local training at once, on the real digits.

One process, no network: members are the first dimension of every tensor, so that twenty trainings cost little
more than one. `local_sgd` is what they must agree with, and an audit is `local_sgd` itself. Images are 14 x
14, each pixel the mean of four, to keep the whole grid within a quarter of an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, islice
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dfl_apps.digits import APP
from dfl_node.train import evaluation, local_sgd, models, network
from dfl_node.train.evaluation import Inputs
from dfl_node.train.rows import Rows, dirichlet_parts, iid_parts
from dfl_node.train.tensors import Array
from dfl_node.train.trainer import ModelConfig, TrainingConfig

SIDE, CLASSES = 14, 10
MODEL = ModelConfig("mlp", {"hidden": 32, "features": SIDE * SIDE})
TRAINING = TrainingConfig(
    local_steps=8, batch_size=32, lr=0.1, momentum=0.9, optimizer="sgd", seed=1, max_update_bytes=1 << 20
)
SPECS = models.schema(MODEL).tensors  # 1.bias, 1.weight, 3.bias, 3.weight
SIZE = sum(prod(spec.shape) for spec in SPECS)

Places = NDArray[np.intp]


@dataclass(frozen=True)
class Digits:
    train: Inputs  # x float32 (n, SIDE * SIDE)
    validation: Inputs
    holdout: Inputs


@lru_cache
def digits() -> Digits:
    return Digits(*map(_halved, (APP.load(None, (1, 1, 1), None), APP.validation(), APP.holdout())))


def _halved(rows: Rows) -> Inputs:
    """Images of half the side: the mean of every four pixels, in [0, 1]."""
    quarters = rows.X.reshape(len(rows), SIDE, 2, SIDE, 2).astype(np.float32)
    x = quarters.mean((2, 4)).reshape(len(rows), -1) / np.float32(255)
    return evaluation.inputs_of(Rows(x, rows.y), models.kind(MODEL))


def split(of: int, alpha: float | None, seed: int) -> list[Places]:
    """Disjoint parts of all training rows, none of them empty."""
    y = digits().train.y.numpy()
    if alpha is None:
        return iid_parts(len(y), of, seed)
    drawn = (dirichlet_parts(y, of, alpha, seed + 1000 * again) for again in count())
    return next(parts for parts in drawn if all(map(len, parts)))


def first(seed: int) -> Tensor:
    """A model at its beginning, as one vector: (SIZE,)."""
    return _vector(evaluation.get_state(network.start(replace(MODEL, seed=seed), None)))


def work(parent: Tensor, shards: Sequence[Inputs], job: int, round_: int) -> Tensor:
    """Every member's honest update, parent minus trained: (members, SIZE). Member m's node seed is m."""
    n, batch = len(shards), TRAINING.batch_size
    chosen = [
        torch.from_numpy(np.stack(list(islice(places, TRAINING.local_steps))))
        for places in (
            local_sgd.batches(len(shard.y), batch, _seed(job, round_, m)) for m, shard in enumerate(shards)
        )
    ]
    xs = torch.stack([s.x[c] for s, c in zip(shards, chosen, strict=True)], 1)  # (H, n, B, features)
    ys = torch.stack([s.y[c] for s, c in zip(shards, chosen, strict=True)], 1)  # (H, n, B)
    wanted = functional.one_hot(ys, CLASSES).float()
    state = parent.expand(n, SIZE).clone()
    bias1, weight1, bias2, weight2 = _layers(state)
    gradient, velocity = torch.zeros_like(state), torch.zeros_like(state)
    d_bias1, d_weight1, d_bias2, d_weight2 = _layers(gradient)
    for x, y in zip(xs, wanted, strict=True):
        hidden = torch.baddbmm(bias1[:, None], x, weight1.mT).relu_()  # (n, B, hidden)
        logits = torch.baddbmm(bias2[:, None], hidden, weight2.mT)  # (n, B, classes)
        error = logits.softmax(2).sub_(y).div_(batch)
        back = torch.bmm(error, weight2).mul_(hidden > 0)
        torch.bmm(error.mT, hidden, out=d_weight2)
        torch.bmm(back.mT, x, out=d_weight1)
        torch.sum(error, 1, out=d_bias2)
        torch.sum(back, 1, out=d_bias1)
        velocity.mul_(TRAINING.momentum).add_(gradient)
        state.sub_(velocity, alpha=TRAINING.lr)
    return parent - state


def done_again(parent: Tensor, shard: Inputs, job: int, round_: int, member: int) -> Tensor:
    """What an audit finds: one member's update by the trainer's own local steps. (SIZE,)"""
    net = network.start(MODEL, None)
    evaluation.set_state(net, _state(parent))
    local_sgd.train(
        net,
        shard,
        TRAINING,
        steps=TRAINING.local_steps,
        seed=_seed(job, round_, member),
        progress=lambda step, loss: None,
    )
    return parent - _vector(evaluation.get_state(net))


def losses(states: Tensor, rows: Inputs) -> list[float]:
    """The mean cross-entropy of each of (m, SIZE) models."""
    logits = _logits(states, rows).double()  # (m, n, classes)
    each = functional.cross_entropy(logits.flatten(0, 1), rows.y.repeat(len(states)), reduction="none")
    found: list[float] = each.view(len(states), -1).mean(1).tolist()
    return found


def accuracy(state: Tensor, rows: Inputs) -> float:
    return float((_logits(state[None], rows)[0].argmax(1) == rows.y).double().mean())


def _logits(states: Tensor, rows: Inputs) -> Tensor:
    bias1, weight1, bias2, weight2 = _layers(states)
    x = rows.x.expand(len(states), *rows.x.shape)
    hidden = torch.baddbmm(bias1[:, None], x, weight1.mT).relu_()
    return torch.baddbmm(bias2[:, None], hidden, weight2.mT)


def _layers(states: Tensor) -> list[Tensor]:
    """Views of (m, SIZE) models, tensor by tensor: (m, *shape)."""
    flat = states.split([prod(spec.shape) for spec in SPECS], 1)
    return [part.unflatten(1, spec.shape) for part, spec in zip(flat, SPECS, strict=True)]


def _state(vector: Tensor) -> dict[str, Array]:
    return {spec.name: part[0].numpy() for spec, part in zip(SPECS, _layers(vector[None]), strict=True)}


def _vector(state: dict[str, Array]) -> Tensor:
    return torch.cat([torch.from_numpy(state[spec.name]).flatten() for spec in SPECS])


def _seed(job: int, round_: int, member: int) -> NDArray[np.uint32]:
    return local_sgd.seed_words(job, round_, member, TRAINING.seed)
