"""The in-memory twin lives through the conformance stories."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from dfl_ledger.errors import InsufficientFunds, UsageError
from dfl_ledger.ledger import Ledger
from dfl_ledger.memory import MemoryChain, MemoryLedger
from dfl_ledger.records import Address
from tests.conformance.ledger import CHECKS
from tests.conformance.ledger_story import World, member, refused
from tests.ledger.conftest import MemoryWorld


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_conformance(check: Callable[[World], None]) -> None:
    check(MemoryWorld())


def test_it_is_a_ledger() -> None:
    world = MemoryWorld()
    ledger: Ledger = world.wallet()
    assert (ledger.chain_id, ledger.address) == (31337, ledger.address)


def test_an_address_must_be_eip55() -> None:
    with pytest.raises(UsageError):
        MemoryLedger(MemoryChain(), Address("0x" + "ab" * 20))


def test_a_refused_transaction_leaves_no_trace() -> None:
    world = MemoryWorld()
    ledger = world.wallet(vnx_wei=5)
    head, coin = ledger.head(), ledger.native_wei(ledger.address)
    with pytest.raises(InsufficientFunds):
        ledger.register(b"k" * 32, 6, ["/dns/a"])
    assert (ledger.head(), ledger.native_wei(ledger.address)) == (head, coin)
    assert ledger.node(ledger.address) is None
    assert ledger.events(0, head + 1) == []


def test_time_never_runs_backwards() -> None:
    world = MemoryWorld()
    ledger = world.wallet()
    ledger.register(b"k" * 32, 0, [])
    world.second -= 100
    assert ledger.now() == world.second + 100


def test_leaving_takes_the_unbonding_delay() -> None:
    world = MemoryWorld()
    node = member(world)
    assert isinstance(node, MemoryLedger)
    with refused("NodeNotUnbonding"):
        node.withdraw()
    node.unbond()
    with refused("StakeLocked"):
        node.withdraw()
    with refused("NodeIsUnbonding"):
        node.register(b"k" * 32, 0, [])
    record = node.node(node.address)
    assert record is not None
    world.reach(record.unbond_at)
    node.withdraw()
    assert node.node(node.address) is None
    assert node.balance_wei(node.address) == 1000 * 10**18


def test_threads_share_a_chain() -> None:
    world = MemoryWorld()
    ledgers = [world.wallet() for _ in range(4)]

    def write(ledger: Ledger) -> None:
        for _ in range(25):
            ledger.register(b"k" * 32, 1, [])

    threads = [threading.Thread(target=write, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert ledgers[0].head() == 100
    assert sorted(event.block for event in ledgers[0].events(0, 100)) == list(range(1, 101))
