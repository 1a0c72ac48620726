"""Sending: round trips, nonces, threads, fees, reverts, and what must never be shown."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import structlog

from dfl_ledger.accounts import LocalAccount
from dfl_ledger.chain import ChainLedger
from dfl_ledger.contracts import load
from dfl_ledger.errors import ChainUnreachable, DflError, InsufficientFunds, Reverted, TimedOut
from dfl_ledger.records import Address
from dfl_ledger.rpc import Rpc
from dfl_ledger.transactions import FeePolicy, Fees, Writer
from tests.conformance.ledger_story import TERMS, commit_all, member
from tests.ledger.conftest import ChainWorld

REGISTER = load("NodeRegistry").encode("register", b"k" * 32, 0, [])


class Clock:
    """Time that passes only by sleeping, with something to do at each sleep."""

    def __init__(self, at_sleep: Callable[[], object] = lambda: None) -> None:
        self.time = 0.0
        self.at_sleep = at_sleep

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.at_sleep()

    def monotonic(self) -> float:
        return self.time


def writer(world: ChainWorld, account: LocalAccount, clock: Clock, policy: FeePolicy | None = None) -> Writer:
    return Writer(
        world.rpc, 31337, account, policy or FeePolicy(), sleep=clock.sleep, monotonic=clock.monotonic
    )


@contextmanager
def no_mining(world: ChainWorld) -> Iterator[None]:
    """Transactions wait in the pool until evm_mine."""
    world.rpc.call("evm_setAutomine", False)
    try:
        yield
    finally:
        world.rpc.call("evm_mine")
        world.rpc.call("evm_setAutomine", True)


def test_a_commit_takes_three_round_trips(world: ChainWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    requester, a, b = world.wallet(), member(world), member(world)
    job = requester.create_job(TERMS)
    a.join(job)
    b.join(job)
    calls: Counter[str] = Counter()
    inner = Rpc.call

    def counting(self: Rpc, method: str, *params: object) -> object:
        calls[method] += 1
        return inner(self, method, *params)

    monkeypatch.setattr(Rpc, "call", counting)
    ledger = world.wallet()
    calls.clear()
    commit_all((a,), job)
    calls.pop("eth_call")  # the story's own look at the job
    calls.pop("eth_feeHistory", None)  # at most once a second
    receipts = calls.pop("eth_getTransactionReceipt")
    assert calls == {"eth_estimateGas": 1, "eth_sendRawTransaction": 1}
    assert receipts <= 3
    assert ledger.head() > 0


def test_a_stale_nonce_is_read_again(world: ChainWorld) -> None:
    account = world.account()
    clock = Clock()
    first, second = writer(world, account, clock), writer(world, account, clock)
    registry = world.dev.deployment().registry
    first.send("register", registry, REGISTER)
    for _ in range(3):
        second.send("register", registry, REGISTER)
    mined = first.send("register", registry, REGISTER)
    assert world.rpc.quantity("eth_getTransactionCount", account.address, "latest") == 5
    assert mined.receipt.gas_used > 21_000


def test_an_error_leaves_no_hole_in_the_nonces(world: ChainWorld) -> None:
    account = world.account()
    sender = writer(world, account, Clock())
    registry = world.dev.deployment().registry
    sender.send("register", registry, REGISTER)
    with pytest.raises(Reverted) as caught:
        sender.send("withdraw", registry, load("NodeRegistry").encode("withdraw"))
    assert caught.value.error == "NodeNotUnbonding"
    sender.send("register", registry, REGISTER)


@pytest.mark.parametrize("late_looks", [0, 3])
def test_a_lost_answer_does_not_send_twice(
    world: ChainWorld, monkeypatch: pytest.MonkeyPatch, late_looks: int
) -> None:
    """Nor does an endpoint that counts the nonce before it shows the receipt."""
    account = world.account()
    sender = writer(world, account, Clock())
    registry = world.dev.deployment().registry
    sender.send("register", registry, REGISTER)
    inner = Rpc.call
    looks = 0

    def loses_the_answer(self: Rpc, method: str, *params: object) -> object:
        nonlocal looks
        answer = inner(self, method, *params)
        if method == "eth_sendRawTransaction":
            while inner(self, "eth_getTransactionReceipt", answer) is None:
                pass
            return inner(self, method, *params)  # as after a broken connection: sent again
        if method == "eth_getTransactionReceipt":
            looks += 1
            return answer if looks > late_looks else None
        return answer

    monkeypatch.setattr(Rpc, "call", loses_the_answer)
    sender.send("register", registry, REGISTER)
    assert world.rpc.quantity("eth_getTransactionCount", account.address, "latest") == 2


@pytest.mark.parametrize("outage_s", [5, 60])
def test_an_outage_while_waiting(world: ChainWorld, monkeypatch: pytest.MonkeyPatch, outage_s: float) -> None:
    """A short one is waited out, a long one is told."""
    clock = Clock()
    sender = writer(world, world.account(), clock)
    inner = Rpc.call

    def down(self: Rpc, method: str, *params: object) -> object:
        if method == "eth_getTransactionReceipt" and clock.time < outage_s:
            raise ChainUnreachable("down")
        return inner(self, method, *params)

    monkeypatch.setattr(Rpc, "call", down)
    registry = world.dev.deployment().registry
    if outage_s < 10:
        sender.send("register", registry, REGISTER)
    else:
        with pytest.raises(ChainUnreachable):
            sender.send("register", registry, REGISTER)
        assert clock.time < 15
    clock.time = outage_s
    sender.send("register", registry, REGISTER)


def test_two_threads_share_a_wallet(world: ChainWorld) -> None:
    ledger = world.wallet()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(10):
                ledger.register(b"k" * 32, 0, [])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert world.rpc.quantity("eth_getTransactionCount", ledger.address, "latest") == 20


def test_two_processes_share_a_wallet(world: ChainWorld) -> None:
    """Two writers that do not know of each other, at once."""
    account = world.account()
    registry = world.dev.deployment().registry
    failures: list[BaseException] = []

    def write(peer_key: bytes) -> None:
        sender = Writer(Rpc(world.dev.rpc_url), 31337, account, FeePolicy())
        try:
            for _ in range(5):
                sender.send("register", registry, load("NodeRegistry").encode("register", peer_key, 0, []))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(key * 32,)) for key in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert world.rpc.quantity("eth_getTransactionCount", account.address, "latest") == 10


def test_a_stuck_transaction_is_replaced_with_a_higher_fee(world: ChainWorld) -> None:
    account = world.account()
    offered: list[int] = []

    def look() -> None:
        pool = world.rpc.call("txpool_content")["pending"].get(account.address.lower(), {})
        pool = pool or world.rpc.call("txpool_content")["pending"].get(account.address, {})
        for tx in pool.values():
            fee = int(tx["maxFeePerGas"], 16)
            if fee not in offered:
                offered.append(fee)
        if len(offered) == 3:
            world.rpc.call("evm_mine")

    clock = Clock(look)
    sender = writer(world, account, clock, FeePolicy(stuck_after_s=30, deadline_s=600))
    with no_mining(world):
        sender.send("register", world.dev.deployment().registry, REGISTER)
    assert len(offered) == 3
    assert all(8 * after >= 9 * before for before, after in pairwise(offered))
    assert clock.time < 100
    assert world.rpc.quantity("eth_getTransactionCount", account.address, "latest") == 1


def test_the_fee_stays_below_its_cap_and_the_wait_ends(world: ChainWorld) -> None:
    account = world.account()
    base = world.rpc.as_int(world.rpc.call("eth_getBlockByNumber", "latest", False)["baseFeePerGas"])
    cap = 2 * base + 10**9
    clock = Clock()
    sender = writer(world, account, clock, FeePolicy(max_fee_wei=cap, stuck_after_s=10, deadline_s=60))
    with no_mining(world), pytest.raises(TimedOut, match="register was not mined within 60 s") as caught:
        sender.send("register", world.dev.deployment().registry, REGISTER)
    assert caught.value.exit_code == 4
    assert 60 < clock.time < 62


def test_a_raised_fee_is_an_eighth_more_at_least() -> None:
    for fees in (Fees(1, 1), Fees(7, 0), Fees(10**9 + 1, 10**6)):
        more = fees.raised()
        assert 8 * more.max_fee_wei >= 9 * fees.max_fee_wei
        assert 8 * more.tip_wei >= 9 * fees.tip_wei


def test_a_transaction_that_was_overtaken_says_why_it_failed(world: ChainWorld) -> None:
    """The estimate was fine; the block brought another transaction first."""
    requester, node = world.account(vnx_wei=1000 * 10**18), member(world)
    deployment = world.dev.deployment()
    opener = ChainLedger(world.dev.rpc_url, deployment, requester)
    job = opener.create_job(TERMS)
    opener.close()
    jobs = load("TrainingJobs")

    def mine() -> None:
        world.rpc.call("evm_mine")

    def overtake() -> None:
        clock.at_sleep = lambda: None
        pays_more = FeePolicy(min_tip_wei=50 * 10**9)
        writer(world, requester, Clock(mine), pays_more).send(
            "cancel", deployment.jobs, jobs.encode("cancel", job)
        )

    clock = Clock(overtake)
    assert isinstance(node, ChainLedger)
    assert node._writer is not None
    late = writer(world, node._writer._account, clock)
    with no_mining(world), pytest.raises(Reverted) as caught:
        late.send("join", deployment.jobs, jobs.encode("join", job))
    assert (caught.value.error, caught.value.args_) == ("WrongPhase", {"job": job, "phase": 7})


def test_a_nonce_taken_by_somebody_else_is_told(world: ChainWorld) -> None:
    account = world.account()
    registry = world.dev.deployment().registry

    def take_its_place() -> None:
        clock.at_sleep = lambda: None
        nonce = world.rpc.quantity("eth_getTransactionCount", account.address, "latest")
        rival = account.sign_transaction(
            {
                "type": 2,
                "chainId": 31337,
                "nonce": nonce,
                "gas": 21_000,
                "maxFeePerGas": 10**12,
                "maxPriorityFeePerGas": 10**11,
                "to": account.address,
                "value": 0,
            }
        )
        world.rpc.call("eth_sendRawTransaction", "0x" + rival.raw_transaction.hex())
        world.rpc.call("evm_mine")

    clock = Clock(take_its_place)
    sender = writer(world, account, clock)
    with no_mining(world), pytest.raises(DflError, match=r"another transaction of .* took nonce 0"):
        sender.send("register", registry, REGISTER)


def test_too_little_coin_names_both_sums(world: ChainWorld) -> None:
    account = world.account(native_wei=1000)
    sender = writer(world, account, Clock())
    with pytest.raises(InsufficientFunds, match=r"needs up to \d+ wei .* available are 1000 wei") as caught:
        sender.send("register", world.dev.deployment().registry, REGISTER)
    assert caught.value.exit_code == 5


def test_no_secret_is_shown(
    world: ChainWorld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "level", logging.DEBUG)
    account = world.account()
    key = account.key.hex().removeprefix("0x")
    with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logs:
        ledger = ChainLedger(world.dev.rpc_url, world.dev.deployment(), account)
        ledger.register(b"k" * 32, 0, [])
        with pytest.raises(Reverted):
            ledger.withdraw()
        shown = " ".join([repr(ledger), repr(ledger._writer), repr(vars(ledger)), caplog.text, str(logs)])
        ledger.close()
    assert key not in shown
    assert key[:16] not in shown
    assert Address(account.address) in shown


def test_an_endpoints_key_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    rpc = Rpc("http://user:passw0rd@127.0.0.1:9/v3/0123SECRET?token=HIDDEN", timeout_s=1)
    with caplog.at_level(logging.DEBUG), pytest.raises(ChainUnreachable) as caught:
        rpc.call("eth_chainId")
    shown = f"{rpc!r} {caught.value} {caught.value!r} {caplog.text}"
    assert "127.0.0.1:9" in shown
    for secret in ("SECRET", "HIDDEN", "passw0rd"):
        assert secret not in shown
    assert caught.value.__suppress_context__
