"""FedProx (Li et al. 2020, arXiv:1812.06127): members' losses get a term mu / 2 * ||x - parent||^2, which
keeps those with unusual rows, or with many steps, near the model they started from. The server does as in
FedAvg.
"""

from __future__ import annotations

from dfl_node.train.arguments import Arg
from dfl_node.train.strategies import Strategy
from dfl_node.train.strategies.fedavg import apply

STRATEGY = Strategy(args={"mu": Arg(0.01, 0, 10)}, apply=apply, server={})
