"""FedAvg over pseudo-gradients (McMahan et al. 2017, arXiv:1602.05629; DiLoCo's sign, arXiv:2311.08105).

    model = parent - sum(n_k * delta_k) / sum(n_k)

Everything is elementwise IEEE float64 in the order of the calls, without a reduction whose order a library
could choose: the same updates in the same order give the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfl_node.train.tensors import Array, State


@dataclass(frozen=True, slots=True)
class Sum:
    """What has been accepted so far. `apply` adds in place: a sum has one owner."""

    weighted: dict[str, NDArray[np.float64]]  # sum of n_k * delta_k
    samples: int  # sum of n_k


def init(parent: Mapping[str, Array]) -> Sum:
    return Sum({name: np.zeros(tensor.shape, np.float64) for name, tensor in parent.items()}, 0)


def apply(total: Sum, delta: Mapping[str, Array], samples: int) -> Sum:
    """`total` and one update more."""
    for name, tensor in delta.items():
        total.weighted[name] += tensor.astype(np.float64) * samples
    return Sum(total.weighted, total.samples + samples)


def model(total: Sum, parent: Mapping[str, Array]) -> State:
    """The parent after the mean step, in the parent's dtypes; the parent itself if nothing was added."""
    if not total.samples:
        return dict(parent)
    return {
        name: (tensor.astype(np.float64) - total.weighted[name] / total.samples).astype(tensor.dtype)
        for name, tensor in parent.items()
    }
