"""The ledger on a real chain: the conformance stories, and what only a real chain can show."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from eth_abi.abi import encode

from dfl_ledger.chain import ChainLedger
from dfl_ledger.contracts import decode_error, error_table, load
from dfl_ledger.devchain import dev_chain
from dfl_ledger.errors import RangeTooLarge, WalletError, WrongChain
from dfl_ledger.ledger import Ledger
from dfl_ledger.records import Address, Event, JobId
from dfl_ledger.rpc import Rpc, RpcError
from dfl_ledger.transactions import FeePolicy, Writer
from tests.conformance.ledger import CHECKS
from tests.conformance.ledger_modes import MODE_CHECKS
from tests.conformance.ledger_story import (
    BUDGET,
    TERMS,
    World,
    member,
    play_round,
    refused,
    whole_life_of_a_job,
)
from tests.ledger.conftest import ChainWorld, MemoryWorld

# What time and the draw decide, which the twin's chain decides otherwise.
_BY_CHANCE = {"deadline", "claimableAt", "aggregator", "settler"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_conformance(world: ChainWorld, check: Callable[[World], None]) -> None:
    check(world)


def test_it_is_a_ledger(world: ChainWorld) -> None:
    ledger: Ledger = world.wallet()
    assert ledger.chain_id == 31337


def test_the_twin_emits_the_same_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFL_HOME", str(tmp_path))
    with dev_chain(tmp_path) as fresh:
        world = ChainWorld(fresh)
        try:
            _, real = whole_life_of_a_job(world)
        finally:
            world.close()
    _, twin = whole_life_of_a_job(MemoryWorld())

    def shown(events: list[Event]) -> list[tuple[str, str, dict[str, object]]]:
        return [
            (e.contract, e.name, {k: v for k, v in e.args.items() if k not in _BY_CHANCE}) for e in events
        ]

    assert shown(real) == shown(twin)
    assert [list(e.args) for e in real] == [list(e.args) for e in twin]


@pytest.mark.parametrize("check", MODE_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_twin_emits_the_same_events_in_every_mode(
    world: ChainWorld, check: Callable[[World], None]
) -> None:
    shown = []
    for each in (world, MemoryWorld()):
        reader = each.wallet()
        start = reader.head()
        check(each)
        events = reader.events(start + 1, reader.head())
        shown.append([(e.contract, e.name, list(e.args)) for e in events if e.contract != "VnxToken"])
    assert shown[0] == shown[1]


# -- opening ------------------------------------------------------------------------------------------
def test_another_chain_id_is_refused(world: ChainWorld) -> None:
    wrong = replace(world.dev.deployment(), chain_id=1)
    with pytest.raises(WrongChain, match=r"serves chain 31337.*on chain 1") as caught:
        ChainLedger(world.dev.rpc_url, wrong)
    assert caught.value.exit_code == 2


def test_an_address_without_code_is_refused(world: ChainWorld) -> None:
    nowhere = Address("0x00000000000000000000000000000000DeaDBeef")
    with pytest.raises(WrongChain, match="no contract at the address of TrainingJobs"):
        ChainLedger(world.dev.rpc_url, replace(world.dev.deployment(), jobs=nowhere))


def test_without_a_wallet_it_only_reads(world: ChainWorld) -> None:
    ledger = ChainLedger(world.dev.rpc_url, world.dev.deployment())
    try:
        assert ledger.head() > 0
        with pytest.raises(WalletError):
            ledger.join(JobId(1))
        with pytest.raises(WalletError):
            _ = ledger.address
    finally:
        ledger.close()


def test_records_come_without_web3() -> None:
    code = "import sys, dfl_ledger.records, dfl_ledger.ledger; sys.exit('web3' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# -- time ---------------------------------------------------------------------------------------------
def test_now_is_the_later_of_chain_and_wall_clock(world: ChainWorld) -> None:
    behind = ChainLedger(world.dev.rpc_url, world.dev.deployment(), clock=lambda: 0)
    ahead = ChainLedger(world.dev.rpc_url, world.dev.deployment(), clock=lambda: 5e9)
    try:
        assert ahead.now() == 5_000_000_000
        assert 1_000_000_000 < behind.now() < 5_000_000_000
    finally:
        behind.close()
        ahead.close()


def test_a_deadline_counts_although_no_block_was_mined_since(world: ChainWorld) -> None:
    """An estimate at the newest block's time would still be before the deadline."""
    requester, a = world.wallet(), member(world)
    job = requester.create_job(TERMS)
    world.rpc.call("evm_increaseTime", TERMS.open_window_s + 1)
    a.advance(job)


