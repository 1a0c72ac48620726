"""A development chain for the whole session, and the two worlds that the conformance stories run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dfl_ledger.accounts import Account, LocalAccount
from dfl_ledger.chain import ChainLedger
from dfl_ledger.devchain import DevChain, dev_chain, fund
from dfl_ledger.ledger import Ledger
from dfl_ledger.memory import MemoryChain, MemoryLedger
from dfl_ledger.records import Address
from dfl_ledger.rpc import Rpc

ETHER = 10**18


class Accounts:
    """The same keys in the same order for everybody who asks."""

    def __init__(self, series: str) -> None:
        self._series = series.encode()
        self._count = 0

    def next(self) -> LocalAccount:
        self._count += 1
        account: LocalAccount = Account.from_key(
            self._series.ljust(28, b".")[:28] + self._count.to_bytes(4, "big")
        )
        return account


class MemoryWorld:
    def __init__(self, series: str = "wallets") -> None:
        self.second = 1_800_000_000
        self.chain = MemoryChain(lambda: self.second)
        self._accounts = Accounts(series)

    def wallet(self, *, native_wei: int = ETHER, vnx_wei: int = 1000 * ETHER) -> Ledger:
        address = Address(self._accounts.next().address)
        self.chain.fund(address, native_wei, vnx_wei)
        return MemoryLedger(self.chain, address)

    def reach(self, second: int) -> None:
        self.second = max(self.second, second)


class ChainWorld:
    """On anvil, whose clock can be set forward."""

    def __init__(self, dev: DevChain, series: str = "wallets") -> None:
        self.dev = dev
        self.rpc = Rpc(dev.rpc_url)
        self._accounts = Accounts(series)
        self._ledgers: list[ChainLedger] = []

    def account(self, *, native_wei: int = ETHER, vnx_wei: int = 0) -> LocalAccount:
        account = self._accounts.next()
        fund(self.dev, Address(account.address), native_wei, vnx_wei)
        return account

    def wallet(self, *, native_wei: int = ETHER, vnx_wei: int = 1000 * ETHER) -> ChainLedger:
        account = self.account(native_wei=native_wei, vnx_wei=vnx_wei)
        ledger = ChainLedger(self.dev.rpc_url, self.dev.deployment(), account, clock=lambda: 0)
        self._ledgers.append(ledger)
        return ledger

    def reach(self, second: int) -> None:
        newest = self.rpc.as_int(self.rpc.call("eth_getBlockByNumber", "latest", False)["timestamp"])
        if second > newest:
            self.rpc.call("evm_setNextBlockTimestamp", second)
            self.rpc.call("evm_mine")

    def close(self) -> None:
        for ledger in self._ledgers:
            ledger.close()
        self.rpc.close()


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevChain]:
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFL_HOME", str(folder / "home"))
        with dev_chain(folder / "data") as chain:
            yield chain


@pytest.fixture
def world(dev: DevChain, request: pytest.FixtureRequest) -> Iterator[ChainWorld]:
    """Fresh wallets for each test, named after it."""
    name = request.node.name
    found = ChainWorld(dev, name[-28:])
    yield found
    found.close()
