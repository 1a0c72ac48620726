"""How the accepted updates of a round become one step. Pure arithmetic, without numpy and torch: a `Plan`
says what to do with the updates' numbers; `arrays` does it for tensors.

    mean              sum(w_k x_k) / sum(w_k)
    median            of each coordinate (Yin et al. 2018, arXiv:1803.01498)
    trimmed-mean      of each coordinate, without the f smallest and the f largest (the same paper)
    multi-krum        mean of the n - f updates nearest to their neighbours (Blanchard et al. 2017,
                      arXiv:1703.02757)
    geometric-median  by smoothed Weiszfeld steps (RFA, Pillutla et al. 2019, arXiv:1912.13445)
    centered-clip     mean of the updates clipped around a centre (Karimireddy et al. 2021, arXiv:2012.10333)

With `mixing = 1` every update is first replaced by the mean of the n - f nearest to it, itself included
(nearest-neighbour mixing, Allouah et al. 2023, arXiv:2302.01772).

`f` is how many updates of a round may be hostile. No rule can stand a hostile half: when 2 f >= n, because
fewer updates arrived than were hoped for, the coordinate median without mixing is taken, which asks for
nothing but an honest majority. (Of one update it is that update, of two their mean.) That holds wherever f is
used: with `mixing`, and in trimmed-mean and multi-krum.

Only the plain mean weighs updates, by samples. All other rules count heads: `f` of them are
assumed to lie, and they would lie about their samples too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfl_ledger.errors import SpecInvalid
from dfl_node.train import arguments
from dfl_node.train.aggregators import geometry
from dfl_node.train.aggregators.geometry import Groups, Matrix
from dfl_node.train.arguments import Arg

_MIXING = {"f": Arg(1, 0, 10_000, whole=True), "mixing": Arg(0, 0, 1, whole=True)}
_ARGS: dict[str, dict[str, Arg]] = {
    "mean": _MIXING,
    "median": _MIXING,
    "trimmed-mean": _MIXING,
    "multi-krum": _MIXING,
    # nu: distances below it count as it. So small that, as training settles, this does not become the mean.
    "geometric-median": _MIXING | {"steps": Arg(100, 1, 1000, whole=True), "nu": Arg(1e-6, 1e-9, 1e6)},
    # tau: how far from the centre an update may pull; 0 = the median distance, so that half are clipped.
    "centered-clip": _MIXING | {"steps": Arg(3, 1, 100, whole=True), "tau": Arg(0, 0, 1e9)},
}
NAMES = tuple(_ARGS)


@dataclass(frozen=True, slots=True)
class Sum:
    """sum(weights[k] * x_k) / total. An update of weight 0 is left out."""

    weights: tuple[float, ...]  # one an update
    total: float


@dataclass(frozen=True, slots=True)
class Middle:
    """For each coordinate: the mean of what is left of its values without the `trim` smallest and largest."""

    trim: int
    groups: Groups  # a value is the mean of a group of updates


Plan = Sum | Middle


def discount(staleness: int) -> float:
    """What a stale update is multiplied by, 1 / sqrt(1 + staleness) (FedBuff, Nguyen et al. 2022,
    arXiv:2106.06639).

    The update itself and not its weight among the others: a step made of stale updates alone must be shorter
    too. Full steps on a model that is one or more behind overshoot, and then the next ones do.
    """
    return 1 / math.sqrt(1 + staleness)


def check(name: str, args: Mapping[str, Any]) -> dict[str, float]:
    """Every argument, defaults filled in. Raises SpecInvalid with the field's name."""
    if name not in _ARGS:
        raise SpecInvalid("training.aggregator", f"must be one of {', '.join(NAMES)}, not {name!r:.40}")
    return arguments.check(name, "training.aggregator_args", args, _ARGS[name])


def plan(
    name: str, args: Mapping[str, Any], weights: Sequence[float], distances: Callable[[], Matrix]
) -> Plan:
    """What to do with n >= 1 updates of these weights.

    `distances` gives the squared Euclidean distances between the n updates and, last, the zero vector:
    (n + 1) lists of n + 1. It is only called by rules that need it. Raises SpecInvalid.
    """
    checked, n = check(name, args), len(weights)
    f, mixing = int(checked["f"]), bool(checked["mixing"])
    alone: Groups = tuple((k,) for k in range(n))
    if name == "mean" and not mixing:
        return Sum(tuple(weights), sum(weights))
    if name == "median" and not mixing:
        return _median(alone)
    if 2 * f >= n and (mixing or name in ("trimmed-mean", "multi-krum")):
        return _median(alone)
    if name == "trimmed-mean" and not mixing:
        return Middle(f, alone)
    between = distances()
    groups = geometry.neighbours(between, n, f) if mixing else alone
    match name:
        case "mean":
            return _mean(groups, range(n))
        case "median":
            return _median(groups)
        case "trimmed-mean":
            return Middle(f, groups)
    if mixing:
        between = geometry.mixed(between, groups)
    match name:
        case "multi-krum":
            return _mean(groups, geometry.multi_krum(between, n, f))
        case "geometric-median":
            steps, nu = int(checked["steps"]), checked["nu"]
            return _combination(groups, geometry.geometric_median(between, n, steps, nu))
        case _:
            steps, tau = int(checked["steps"]), checked["tau"]
            return _combination(groups, geometry.centered_clip(between, n, steps, tau))


def _median(groups: Groups) -> Middle:
    return Middle((len(groups) - 1) // 2, groups)


def _mean(groups: Groups, chosen: Sequence[int]) -> Sum:
    """The mean of some groups' means; all groups are of one size."""
    counts = [0] * len(groups)
    for group in (groups[i] for i in chosen):
        for k in group:
            counts[k] += 1
    return Sum(tuple(map(float, counts)), float(sum(counts)))


def _combination(groups: Groups, weights: Sequence[float]) -> Sum:
    """A combination of the groups' means."""
    spread = [0.0] * len(groups)
    for group, weight in zip(groups, weights, strict=True):
        for k in group:
            spread[k] += weight / len(group)
    return Sum(tuple(spread), 1.0)