def test_what_can_be_refunded_follows_the_clock_too(world: ChainWorld) -> None:
    requester, a = world.wallet(), member(world)
    job = requester.create_job(replace(TERMS, quorum=1, min_nodes=1, rounds=1))
    a.join(job)
    play_round((a,), job)
    assert a.refundable_wei(job) == 0
    world.rpc.call("evm_increaseTime", TERMS.settle_window_s + 2 * TERMS.score_window_s + 1)
    assert a.refundable_wei(job) == BUDGET


def test_an_endpoint_without_a_pending_block_will_do(
    world: ChainWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = member(world)
    inner = Rpc.call

    def without_pending(self: Rpc, method: str, *params: object) -> object:
        if method == "eth_estimateGas" and params[1] == "pending":
            raise RpcError(method, -32000, "pending block is not available", None)
        return inner(self, method, *params)

    monkeypatch.setattr(Rpc, "call", without_pending)
    a.register(b"k" * 32, 0, [])


# -- events and errors --------------------------------------------------------------------------------
def test_a_string_that_is_not_utf8_stops_nobody(world: ChainWorld) -> None:
    """Solidity lets anybody register any bytes as a boot address."""
    account = world.account()
    ledger = ChainLedger(world.dev.rpc_url, world.dev.deployment())
    try:
        start = ledger.head()
        selector = load("NodeRegistry").functions["register"].hash[:4]
        hostile = encode(["bytes32", "uint128", "bytes[]"], [b"k" * 32, 0, [b"/dns/\xff\xfe"]])
        writer = Writer(world.rpc, 31337, account, FeePolicy())
        writer.send("register", world.dev.deployment().registry, selector + hostile)
        assert "/dns/\ufffd\ufffd" in ledger.boot_addrs()
        assert ledger.events(start + 1, ledger.head())[0].args["bootAddrs"] == ["/dns/\ufffd\ufffd"]
        record = ledger.node(Address(account.address))
        assert record is not None
        assert record.boot_addrs == ("/dns/\ufffd\ufffd",)
        writer.send("unbond", world.dev.deployment().registry, load("NodeRegistry").encode("unbond"))
    finally:
        ledger.close()


def test_custom_errors_of_all_contracts_are_known() -> None:
    names = {entry.name for entry in error_table().values()}
    assert {"NotYourTurn", "StakeLocked", "InvalidProof", "ERC20InsufficientBalance"} <= names


def test_revert_reasons() -> None:
    entry = next(e for e in error_table().values() if e.name == "DeadlineAhead")
    known = decode_error(entry.hash[:4] + encode(["uint64", "uint64"], [7, 99]))
    assert (known.name, known.args) == ("DeadlineAhead", {"job": 7, "deadline": 99})
    text = decode_error(bytes.fromhex("08c379a0") + encode(["string"], ["no"]))
    assert (text.name, text.args) == ("Error", {"message": "no"})
    panic = decode_error(bytes.fromhex("4e487b71") + encode(["uint256"], [0x11]))
    assert (panic.name, panic.args) == ("Panic", {"code": 0x11})
    for garbage in (b"", b"\x01", bytes.fromhex("08c379a0"), entry.hash[:4] + b"short", b"\xff" * 1000):
        assert decode_error(garbage).name == "Unknown"


def test_an_error_carries_its_arguments(world: ChainWorld) -> None:
    a = member(world)
    with refused("JobUnknown", job=12345):
        a.join(JobId(12345))


def test_a_range_that_is_too_wide_says_so(world: ChainWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = world.wallet()
    inner = Rpc.call

    def limited(self: Rpc, method: str, *params: object) -> object:
        if method == "eth_getLogs":
            raise RpcError(method, -32005, "query returned more than 10000 results", None)
        return inner(self, method, *params)

    monkeypatch.setattr(Rpc, "call", limited)
    with pytest.raises(RangeTooLarge, match="10000"):
        ledger.events(0, 5)


def test_an_answer_over_the_size_limit_asks_for_a_smaller_range(world: ChainWorld) -> None:
    ledger = world.wallet()
    for _ in range(3):
        ledger.register(b"k" * 32, 0, ["x" * 256] * 8)
    small = ChainLedger(world.dev.rpc_url, world.dev.deployment())
    small._rpc = Rpc(world.dev.rpc_url, max_response_bytes=5000)
    with pytest.raises(RangeTooLarge):
        small.events(0, ledger.head())
    small.close()
