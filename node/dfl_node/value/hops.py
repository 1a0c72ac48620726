"""What each hop of a lap was worth: gains in, one whole number a hop out. Pure arithmetic.

A hop's gain is the validation loss of the model it began from minus that of the model it made, in whole 1e-9.
Early hops gain more by being early: there is more to gain. So a gain is compared with the lap's own trend,

    worth = min(gain / trend(depth), MAX_RATIO) * mean of the positive gains,    0 for a gain of 0 or less

where a hop's depth is how many improvements of this lap its parent held already, and the logarithm of the
trend is a straight line over it. The line's slope is the median of the slopes of all pairs of hops (Theil
1950, Sen 1968, doi:10.1080/01621459.1968.10480934), never rising, and its height the median of what is left:
one hop that gained far too little or too much does not bend the line. With few hops it might all the same, so
a pair counts only while one step makes no more than MAX_STEP of a difference: whoever hops last and does next
to nothing must not pass for the natural end of a steep lap.

Decimal arithmetic, whose ln and exp are correctly rounded: the same worths on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from itertools import combinations

HOP_GAIN = "hop-gain"
MAX_RATIO = Decimal(2)  # to the trend: nobody earns more than twice what its place would lead one to expect
MAX_STEP = Decimal(4)  # the most that the expected gain falls from one depth to the next
MAX_ALL_PAIRS = 300  # hops; above, each is paired with one other only, as Theil did by hand

_EXACT = Context(prec=34, rounding=ROUND_HALF_EVEN)
_STEEPEST = _EXACT.ln(MAX_STEP)

Point = tuple[int, Decimal]  # a hop's depth and ln(gain)


def worths(gains: Sequence[int], depths: Sequence[int]) -> tuple[int, ...]:
    """Each hop's worth, from its gain and its depth (both one a hop, in the same order)."""
    points = {i: (depths[i], _EXACT.ln(Decimal(gain))) for i, gain in enumerate(gains) if gain > 0}
    if not points:
        return (0,) * len(gains)
    slope, height = _line(sorted(points.values()))
    mean = _EXACT.divide(Decimal(sum(gains[i] for i in points)), Decimal(len(points)))

    def worth(i: int) -> int:
        if i not in points:
            return 0
        depth, log_gain = points[i]
        above = _EXACT.subtract(log_gain, _EXACT.fma(slope, Decimal(depth), height))
        ratio = min(_EXACT.exp(above), MAX_RATIO)
        return int(_EXACT.multiply(ratio, mean).to_integral_value(ROUND_HALF_EVEN))

    return tuple(worth(i) for i in range(len(gains)))


def _line(points: Sequence[Point]) -> tuple[Decimal, Decimal]:
    """The trend's slope and its height at depth 0, of points in rising order of depth."""
    slopes = [
        _EXACT.divide(_EXACT.subtract(later, earlier), Decimal(right - left))
        for (left, earlier), (right, later) in _pairs(points)
        if left != right
    ]
    credible = [slope for slope in slopes if abs(slope) <= _STEEPEST]
    slope = _median(credible or slopes or [Decimal(0)])
    slope = max(-_STEEPEST, min(slope, Decimal(0)))
    height = _median([_EXACT.subtract(log, _EXACT.multiply(slope, Decimal(depth))) for depth, log in points])
    return slope, height


def _pairs(points: Sequence[Point]) -> Iterable[tuple[Point, Point]]:
    if len(points) <= MAX_ALL_PAIRS:
        return combinations(points, 2)
    half = len(points) // 2
    return zip(points[:half], points[-half:], strict=True)


def _median(values: Sequence[Decimal]) -> Decimal:
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return _EXACT.divide(_EXACT.add(low, high), Decimal(2))
