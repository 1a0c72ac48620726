"""Killed between sending and hearing of it: the call is seen to its end, and never made twice."""

from __future__ import annotations

import stat
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.accounts import LocalAccount
from dfl_ledger.chain import ChainLedger
from dfl_ledger.contracts import load
from dfl_ledger.errors import ChainUnreachable, DflError, Reverted, StoreUnavailable, TimedOut
from dfl_ledger.records import Address, JobId
from dfl_ledger.rpc import Rpc, RpcError
from dfl_ledger.sent import KEPT, Call, Offer, SentJournal
from dfl_ledger.transactions import FeePolicy, Writer
from tests.conformance.ledger_story import TERMS
from tests.ledger.conftest import ETHER, ChainWorld
from tests.ledger.test_transactions import Clock, no_mining

STAKE_WEI = 7 * ETHER
REGISTER = load("NodeRegistry").encode("register", b"k" * 32, STAKE_WEI, [])


class Killed(BaseException):
    """SIGKILL: nothing after it is run, and nobody catches it."""


class Moment(Enum):
    """When a writer's process dies: at its call of this method, before or after the endpoint has it."""

    BEFORE_SENDING = ("eth_sendRawTransaction", False)
    SENT = ("eth_sendRawTransaction", True)
    BEFORE_THE_RECEIPT = ("eth_getTransactionReceipt", False)
    AT_THE_RECEIPT = ("eth_getTransactionReceipt", True)


def kill_at(patch: pytest.MonkeyPatch, moment: Moment) -> None:
    method, after = moment.value
    inner = Rpc.call

    def dying(self: Rpc, called: str, *params: object) -> Any:
        if called != method:
            return inner(self, called, *params)
        if after:
            inner(self, called, *params)
        raise Killed

    patch.setattr(Rpc, "call", dying)


class Life:
    """One process of a wallet: a writer on the journal that its former lives have left."""

    def __init__(self, world: ChainWorld, account: LocalAccount, path: Path) -> None:
        self.world, self.account = world, account
        self.clock = Clock()
        self.journal = SentJournal(path, chain="here", sender=Address(account.address))
        self.writer = Writer(
            Rpc(world.dev.rpc_url),
            31337,
            account,
            FeePolicy(deadline_s=20),
            sleep=self.clock.sleep,
            monotonic=self.clock.monotonic,
        )

    def resumed(self) -> Life:
        self.writer.resume(self.journal)
        return self

    def register(self) -> Any:
        return self.writer.send("register", self.world.dev.deployment().registry, REGISTER)

    @property
    def nonce(self) -> int:
        return self.world.rpc.quantity("eth_getTransactionCount", self.account.address, "latest")


@pytest.fixture
def live(world: ChainWorld, tmp_path: Path) -> Callable[[], Life]:
    """A wallet that has let the registry take any stake; each call is another life of it."""
    account = world.account(vnx_wei=100 * ETHER)
    deployment = world.dev.deployment()
    allow = load("VnxToken").encode("approve", deployment.registry, 100 * ETHER)
    Writer(world.rpc, 31337, account, FeePolicy()).send("approve", deployment.token, allow)
    return lambda: Life(world, account, tmp_path / "sent.sqlite")


def staked(life: Life) -> int:
    reader = ChainLedger(life.world.dev.rpc_url, life.world.dev.deployment())
    record = reader.node(Address(life.account.address))
    reader.close()
    return 0 if record is None else record.stake_wei


@pytest.mark.parametrize("moment", Moment)
def test_a_call_of_a_killed_process_is_made_once(live: Callable[[], Life], moment: Moment) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, moment)
        with pytest.raises(Killed):
            live().resumed().register()
    life = live().resumed()
    assert (staked(life), life.nonce) == (STAKE_WEI, 2)
    assert life.journal.open() == ()
    life.register()  # meant anew: what came of the first was there to be read
    assert staked(life) == 2 * STAKE_WEI


@pytest.mark.parametrize("moment", Moment)
def test_the_same_call_made_again_is_answered_by_the_one_on_its_way(
    live: Callable[[], Life], world: ChainWorld, moment: Moment
) -> None:
    """As in a process that waited in vain, and whose caller tries again."""
    life = live().resumed()
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, moment)
        with pytest.raises(Killed):
            life.register()
    mined = life.register()
    assert (staked(life), life.nonce) == (STAKE_WEI, 2)
    assert (
        mined.receipt.tx == world.rpc.call("eth_getTransactionReceipt", mined.receipt.tx)["transactionHash"]
    )
    assert life.journal.open() == ()


