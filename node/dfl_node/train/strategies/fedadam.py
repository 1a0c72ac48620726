"""FedAdam (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2): Adam at the server, the round's step its
gradient.

    m <- beta1 m + (1 - beta1) delta            v <- beta2 v + (1 - beta2) delta^2
    x <- x - lr m / (sqrt(v) + tau)

As in the paper there is no correction of bias, and v starts at tau^2. The paper's delta is trained minus
parent and added; ours is parent minus trained and subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping

from dfl_node.train.arguments import Arg, Args
from dfl_node.train.strategies import N, Step, Strategy, root

ARGS = {
    "lr": Arg(0.03, 0, 10),
    "beta1": Arg(0.9, 0, 0.9999),
    "beta2": Arg(0.99, 0, 0.9999),
    "tau": Arg(
        1e-3, 1e-9, 1
    ),  # how adaptive: the step of a parameter that hardly moves is lr / tau times smaller
}


def apply(parent: N, server: Mapping[str, N], step: Step[N], args: Args) -> tuple[N, dict[str, N]]:
    square = step.delta * step.delta
    v = args["beta2"] * server["v"] + (1 - args["beta2"]) * square
    return move(parent, server["m"], v, step.delta, args)


def move(parent: N, m: N, v: N, delta: N, args: Args) -> tuple[N, dict[str, N]]:
    """The half that FedAdam and FedYogi share: the new m, and the step with it and the new v."""
    m = args["beta1"] * m + (1 - args["beta1"]) * delta
    return parent - args["lr"] * m / (root(v) + args["tau"]), {"m": m, "v": v}


SERVER = {"m": lambda args: 0.0, "v": lambda args: args["tau"] * args["tau"]}
STRATEGY = Strategy(args=ARGS, apply=apply, server=SERVER)
