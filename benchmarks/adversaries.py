"""What attackers send instead of their work. They know every honest update of the round, and act as one.

Each takes the honest members' updates (h, SIZE), what the attackers' own rows would have given (a, SIZE), and
numbers to draw from; the answer is (a, SIZE). Those who agree on one update add a little noise each, so that
they are not found out by being alike. Constants are those of byzfl's defaults, where it has them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

Attack = Callable[[Tensor, Tensor, np.random.RandomState], Tensor]

NOISE_LENGTHS = 10  # of an honest update
ALIE_DEVIATIONS = 1.5
SEARCH_STEPS = 20
DISGUISE = 0.01  # noise, in lengths of the update
MIMIC, LABEL_FLIP = "mimic", "label flip"


def _own_work(honest: Tensor, own: Tensor, random: np.random.RandomState) -> Tensor:
    """Honest work on rows whose labels y were committed as 9 - y (as in arXiv:2012.14368)."""
    return own


def _sign_flip(honest: Tensor, own: Tensor, random: np.random.RandomState) -> Tensor:
    """Each its own work backwards (Allen-Zhu et al. 2021, arXiv:2012.14368)."""
    return -own


def _noise(honest: Tensor, own: Tensor, random: np.random.RandomState) -> Tensor:
    return _drawn(own, random) * honest.norm(dim=1).mean() * NOISE_LENGTHS


def _alie(honest: Tensor, own: Tensor, random: np.random.RandomState) -> Tensor:
    """A little is enough: within the honest members' spread (Baruch et al. 2019, arXiv:1902.06156)."""
    return _all(own, honest.mean(0) - ALIE_DEVIATIONS * honest.std(0), random)


def _inner_product(factor: float, honest: Tensor, own: Tensor, random: np.random.RandomState) -> Tensor:
    """The honest mean turned round (Xie et al. 2020, arXiv:1903.03936)."""
    return _all(own, -factor * honest.mean(0), random)


def _min_max(honest: Tensor, own: Tensor, random: np.random.RandomState) -> Tensor:
    """As far from the mean as honest updates are apart at most (Shejwalkar and Houmansadr 2021)."""
    mean, away = honest.mean(0), -honest.std(0)
    apart = torch.cdist(honest, honest).max()
    low, high = 0.0, 100.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        inside = (honest - (mean + middle * away)).norm(dim=1).max() <= apart
        low, high = (middle, high) if inside else (low, middle)
    return _all(own, mean + low * away, random)


def _mimic(honest: Tensor, own: Tensor, random: np.random.RandomState) -> Tensor:
    """All copy one honest member (Karimireddy et al. 2022, arXiv:2006.09365)."""
    return _all(own, honest[0], random)


def _all(own: Tensor, update: Tensor, random: np.random.RandomState) -> Tensor:
    """The same update from everybody, each in its own disguise."""
    return update + _drawn(own, random) * update.norm() * DISGUISE


def _drawn(own: Tensor, random: np.random.RandomState) -> Tensor:
    """Directions of length 1: (a, SIZE)."""
    drawn = torch.from_numpy(random.standard_normal(tuple(own.shape)).astype(np.float32))
    return drawn / drawn.norm(dim=1, keepdim=True)


ATTACKS: dict[str, Attack] = {
    LABEL_FLIP: _own_work,
    "sign flip": _sign_flip,
    "noise": _noise,
    "ALIE": _alie,
    "inner product 0.1": partial(_inner_product, 0.1),
    "inner product 3": partial(_inner_product, 3.0),
    "inner product 100": partial(_inner_product, 100.0),
    "MinMax": _min_max,
    MIMIC: _mimic,
}