def test_a_transaction_that_waits_in_the_pool_is_waited_for_again(
    live: Callable[[], Life], world: ChainWorld
) -> None:
    life = live().resumed()
    with no_mining(world):
        with pytest.raises(TimedOut):
            life.register()
        again = live()
        again.clock.at_sleep = lambda: world.rpc.call("evm_mine") if again.clock.time > 5 else None
        again.resumed()
    assert (staked(again), again.nonce) == (STAKE_WEI, 2)


def test_what_is_not_mined_in_time_stays_open_and_does_not_keep_a_node_from_starting(
    live: Callable[[], Life], world: ChainWorld
) -> None:
    with no_mining(world):
        with pytest.raises(TimedOut):
            live().resumed().register()
        life = live().resumed()
        assert 29 < life.clock.time < 33
        (left,) = life.journal.open()
        assert left.call.name == "register"
        life.clock.at_sleep = lambda: world.rpc.call("evm_mine")
        life.register()
    assert (staked(life), life.nonce) == (STAKE_WEI, 2)


def test_several_are_resumed_in_the_order_of_their_nonces(
    live: Callable[[], Life], world: ChainWorld
) -> None:
    """The pool has forgotten them all: the first must be there before the second counts."""
    life = live().resumed()
    deployment = world.dev.deployment()
    with no_mining(world):
        with pytest.raises(TimedOut):
            life.register()
        with pytest.raises(TimedOut):
            life.writer.send("unbond", deployment.registry, load("NodeRegistry").encode("unbond"))
        world.rpc.call("anvil_dropAllTransactions")
        assert len(life.journal.open()) == 2
    again = live().resumed()
    assert (again.nonce, again.journal.open()) == (3, ())


def test_a_call_whose_nonce_went_to_another_one_is_made_anew(
    live: Callable[[], Life], world: ChainWorld
) -> None:
    life = live()
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, Moment.BEFORE_SENDING)
        with pytest.raises(Killed):
            life.resumed().register()
    Writer(world.rpc, 31337, life.account, FeePolicy()).send("fund", Address(life.account.address), b"")
    again = live().resumed()
    assert again.clock.time < 10
    assert (staked(again), again.journal.open()) == (0, ())
    again.register()
    assert staked(again) == STAKE_WEI


def test_a_reverted_one_is_no_answer(live: Callable[[], Life], world: ChainWorld) -> None:
    """It was refused for reasons of then; the call made again is judged by what holds now."""
    life = live().resumed()
    registry = world.dev.deployment().registry
    unbond = load("NodeRegistry").encode("unbond")
    life.register()
    reads = Rpc.call_now

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Rpc, "call_now", lambda self, m, c: "0x30000" if m == "eth_estimateGas" else reads(self, m, c)
        )
        life.writer.send("unbond", registry, unbond)
        kill_at(patch, Moment.SENT)
        with pytest.raises(Killed):
            life.writer.send("unbond", registry, unbond)  # reverts on chain: it unbonds already
    with pytest.raises(Reverted, match="NodeIsUnbonding"):
        live().writer.send("unbond", registry, unbond)
    again = live().resumed()
    assert again.journal.open() == ()


def test_a_repeatable_call_is_not_answered_by_an_old_one(live: Callable[[], Life], world: ChainWorld) -> None:
    life = live().resumed()
    me = Address(life.account.address)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, Moment.SENT)
        with pytest.raises(Killed):
            life.writer.send("fund", me, b"", value_wei=1)
    (sent,) = life.journal.open()
    while world.rpc.call("eth_getTransactionReceipt", sent.offers[0].tx) is None:
        pass  # anvil mines a moment after it has answered
    again = live()
    again.writer._journal = life.journal  # had its start not seen it mined
    before = again.nonce
    again.writer.send("fund", me, b"", value_wei=1)
    assert again.nonce == before + 1


