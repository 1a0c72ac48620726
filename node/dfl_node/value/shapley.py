"""What each update was worth: values of coalitions in, one whole number an update out. Pure arithmetic.

A coalition is a bit mask over the updates; its value is v(S) = loss(parent) - loss(parent - mean step of S)
on the requester's validation rows, in whole 1e-9. The Shapley value (Shapley 1953) is the one division with

    efficiency   the worths add up to v(all)
    symmetry     updates that do the same in every coalition get the same
    null player  an update that changes no coalition gets nothing
    additivity   worths under v + w are the sums of the worths under v and under w
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import factorial, isfinite

UNIT = 10**9  # a loss of 1.0
MAX_EXACT = 8  # updates: 2^8 coalitions are evaluated; above, `gtg` estimates
SHAPLEY = "shapley"
LEAVE_ONE_OUT = "leave-one-out"

# A model that an update has wrecked has a loss of NaN, Inf or anything: as bad as this, and no worse.
MAX_LOSS = 1e6


def fixed(loss: float) -> int:
    """A loss in whole 1e-9, to the nearest, halves to even; beyond MAX_LOSS or not finite is MAX_LOSS."""
    return round(min(loss, MAX_LOSS) * UNIT) if isfinite(loss) else int(MAX_LOSS) * UNIT


def coalitions(n: int, method: str) -> tuple[int, ...]:
    """The masks whose values `worths` needs, besides the empty one, which is worth nothing."""
    everyone = (1 << n) - 1
    if method == SHAPLEY:
        return tuple(range(1, everyone + 1))
    without_one = (everyone & ~(1 << i) for i in range(n))
    return tuple(dict.fromkeys(mask for mask in (everyone, *without_one) if mask))


def worths(values: Mapping[int, int], n: int, method: str) -> tuple[int, ...]:
    """Each update's worth, from the values of `coalitions(n, method)`, to the nearest, halves to even."""
    if method == SHAPLEY:
        return tuple(round(worth) for worth in shapley([values.get(mask, 0) for mask in range(1 << n)]))
    return leave_one_out(values, n)


def shapley(values: Sequence[int]) -> tuple[Fraction, ...]:
    """Exact Shapley values; `values[mask]` is the worth of a coalition, `values[0]` is 0.

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! * (v(S + i) - v(S))
    """
    n = max(0, len(values).bit_length() - 1)
    if len(values) != 1 << n or values[0] != 0:
        raise ValueError("there must be a value for each of 2^n coalitions, 0 for the empty one")
    weight = [factorial(size) * factorial(n - size - 1) for size in range(n)]
    return tuple(
        Fraction(
            sum(
                weight[mask.bit_count()] * (values[mask | 1 << i] - values[mask])
                for mask in range(1 << n)
                if not mask >> i & 1
            ),
            factorial(n),
        )
        for i in range(n)
    )


def leave_one_out(values: Mapping[int, int], n: int) -> tuple[int, ...]:
    """v(all) - v(all without i): n + 1 evaluations, but blind to updates that replace each other."""
    everyone = (1 << n) - 1
    return tuple(values.get(everyone, 0) - values.get(everyone & ~(1 << i), 0) for i in range(n))
