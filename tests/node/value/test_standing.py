"""Who is left out of the aggregate: persistent harm, and nothing less."""

from __future__ import annotations

import pytest

from dfl_node.value.standing import MIN_MEASURED, WINDOW, left_out

FINE = [1] * WINDOW


@pytest.mark.parametrize(
    ("worths", "out"),
    [
        ([-1] * WINDOW, True),
        ([-1] * (WINDOW - 1) + [10**9], True),  # one lucky round, however lucky
        ([-1] * (WINDOW - 2) + [1, 1], False),
        ([-1] * (WINDOW - 2) + [0, 0], False),  # no harm is no harm
        ([-(10**9), *[1] * (WINDOW - 1)], False),  # one bad round, however bad
        ([-1] * MIN_MEASURED, True),
        ([-1] * (MIN_MEASURED - 1), False),  # too early to say
        ([1, *[-1] * (WINDOW - 2)], False),  # before the window is full none is spared
        ([], False),
    ],
)
def test_persistent_harm(worths: list[int], out: bool) -> None:
    assert (left_out({"a": FINE, "b": worths, "c": FINE}) == {"b"}) == out


def test_only_the_last_rounds_count_and_work_can_be_good_again() -> None:
    harmful = [-1] * 50
    assert left_out({"a": FINE, "b": harmful, "c": FINE}) == {"b"}
    assert left_out({"a": FINE, "b": [*harmful, 1, 1], "c": FINE}) == frozenset()
    assert left_out({"a": FINE, "b": [*FINE, *harmful], "c": FINE}) == {"b"}


@pytest.mark.parametrize(("members", "most"), [(1, 0), (2, 1), (3, 1), (20, 10)])
def test_at_least_half_stay(members: int, most: int) -> None:
    worths = {n: [-1 - n] * WINDOW for n in range(members)}
    assert left_out(worths) == set(range(members - most, members))  # who did the most harm goes


def test_of_equal_ones_the_later_goes() -> None:
    assert left_out({name: [-1] * WINDOW for name in "zay"}) == {"y"}


def test_nobody_is_left_out_of_nothing() -> None:
    assert left_out({}) == frozenset()
