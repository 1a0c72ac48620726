"""A real chain under load that takes blocks back: the ledger ends as if it had read the last branch alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dfl_ledger.chain import ChainLedger
from dfl_ledger.contracts import load
from dfl_ledger.devchain import DevChain, dev_chain
from dfl_ledger.errors import ChainUnreachable, DflError, ReorgTooDeep
from dfl_ledger.indexer import DEFAULT_FINALITY_BLOCKS, Indexer
from dfl_ledger.rpc import Rpc
from tests.ledger.indexer.conftest import DERIVED, catch_up, dump

WINDOW = DEFAULT_FINALITY_BLOCKS
FAST = {1, 2, 3, 7, 12, 31, 63, 64}


class Load:
    """Registrations by anvil's own accounts, one a block."""

    def __init__(self, dev: DevChain) -> None:
        self.rpc = Rpc(dev.rpc_url)
        self._registry = dev.deployment().registry
        self._accounts = self.rpc.call("eth_accounts")[1:6]
        self._count = 0

    def mine(self, blocks: int) -> None:
        for _ in range(blocks):
            self._count += 1
            call = load("NodeRegistry").encode("register", os.urandom(32), 0, [])
            fields = {"to": self._registry, "data": "0x" + call.hex(), "gas": hex(300_000)}
            sender = self._accounts[self._count % len(self._accounts)]
            before = self.rpc.quantity("eth_blockNumber")
            self.rpc.call("eth_sendTransaction", {"from": sender, **fields})
            while self.rpc.quantity("eth_blockNumber") == before:
                pass


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevChain]:
    """A chain of this module: nobody else may live on one that takes blocks back."""
    folder = tmp_path_factory.mktemp("reorgs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFL_HOME", str(folder / "home"))
        with dev_chain(folder / "data") as chain:
            yield chain


@pytest.fixture
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevChain]:
    """A chain that nobody has taken blocks back on: anvil's own reorganisation wants its states of old."""
    monkeypatch.setenv("DFL_HOME", str(tmp_path / "home"))
    with dev_chain(tmp_path / "data") as chain:
        yield chain


@contextmanager
def reading_all_the_time(indexer: Indexer) -> Iterator[list[DflError]]:
    """Steps in a thread of their own, whatever the chain does meanwhile; what stopped them."""
    stop, stopped = threading.Event(), list[DflError]()

    def read() -> None:
        while not stop.is_set():
            try:
                indexer.step()
            except ChainUnreachable:
                continue  # a block went away between two looks
            except DflError as end:
                stopped.append(end)
                return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield stopped
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def open_at(path: Path, own: DevChain) -> tuple[Indexer, ChainLedger]:
    reader = ChainLedger(own.rpc_url, own.deployment())
    return Indexer(path, reader, deployment_key="own", start_block=own.deployment().deploy_block), reader


@pytest.mark.parametrize(
    "depth", [pytest.param(d, marks=() if d in FAST else pytest.mark.long) for d in range(1, WINDOW + 1)]
)
def test_reorganisations_under_load(own: DevChain, tmp_path: Path, depth: int) -> None:
    work = Load(own)
    work.mine(2)
    indexer, reader = open_at(tmp_path / "ledger.sqlite", own)
    with reading_all_the_time(indexer) as stopped:
        before = work.rpc.call("evm_snapshot")
        work.mine(depth)
        assert work.rpc.call("evm_revert", before)
        work.mine(depth + 1)
    assert stopped == []
    catch_up(indexer)
    indexer.close()
    fresh, other = open_at(tmp_path / "fresh.sqlite", own)
    catch_up(fresh)
    fresh.close()
    for ledger in (reader, other):
        ledger.close()
    tables = ("events", *DERIVED)
    assert dump(tmp_path / "ledger.sqlite", *tables) == dump(tmp_path / "fresh.sqlite", *tables)


def test_anvils_own_reorganisation(untouched: DevChain, tmp_path: Path) -> None:
    """Blocks of the same height and without our transactions in their place."""
    work = Load(untouched)
    work.mine(20)
    indexer, reader = open_at(tmp_path / "ledger.sqlite", untouched)
    catch_up(indexer)
    work.rpc.call("anvil_reorg", 12, [])
    catch_up(indexer)
    indexer.step()
    fresh, other = open_at(tmp_path / "fresh.sqlite", untouched)
    catch_up(fresh)
    for opened in (indexer, fresh, reader, other):
        opened.close()
    tables = ("events", *DERIVED)
    assert dump(tmp_path / "ledger.sqlite", *tables) == dump(tmp_path / "fresh.sqlite", *tables)


def test_beyond_the_window_the_indexer_stops(own: DevChain, tmp_path: Path) -> None:
    work = Load(own)
    work.mine(1)
    indexer, reader = open_at(tmp_path / "ledger.sqlite", own)
    with reading_all_the_time(indexer) as stopped:
        before = work.rpc.call("evm_snapshot")
        work.mine(WINDOW + 6)
        catch_up(indexer)
        assert work.rpc.call("evm_revert", before)
        work.mine(WINDOW + 7)
        with pytest.raises(ReorgTooDeep):
            catch_up(indexer)
    assert [type(end) for end in stopped] == [ReorgTooDeep]
    indexer.close()
    reader.close()