def test_a_dead_endpoint_leaves_the_call_open(live: Callable[[], Life]) -> None:
    life = live().resumed()
    with pytest.MonkeyPatch.context() as patch:
        inner = Rpc.call

        def down(self: Rpc, method: str, *params: object) -> Any:
            if method == "eth_sendRawTransaction":
                raise ChainUnreachable("down")
            return inner(self, method, *params)

        patch.setattr(Rpc, "call", down)
        with pytest.raises(ChainUnreachable):
            life.register()
    assert [sent.call.name for sent in life.journal.open()] == ["register"]
    life.register()
    assert (staked(life), life.journal.open()) == (STAKE_WEI, ())


def test_a_refused_one_is_not_kept_open(live: Callable[[], Life]) -> None:
    life = live().resumed()
    with pytest.MonkeyPatch.context() as patch:
        inner = Rpc.call

        def refuses(self: Rpc, method: str, *params: object) -> Any:
            if method == "eth_sendRawTransaction":
                raise RpcError(method, -32000, "exceeds block gas limit", None)
            return inner(self, method, *params)

        patch.setattr(Rpc, "call", refuses)
        with pytest.raises(DflError, match="exceeds block gas limit"):
            life.register()
    assert life.journal.open() == ()


def test_a_job_submitted_again_after_a_kill_is_the_same_job(world: ChainWorld, tmp_path: Path) -> None:
    account = world.account(vnx_wei=1000 * ETHER)
    path, inner = tmp_path / "sent.sqlite", Writer.send

    def submit() -> JobId:
        ledger = ChainLedger(world.dev.rpc_url, world.dev.deployment(), account, clock=lambda: 0)
        assert ledger._writer is not None  # not resumed: the node's start did not see it mined
        ledger._writer._journal = SentJournal(path, chain=ledger.genesis(), sender=ledger.address)
        try:
            return ledger.create_job(TERMS)
        finally:
            ledger.close()

    with pytest.MonkeyPatch.context() as patch:

        def dying(self: Writer, call: str, *args: Any, **named: Any) -> Any:
            if call == "createJob":
                kill_at(patch, Moment.AT_THE_RECEIPT)
            return inner(self, call, *args, **named)

        patch.setattr(Writer, "send", dying)
        with pytest.raises(Killed):
            submit()
    job = submit()
    reader = ChainLedger(world.dev.rpc_url, world.dev.deployment())
    assert reader.job(job) is not None
    created = [e for e in reader.events(0, reader.head()) if e.args.get("requester") == account.address]
    reader.close()
    assert [event.args["job"] for event in created] == [job]


# -- the journal itself ------------------------------------------------------------------------------------
CALL = Call("commit", Address("0x" + "11" * 20), b"data", 5)


def journal_at(path: Path, chain: str = "here", sender: str = "0x" + "22" * 20) -> SentJournal:
    return SentJournal(path, chain=chain, sender=Address(sender))


def offer(number: int) -> Offer:
    return Offer(f"0x{number:064x}", f"0x{number:04x}", 10**30 + number, number)  # type: ignore[arg-type]


def test_the_journal_is_of_one_chain_and_one_wallet_and_private(tmp_path: Path) -> None:
    path = tmp_path / "sent.sqlite"
    journal_at(path).begin(CALL, 21_000, 3, offer(1))
    assert journal_at(path, chain="elsewhere").open() == ()
    assert journal_at(path, sender="0x" + "33" * 20).open() == ()
    (left,) = journal_at(path).open()
    assert (left.call, left.nonce, left.gas, left.offers) == (CALL, 3, 21_000, (offer(1),))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_offers_stand_in_the_order_they_were_made(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "sent.sqlite")
    id_ = journal.begin(CALL, 21_000, 3, offer(9))
    journal.raised(id_, offer(5))
    journal.raised(id_, offer(7))
    assert journal.open()[0].offers == (offer(9), offer(5), offer(7))


def test_what_ended_is_forgotten_in_time_and_what_is_open_never(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "sent.sqlite")
    journal._db.execute("PRAGMA synchronous = OFF")
    first = journal.begin(CALL, 21_000, 0, offer(0))
    for nonce in range(1, KEPT + 50):
        journal.mined(journal.begin(CALL, 21_000, nonce, offer(nonce)))
    assert [sent.id for sent in journal.open()] == [first]
    assert journal._db.execute("SELECT count(*) FROM sent").fetchone()[0] <= KEPT + 2


def test_a_journal_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "sent.sqlite"
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(StoreUnavailable, match="journal of transactions"):
        journal_at(path)
