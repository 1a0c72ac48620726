"""SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II): control variates take the
members' drift out of their steps.

    member i:  y <- y - eta_l (g(y) - c_i + c), K times        c_i' = c_i - c + (x - y) / (K eta_l)
    server:    x <- x - lr delta                               c <- c + |S| / N (combined c_i' - c_i)

c travels in the model file; c_i never leaves its node, its change goes with the update. The paper's member
takes plain SGD steps. With momentum beta a gradient goes on moving the parameters after its step: of K
steps, that taken k before the end moves them by eta_l (1 + beta + ... + beta^k) in all, and the sum of these
weights takes K's place (as in FedNova, Wang et al. 2020, arXiv:2007.07481): c_i' is a mean of gradients.

`clients` is N, between whom the rounds are drawn; 0 says that all take part in every round. Each change is
weighed as its update is, so that c and the step are means of one kind.
"""

from __future__ import annotations

from collections.abc import Mapping

from dfl_ledger.errors import UsageError
from dfl_node.train.arguments import Arg, Args
from dfl_node.train.strategies import N, Step, Strategy


def apply(parent: N, server: Mapping[str, N], step: Step[N], args: Args) -> tuple[N, dict[str, N]]:
    if step.control is None:
        raise UsageError("SCAFFOLD's updates carry control variates", why="these do not")
    share = min(1.0, step.updates / args["clients"]) if args["clients"] else 1.0
    return parent - args["lr"] * step.delta, {"control": server["control"] + share * step.control}


def control(own: N, server: N, moved: N, reach: float) -> N:
    """A member's next control variate. `moved` is parent minus trained, `reach` from below."""
    return own - server + moved / reach


def reach(steps: int, lr: float, momentum: float) -> float:
    """By how much K local steps move the parameters if every gradient is 1: K eta_l without momentum."""
    total = weight = 0.0
    for _ in range(steps):
        weight = momentum * weight + 1
        total += weight
    return lr * total


STRATEGY = Strategy(
    args={"lr": Arg(1, 0, 10), "clients": Arg(0, 0, 1_000_000, whole=True)},
    apply=apply,
    server={"control": lambda args: 0.0},
    control=True,
    optimizers=("sgd",),  # the reach of an AdamW step depends on the gradients themselves
)
