"""FedYogi (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2): FedAdam, but v moves by no more than the newest
square, so that rare large steps are not forgotten at once.

    v <- v - (1 - beta2) delta^2 sign(v - delta^2)
"""

from __future__ import annotations

from collections.abc import Mapping

from dfl_node.train.arguments import Args
from dfl_node.train.strategies import N, Step, Strategy
from dfl_node.train.strategies.fedadam import ARGS, SERVER, move


def apply(parent: N, server: Mapping[str, N], step: Step[N], args: Args) -> tuple[N, dict[str, N]]:
    square = step.delta * step.delta
    ahead = server["v"] - square
    sign = (ahead > 0) * 1.0 - (ahead < 0) * 1.0
    v = server["v"] - (1 - args["beta2"]) * square * sign
    return move(parent, server["m"], v, step.delta, args)


STRATEGY = Strategy(args=ARGS, apply=apply, server=SERVER)
