"""What robust rules need to know of n vectors: the distances between them, and nothing else.

A point that a rule looks for is a combination of the given ones, z = sum(w_j p_j) with sum(w_j) = 1. Its
distances follow from those between the points (Lagrange; used in multidimensional scaling):

    ||p_i - z||^2 = sum_j w_j D_ij - 1/2 sum_jk w_j w_k D_jk        D_ij = ||p_i - p_j||^2

so a million parameters are read once, and all iterations are about n numbers. They run in Python's floats,
with `math.fsum`, which rounds an exact sum once, and `math.sqrt`: one result on every machine. Ties go to the
earlier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]
Groups = tuple[tuple[int, ...], ...]


def neighbours(between: Matrix, n: int, f: int) -> Groups:
    """For each of n points the n - f nearest, itself included, in rising order of their places."""

    def nearest(i: int) -> tuple[int, ...]:
        others = sorted((j for j in range(n) if j != i), key=lambda j: between[i][j])
        return tuple(sorted([i, *others[: n - f - 1]]))

    return tuple(map(nearest, range(n)))


def mixed(between: Matrix, groups: Groups) -> list[list[float]]:
    """The distances between the groups' means, and those of the last point, which stays as it is, to them."""
    n = len(groups)
    points: list[dict[int, float]] = [dict.fromkeys(group, 1 / len(group)) for group in groups]
    points.append({n: 1.0})
    result = [[0.0] * (n + 1) for _ in range(n + 1)]
    for i in range(n + 1):
        for j in range(i):
            result[i][j] = result[j][i] = _apart(between, points[i], points[j])
    return result


def _apart(between: Matrix, one: dict[int, float], other: dict[int, float]) -> float:
    """Between two combinations: ||sum a_k p_k||^2 = -1/2 sum a_k a_l D_kl if the a_k add up to 0."""
    terms = {k: one.get(k, 0.0) - other.get(k, 0.0) for k in one | other}
    a = [(k, weight) for k, weight in terms.items() if weight]
    return max(0.0, -0.5 * math.fsum(x * y * between[k][m] for k, x in a for m, y in a))


def multi_krum(between: Matrix, n: int, f: int) -> tuple[int, ...]:
    """The n - f points with the least sum of squared distances to their n - f - 1 nearest others, n > 2 f.

    Blanchard et al. sum over n - f - 2 of them, which leaves none at n = 2, f = 0 or n = 3, f = 1; we sum
    over as many as honest updates have honest others, as byzfl does.
    """

    def score(i: int) -> float:
        return math.fsum(sorted(between[i][j] for j in range(n) if j != i)[: n - f - 1])

    scores = [score(i) for i in range(n)]
    return tuple(sorted(sorted(range(n), key=scores.__getitem__)[: n - f]))


def geometric_median(between: Matrix, n: int, steps: int, nu: float) -> tuple[float, ...]:
    """Weights of n points: z <- sum(p_i / d_i) / sum(1 / d_i) with d_i = max(nu, ||p_i - z||), from z = 0,
    the last point."""
    weights = [0.0] * n + [1.0]
    for _ in range(steps):
        pull = [1 / max(nu, distance) for distance in _distances(between, weights)[:n]]
        total = math.fsum(pull)
        stepped = [p / total for p in pull] + [0.0]
        if stepped == weights:
            break
        weights = stepped
    return tuple(weights[:n])


def centered_clip(between: Matrix, n: int, steps: int, tau: float) -> tuple[float, ...]:
    """Weights of n points: z <- z + mean((p_i - z) min(1, tau / ||p_i - z||)), from z = 0, the last point,
    whose own weight need not be told. `tau` = 0 takes the median of the distances, anew in each step."""
    weights = [0.0] * n + [1.0]
    for _ in range(steps):
        distances = _distances(between, weights)[:n]
        radius = tau or _median(distances)
        shares = [min(1.0, radius / d) / n if d else 1 / n for d in distances]
        rest = 1 - math.fsum(shares)
        weights = [rest * w + share for w, share in zip(weights, [*shares, 0.0], strict=True)]
    return tuple(weights[:n])


def _distances(between: Matrix, weights: Sequence[float]) -> list[float]:
    """From each point to sum(w_j p_j)."""
    to_each = [math.fsum(w * d for w, d in zip(weights, row, strict=True) if w) for row in between]
    within = 0.5 * math.fsum(w * reached for w, reached in zip(weights, to_each, strict=True) if w)
    return [math.sqrt(max(0.0, reached - within)) for reached in to_each]


def _median(values: Sequence[float]) -> float:
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
