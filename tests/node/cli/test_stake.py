"""What a wallet does with its stake and its hot key, on a twin of the chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dfl_ledger.ledger import Ledger
from dfl_node.cli import stake
from tests.conformance.ledger_story import ETHER
from tests.ledger.conftest import MemoryWorld


@pytest.fixture
def as_wallet(run: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`as_wallet(ledger, "add", "5")`: as `run("stake", ...)` with the key file of that wallet."""

    def run_as(wallet: Ledger, *words: object) -> Any:
        @contextmanager
        def opened(**_: object) -> Iterator[Ledger]:
            yield wallet

        monkeypatch.setattr(stake, "_ledger", opened)
        return run("stake", *words, "--wallet", "key.json", "--json")

    return run_as


@pytest.fixture
def world() -> MemoryWorld:
    return MemoryWorld("stakes")


def test_stake_is_added_to_oneself_and_to_others(world: MemoryWorld, as_wallet: Callable[..., Any]) -> None:
    node, friend = world.wallet(), world.wallet()
    node.register(b"k" * 32, 5 * ETHER, [])
    told = as_wallet(node, "add", "1.5").data
    assert (told["stake_wei"], told["address"], told["tx"][:2]) == (str(65 * 10**17), node.address, "0x")
    told = as_wallet(friend, "add", "2", "--node", node.address.lower()).data
    assert (told["address"], told["stake_wei"]) == (node.address, str(85 * 10**17))
    assert told["balance_wei"] == str(998 * ETHER)
    assert as_wallet(friend, "show").data["stake_wei"] == "0"


@pytest.mark.parametrize("amount", ["0", "many", "1/2", "0.1234567890123456789"])
def test_what_is_no_amount_is_refused(world: MemoryWorld, as_wallet: Callable[..., Any], amount: str) -> None:
    told = as_wallet(world.wallet(), "add", amount)
    assert (told.exit_code, told.error["type"]) == (2, "UsageError")
    assert "VNX" in told.error["what"]


def test_a_stranger_has_no_stake_to_add_to(world: MemoryWorld, as_wallet: Callable[..., Any]) -> None:
    told = as_wallet(world.wallet(), "add", "1")
    assert (told.exit_code, told.error["type"]) == (1, "Reverted")
    assert "NodeUnknown" in told.error["why"]


def test_a_hot_key_is_named_accepts_and_loses_its_right(
    world: MemoryWorld, as_wallet: Callable[..., Any]
) -> None:
    node, hot = world.wallet(), world.wallet()
    node.register(b"k" * 32, 5 * ETHER, [])
    told = as_wallet(hot, "act-for", node.address)
    assert (told.exit_code, "NotNamed" in told.error["why"]) == (1, True)
    told = as_wallet(node, "delegate", hot.address).data
    assert (told["named"], told["delegate"]) == (hot.address, None)
    assert as_wallet(hot, "act-for", node.address).data["acts_for"] == node.address
    assert as_wallet(node, "show").data["delegate"] == hot.address
    assert as_wallet(node, "delegate", "none").data["delegate"] is None
    assert as_wallet(hot, "show").data["acts_for"] is None
    assert as_wallet(node, "delegate", "0x12").exit_code == 2


def test_people_see_whether_it_may_judge(world: MemoryWorld, as_wallet: Callable[..., Any]) -> None:
    node = world.wallet()
    node.register(b"k" * 32, 5 * ETHER, [])
    assert "evaluator    no" in as_wallet(node, "show").stderr
    node.enlist()
    assert "yes, may be drawn to judge" in as_wallet(node, "show").stderr
