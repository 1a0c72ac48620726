"""The development chain: found where it runs, gone when it ends, however its parent ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dfl_ledger.accounts import Account
from dfl_ledger.chain import ChainLedger
from dfl_ledger.devchain import DevChain, dev_chain, find_anvil, find_dev_chain, fund, treasury
from dfl_ledger.errors import InsufficientFunds, UsageError
from dfl_ledger.records import Address

SERVE = """
import sys
from pathlib import Path
import structlog
from dfl_ledger.devchain import serve
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
serve(Path(sys.argv[1]), on_ready=lambda chain: print(chain.pid, flush=True))
"""


def until(holds: Callable[[], bool], what: str, deadline_s: float = 10) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, f"{what} did not come true within {deadline_s} s"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a home of its own, and never sees the user's."""
    monkeypatch.setenv("DFL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_it_is_found_and_ends(tmp_path: Path, home: Path) -> None:
    datadir = tmp_path / "net" / "data"
    with dev_chain(datadir) as chain:
        assert find_dev_chain(datadir) == chain
        assert find_dev_chain(datadir / "node1") == chain  # beside the chain's own folder
        assert find_dev_chain(tmp_path / "elsewhere" / "node") == chain  # by the user's home
        assert chain.deployment_path == datadir / "deployments" / "31337.json"
        assert json.loads((home / "dev-chain.json").read_text())["pid"] == chain.pid
        assert chain.deployment().chain_id == chain.chain_id == 31337
        assert chain.rpc_url.startswith("http://127.0.0.1:")
    assert gone(chain.pid)
    assert not (datadir / "dev-chain.json").exists()
    assert not (home / "dev-chain.json").exists()
    assert find_dev_chain(datadir) is None


def test_a_record_of_a_dead_or_foreign_chain_is_passed_over(tmp_path: Path) -> None:
    with dev_chain(tmp_path / "a") as chain:
        record = tmp_path / "b" / "dev-chain.json"
        replace(chain, chain_id=1).write(record)
        for other in ({"chain_id": 1}, {"pid": 2**31 - 1}, {"rpc_url": "http://127.0.0.1:9"}):
            assert not replace(chain, **other).alive()
        assert find_dev_chain(tmp_path / "b") == chain  # by the home
        for content in (b"", b"[]", b"{}", b'{"rpc_url": 1}', b"\xff", b"[" * 60_000):
            record.write_bytes(content)
            assert DevChain.read(record) is None
    chain.write(record)
    assert find_dev_chain(tmp_path / "b") is None


def test_funding(dev: DevChain) -> None:
    address = Address(Account.create().address)
    fund(dev, address, 3 * 10**18, 7)
    fund(dev, address, 0, 5)
    ledger = ChainLedger(dev.rpc_url, dev.deployment())
    assert (ledger.native_wei(address), ledger.balance_wei(address)) == (3 * 10**18, 12)
    with pytest.raises(InsufficientFunds):
        fund(dev, address, 0, 10**27)
    assert ledger.balance_wei(Address(treasury().address)) > 0
    ledger.close()


def test_a_given_port(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.listen()
        with pytest.raises(UsageError, match=f"port {port}"), dev_chain(tmp_path, port=port):
            pytest.fail("somebody else has the port")
    with dev_chain(tmp_path, port=port) as chain:
        assert chain.rpc_url == f"http://127.0.0.1:{port}"


def test_state_is_carried_on(tmp_path: Path) -> None:
    address = Address(Account.create().address)
    state = tmp_path / "state.json"
    with dev_chain(tmp_path / "data", state_file=state) as first:
        fund(first, address, 1, 2)
    with dev_chain(tmp_path / "data", state_file=state) as second:
        assert second.deployment() == first.deployment()
        ledger = ChainLedger(second.rpc_url, second.deployment())
        assert (ledger.native_wei(address), ledger.balance_wei(address)) == (1, 2)
        ledger.close()


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """The kernel's death signal follows threads, and a pool's threads come and go."""
    entered, leave = dev_chain(tmp_path), threading.Event()
    chains: list[DevChain] = []
    thread = threading.Thread(target=lambda: chains.append(entered.__enter__()))
    thread.start()
    thread.join(20)
    try:
        assert not leave.wait(0.2)
        assert chains[0].alive()
    finally:
        entered.__exit__(None, None, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_anvil_never_lingers(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path / "data")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert find_dev_chain(tmp_path / "data") is not None
        parent.send_signal(number)
        code = parent.wait(10)
    until(lambda: gone(pid), "anvil's end")
    assert find_dev_chain(tmp_path / "data") is None
    if number is not signal.SIGKILL:
        assert code == 0
        assert not (tmp_path / "data" / "dev-chain.json").exists()


def test_the_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_anvil()
    assert os.access(found, os.X_OK)
    assert found.read_bytes()[:2] != b"#!"
    monkeypatch.setenv("DFL_ANVIL", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="DFL_ANVIL"):
        find_anvil()
    own = tmp_path / "anvil"
    own.write_bytes(b"\x7fELF")
    own.chmod(0o755)
    monkeypatch.setenv("DFL_ANVIL", str(own))
    assert find_anvil() == own
    with pytest.raises(UsageError, match="anvil does not start"), dev_chain(tmp_path / "data"):
        pytest.fail("that is no program")
