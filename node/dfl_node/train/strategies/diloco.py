"""DiLoCo (Douillard et al. 2023, arXiv:2311.08105, Algorithm 1): members take H steps of AdamW, the server
takes one of SGD with Nesterov momentum, and the round's step is its gradient.

    u <- momentum u + delta
    x <- x - lr (delta + momentum u)

lr and momentum are the paper's. With `optimizer = "adamw"` in the job's training this is DiLoCo; with "sgd"
it is FedAvg with server momentum.
"""

from __future__ import annotations

from collections.abc import Mapping

from dfl_node.train.arguments import Arg, Args
from dfl_node.train.strategies import N, Step, Strategy


def apply(parent: N, server: Mapping[str, N], step: Step[N], args: Args) -> tuple[N, dict[str, N]]:
    u = args["momentum"] * server["momentum"] + step.delta
    return parent - args["lr"] * (step.delta + args["momentum"] * u), {"momentum": u}


STRATEGY = Strategy(
    args={"lr": Arg(0.7, 0, 10), "momentum": Arg(0.9, 0, 0.9999)},
    apply=apply,
    server={"momentum": lambda args: 0.0},
)
