"""Shapley values of many updates, estimated: guided truncated gradient Shapley (GTG-Shapley, Liu et al. 2022,
doi:10.1145/3501811). Pure, in whole numbers and fractions: the same values give the same worths.

An update's Shapley value is its mean marginal worth over all orders of arrival: the mean over the places in
which it may arrive of what it adds there.

    guided             in the first place, the second and the last the marginals are largest, or alone: there
                       they are measured, behind every partner (above ALL_PAIRS updates, behind PARTNERS drawn
                       ones); only the places between are sampled, by orders that each update leads in turn
    between rounds     a round whose updates together changed nothing measurable is not looked into
    within a round     an order is cut once it has reached what all together are worth, twice running (once
                       may be on the way to somewhere else): who comes later adds nothing
    bounded            at most `most_evaluations(n)` coalitions: the order that would ask for more is dropped.
                       No earlier end when the errors look small: two machines whose values differ in the last
                       digit must not draw different numbers of orders

The error bar is the standard error of the mean. A few orders may miss the ones that matter, so each variance
is taken half as its own and half as the mean of all. What the estimates miss of v(all) is shared out by
their own variances (the least-squares correction of independent errors): worths add up to v(all), and who
changes no coalition still gets nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

from dfl_node.value.draws import shuffled

UNCHANGED = 1_000  # 1e-6 of loss: what all together are worth is less than anybody can measure
CUT = 20  # an order is cut when what is left is within 1/20 of the mean worth
ALL_PAIRS = 32
PARTNERS = 8  # even

_FULL_ORDERS = 6  # that can be paid for at least
_PER_UPDATE, _IN_ORDERS = 24, 768
_TURNS, _PLACES = 64, 1 << 18  # orders by n, and their length altogether, when values come for nothing
_DOMAIN = b"dfl order"

Ask = Generator[int, int, int]


@dataclass(frozen=True, slots=True)
class Estimate:
    worths: tuple[int, ...]
    errors: tuple[int, ...]  # a standard error each, rounded up
    evaluations: int  # coalitions that were asked for


def most_evaluations(n: int) -> int:
    """No estimate of n updates asks for more coalitions."""
    pairs = n * (n - 1) // 2 if n <= ALL_PAIRS else n * PARTNERS // 2
    return 1 + 2 * n + pairs + max(_FULL_ORDERS * n, min(_PER_UPDATE * n, _IN_ORDERS))


def estimate(n: int, seed: int) -> Generator[int, int, Estimate]:
    """Yields the coalitions (bit masks) of n >= 4 updates whose values it wants, each once, and is sent them.

    `seed` draws the orders: nobody may know it before the updates are committed. Raises ValueError unless it
    fits 32 bytes.
    """
    everyone, known, most = (1 << n) - 1, {0: 0}, most_evaluations(n)

    def value(coalition: int) -> Ask:
        if coalition not in known:
            known[coalition] = yield coalition
        return known[coalition]

    whole = yield from value(everyone)
    if abs(whole) <= UNCHANGED:
        return Estimate((0,) * n, (0,) * n, len(known) - 1)
    ends, second, between = [0] * n, _samples(n), _samples(n)
    for player in range(n):  # the first place and the last
        own = 1 << player
        ends[player] = (yield from value(own)) + whole - (yield from value(everyone ^ own))
    for one, other in _pairs(seed, n):
        both = yield from value(1 << one | 1 << other)
        second[one].add(both - known[1 << other])
        second[other].add(both - known[1 << one])
    for k in range(max(_FULL_ORDERS, min(_TURNS * n, _PLACES // n))):
        order = _order(seed, k, n)
        coalition = 1 << order[0] | 1 << order[1]
        if coalition not in known and len(known) > most:
            break
        reached = yield from value(coalition)
        found, there, full = dict.fromkeys(order[2:-1], 0), 0, True
        for player in found:
            there = there + 1 if abs(whole - reached) * CUT * n <= abs(whole) else 0
            if there == 2:
                break
            coalition |= 1 << player
            full = coalition in known or len(known) <= most
            if not full:
                break
            after = yield from value(coalition)
            found[player], reached = after - reached, after
        if not full:
            break
        for player, marginal in found.items():
            between[player].add(marginal)
    return _finish(whole, ends, second, between, len(known) - 1)


@dataclass(slots=True)
class _Samples:
    """Marginal worths of one update."""

    count: int = 0
    total: int = 0
    squares: int = 0

    def add(self, marginal: int) -> None:
        self.count += 1
        self.total += marginal
        self.squares += marginal * marginal

    @property
    def mean(self) -> Fraction:
        return Fraction(self.total, max(1, self.count))

    @property
    def variance(self) -> Fraction:
        """Of the mean: the sample variance / count. Of less than two samples nothing is known."""
        if self.count < 2:
            return Fraction(0)
        spread = self.squares - Fraction(self.total * self.total, self.count)
        return spread / (self.count * (self.count - 1))


def _samples(n: int) -> list[_Samples]:
    return [_Samples() for _ in range(n)]


def _variances(second: list[_Samples], between: list[_Samples]) -> list[Fraction]:
    """Of the estimates. Of n - 1 partners those that were met are a sample without replacement."""
    n = len(second)
    return [
        (Fraction(n - 1 - one.count, n - 1) * one.variance + (n - 3) ** 2 * rest.variance) / (n * n)
        for one, rest in zip(second, between, strict=True)
    ]


def _finish(
    whole: int, ends: list[int], second: list[_Samples], between: list[_Samples], evaluations: int
) -> Estimate:
    n = len(ends)
    means = [
        (end + one.mean + (n - 3) * rest.mean) / n
        for end, one, rest in zip(ends, second, between, strict=True)
    ]
    variances = _variances(second, between)
    missing, noise = whole - sum(means), sum(variances, Fraction(0))
    if noise:
        means = [mean + missing * own / noise for mean, own in zip(means, variances, strict=True)]
    errors = tuple(_root((variance + noise / n) / 2) for variance in variances)
    return Estimate(tuple(round(mean) for mean in means), errors, evaluations)


def _root(square: Fraction) -> int:
    """Its square root, rounded up."""
    whole = -(-square.numerator // square.denominator)
    root = isqrt(whole)
    return root if root * root == whole else root + 1


def _pairs(seed: int, n: int) -> list[tuple[int, int]]:
    """All pairs, or so many that everybody has PARTNERS: neighbours on a ring in drawn order, the next but
    one, and so on."""
    if n <= ALL_PAIRS:
        return [(one, other) for one in range(n) for other in range(one)]
    ring = shuffled(_DOMAIN, seed, 0, list(range(n)))
    return [(ring[p], ring[(p + away) % n]) for away in range(1, PARTNERS // 2 + 1) for p in range(n)]


def _order(seed: int, k: int, n: int) -> list[int]:
    """The k-th order: leaders take turns, in an order drawn for each turn of n; the rest is drawn alone."""
    leader = shuffled(_DOMAIN, seed, 2 * (k // n) + 2, list(range(n)))[k % n]
    return [leader, *shuffled(_DOMAIN, seed, 2 * k + 1, [player for player in range(n) if player != leader])]
