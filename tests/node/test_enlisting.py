"""A node says which seats it takes before anybody may draw it."""

from __future__ import annotations

import pytest

from dfl_ledger.ledger import Ledger
from dfl_node.enlisting import LEAST_WINDOW_S, enter_panels
from tests.conformance.ledger_story import ETHER
from tests.ledger.conftest import MemoryWorld


@pytest.fixture
def world() -> MemoryWorld:
    return MemoryWorld("enlisting")


def staking(world: MemoryWorld, stake_wei: int) -> Ledger:
    ledger = world.wallet()
    ledger.register(b"k" * 32, stake_wei, [])
    return ledger


def told(ledger: Ledger, since: int) -> list[tuple[str, object]]:
    """What the registry told of its evaluators after a block, with the argument that matters."""
    matters = {"SeatsLimited": "mostBond", "EvaluatorWeighed": "weight"}
    events = ledger.events(since + 1, ledger.head())
    return [(event.name, event.args[matters[event.name]]) for event in events if event.name in matters]


@pytest.mark.parametrize(
    ("stake_wei", "most_bond_wei"),
    [(100 * ETHER, 25 * ETHER), (10 * ETHER + 3, 10 * ETHER // 4), (ETHER, ETHER), (3 * ETHER, ETHER)],
)
def test_who_enlists_has_limited_its_seats_before(
    world: MemoryWorld, stake_wei: int, most_bond_wei: int
) -> None:
    ledger = staking(world, stake_wei)
    since = ledger.head()
    enter_panels(ledger, stake_wei, willing=True)
    assert told(ledger, since) == [("SeatsLimited", most_bond_wei), ("EvaluatorWeighed", stake_wei)]
    head, me = ledger.head(), ledger.address
    assert ledger.may_decline(me, head, LEAST_WINDOW_S - 1, 0)
    assert ledger.may_decline(me, head, LEAST_WINDOW_S, most_bond_wei + 1)
    assert not ledger.may_decline(me, head, LEAST_WINDOW_S, most_bond_wei)


def test_who_is_listed_or_cannot_be_sends_nothing(world: MemoryWorld) -> None:
    ledger, poor = staking(world, 8 * ETHER), staking(world, ETHER - 1)
    enter_panels(ledger, 8 * ETHER, willing=True)
    since = ledger.head()
    enter_panels(ledger, 8 * ETHER, willing=True)
    enter_panels(poor, ETHER - 1, willing=True)
    enter_panels(poor, ETHER - 1, willing=False)
    assert ledger.head() == since


def test_who_returns_keeps_the_limits_that_its_seats_were_drawn_under(world: MemoryWorld) -> None:
    """New ones would bind it to every seat that it has left empty."""
    ledger = staking(world, 8 * ETHER)
    enter_panels(ledger, 8 * ETHER, willing=True)
    drawn = ledger.head()
    enter_panels(ledger, 8 * ETHER, willing=False)
    assert not ledger.is_evaluator(ledger.address)
    since = ledger.head()
    enter_panels(ledger, 8 * ETHER, willing=True)
    assert told(ledger, since) == [("EvaluatorWeighed", 8 * ETHER)]
    assert ledger.may_decline(ledger.address, drawn, LEAST_WINDOW_S - 1, 0)

    # With more at stake it takes seats of higher bonds.
    enter_panels(ledger, 8 * ETHER, willing=False)
    ledger.top_up(ledger.address, 8 * ETHER)
    since = ledger.head()
    enter_panels(ledger, 16 * ETHER, willing=True)
    assert told(ledger, since) == [("SeatsLimited", 4 * ETHER), ("EvaluatorWeighed", 16 * ETHER)]
