"""The order of a lap: every member once, all orders alike, the same in Solidity and here."""

from __future__ import annotations

from collections import Counter

import pytest
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from dfl_ledger.lap_order import index_at


def order(seed: bytes, n: int) -> list[int]:
    return [index_at(seed, position, n) for position in range(n)]


@given(st.binary(min_size=32, max_size=32), st.integers(1, 60))
def test_every_member_comes_once(seed: bytes, n: int) -> None:
    assert sorted(order(seed, n)) == list(range(n))


def test_an_order_is_that_of_the_contract() -> None:
    """The same numbers stand in contracts/test/JobModes.t.sol."""
    assert order(keccak(b"lap"), 7) == [5, 0, 6, 1, 4, 2, 3]
    most = 2**32 - 1
    assert [index_at(keccak(b"lap"), position, most) for position in (1000, most - 1)] == [
        2097064791,
        4245293599,
    ]


def test_every_order_of_three_comes_about_equally_often() -> None:
    drawn = Counter(tuple(order(number.to_bytes(32, "big"), 3)) for number in range(3000))
    assert len(drawn) == 6
    assert max(drawn.values()) < 1.25 * min(drawn.values())


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_outside_the_lap_is_refused(position: int) -> None:
    with pytest.raises(ValueError, match="of 3"):
        index_at(bytes(32), position, 3)
