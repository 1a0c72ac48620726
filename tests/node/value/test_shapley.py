"""Shapley values against brute force over all orders, and the axioms that name them."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_node.value import shapley
from dfl_node.value.shapley import LEAVE_ONE_OUT, SHAPLEY


@st.composite
def games(draw: st.DrawFn, players: int | None = None) -> list[int]:
    """v of every coalition, 0 for the empty one."""
    n = draw(st.integers(1, 5)) if players is None else players
    value = st.integers(-(10**15), 10**15)
    return [0, *draw(st.lists(value, min_size=2**n - 1, max_size=2**n - 1))]


def players(game: list[int]) -> int:
    return len(game).bit_length() - 1


def brute_force(game: list[int]) -> list[Fraction]:
    """The definition: the mean marginal worth over every order of arrival."""
    n = players(game)
    total = [0] * n
    for order in permutations(range(n)):
        coalition = 0
        for player in order:
            total[player] += game[coalition | 1 << player] - game[coalition]
            coalition |= 1 << player
    return [Fraction(t, math.factorial(n)) for t in total]


@given(games())
@settings(max_examples=60, deadline=None)
def test_equals_brute_force(game: list[int]) -> None:
    assert list(shapley.shapley(game)) == brute_force(game)


@given(games())
@settings(max_examples=60, deadline=None)
def test_efficiency(game: list[int]) -> None:
    """Exactly before rounding, within half a unit an update after it."""
    n = players(game)
    assert sum(shapley.shapley(game)) == game[-1]
    assert abs(sum(shapley.worths(dict(enumerate(game)), n, SHAPLEY)) - game[-1]) <= n / 2


@given(games(3), st.integers(-(10**9), 10**9))
@settings(deadline=None)
def test_symmetry(game: list[int], seed: int) -> None:
    """Players 0 and 1 made interchangeable get the same."""
    even = list(game)
    for others in (0b000, 0b100):
        even[others | 0b01] = even[others | 0b10] = game[others | 0b01] + seed
    first, second, _ = shapley.shapley(even)
    assert first == second


@given(games(3))
@settings(deadline=None)
def test_null_player(game: list[int]) -> None:
    """A fourth player who changes no coalition gets nothing, and takes nothing from the others."""
    worths = shapley.shapley(game + game)
    assert worths[3] == 0
    assert worths[:3] == shapley.shapley(game)


@given(games(3), games(3))
@settings(deadline=None)
def test_additivity(one: list[int], other: list[int]) -> None:
    both = shapley.shapley([a + b for a, b in zip(one, other, strict=True)])
    assert both == tuple(a + b for a, b in zip(shapley.shapley(one), shapley.shapley(other), strict=True))


def test_the_glove_game() -> None:
    """One left glove, two right ones: the left is worth 2/3, each right 1/6 (Shapley and Shubik 1969)."""
    pairs = [int(bool(s & 1) and bool(s & 0b110)) for s in range(8)]
    assert shapley.shapley(pairs) == (Fraction(2, 3), Fraction(1, 6), Fraction(1, 6))


@given(games())
@settings(deadline=None)
def test_leave_one_out(game: list[int]) -> None:
    n = players(game)
    everyone = 2**n - 1
    wanted = shapley.coalitions(n, LEAVE_ONE_OUT)
    worths = shapley.worths({s: game[s] for s in wanted}, n, LEAVE_ONE_OUT)
    assert worths == tuple(game[everyone] - game[everyone & ~(1 << i)] for i in range(n))


def test_what_is_evaluated() -> None:
    assert shapley.coalitions(0, SHAPLEY) == shapley.coalitions(0, LEAVE_ONE_OUT) == ()
    assert shapley.coalitions(1, SHAPLEY) == shapley.coalitions(1, LEAVE_ONE_OUT) == (1,)
    assert len(shapley.coalitions(8, SHAPLEY)) == 255
    assert shapley.coalitions(3, LEAVE_ONE_OUT) == (0b111, 0b110, 0b101, 0b011)
    assert len(shapley.coalitions(9, LEAVE_ONE_OUT)) == 10


@pytest.mark.parametrize("game", [[], [1], [0, 1, 2], [5, 1]])
def test_incomplete_games_are_refused(game: list[int]) -> None:
    with pytest.raises(ValueError, match="a value for each"):
        shapley.shapley(game)


def test_losses_in_fixed_point() -> None:
    assert shapley.fixed(0.5) == 500_000_000
    assert shapley.fixed(1.5e-9) == shapley.fixed(2.5e-9) == 2  # halves to even
    worst = int(shapley.MAX_LOSS) * shapley.UNIT
    assert {shapley.fixed(loss) for loss in (math.nan, math.inf, 1e300, 1e6)} == {worst}
