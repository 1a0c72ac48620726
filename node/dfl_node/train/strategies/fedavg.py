"""FedAvg (McMahan et al. 2017, arXiv:1602.05629): the combined step itself.

x <- x - delta
"""

from __future__ import annotations

from collections.abc import Mapping

from dfl_node.train.arguments import Args
from dfl_node.train.strategies import N, Step, Strategy


def apply(parent: N, server: Mapping[str, N], step: Step[N], args: Args) -> tuple[N, dict[str, N]]:
    return parent - step.delta, {}


STRATEGY = Strategy(args={}, apply=apply, server={})
