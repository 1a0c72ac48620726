"""`dfl-node start` and `dfl-node chain dev`: what they refuse, and how they begin and end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.contracts import CONTRACTS
from dfl_node.datadir import hold, node_file_path
from dfl_node.identity import create_wallet, write_private

PASSWORD = "a good password"
DEAD = "http://127.0.0.1:1"


@pytest.fixture
def wallet(tmp_path: Path) -> tuple[str, ...]:
    create_wallet(tmp_path / "key.json", PASSWORD, light=True)
    write_private(tmp_path / "password", PASSWORD.encode())
    return ("--wallet", str(tmp_path / "key.json"), "--password-file", str(tmp_path / "password"))


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `dfl-node ARGUMENTS --json`; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "DFL_HOME": str(tmp_path / "home")}

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"log-{len(started)}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dfl_node", *arguments, "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _data(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    data: dict[str, Any] = json.loads(process.stdout.readline())["data"]
    return data


# -- refused before anything is started ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "option"),
    [
        (("--roles", "mine"), "--roles"),
        (("--bootnodes", "here"), "--bootnodes"),
        (("--listen", "4001"), "--listen"),
        (("--shard", "4"), "--shard"),
        (("--split", "half"), "--split"),
        (("--stake", "all"), "--stake"),
        (("--data", "nothing-like-it"), "--data"),
        (("--dataset", "0"), "--dataset"),
        (("--dataset", "1", "--roles", "request"), "--dataset"),
        (tuple(word for asset in range(1, 10) for word in ("--dataset", str(asset))), "--dataset"),
        (("--ipfs", "http://127.0.0.1:5001"), "--ipfs"),
        (("--max-store-mb", "0"), "--max-store-mb"),
        (("--deployment", "missing.json"), "--deployment"),
        (("--rpc-url", "ftp://127.0.0.1"), "--rpc-url"),
        (("--http-port", "70000"), "--http-port"),
        (("--log-format", "xml"), "--log-format"),
    ],
)
def test_a_bad_option_is_named(
    run: Any, wallet: tuple[str, ...], options: tuple[str, ...], option: str
) -> None:
    told = run("start", *wallet, "--rpc-url", DEAD, *options, "--json")
    assert told.exit_code == 2
    assert option in told.error["what"]


def test_bad_wallets(run: Any, wallet: tuple[str, ...], tmp_path: Path) -> None:
    datadir = tmp_path / "node"
    place = ("--rpc-url", DEAD, "--datadir", datadir, "--json")
    (tmp_path / "key.json").chmod(0o644)
    exposed = run("start", *wallet, *place)
    assert (exposed.exit_code, exposed.error["type"]) == (5, "KeyFileExposed")
    (tmp_path / "key.json").chmod(0o600)
    (tmp_path / "password").write_text("wrong")
    wrong = run("start", *wallet, *place)
    assert (wrong.exit_code, wrong.error["type"]) == (5, "WrongPassword")
    (tmp_path / "password").chmod(0o644)
    assert run("start", *wallet, *place).error["type"] == "KeyFileExposed"
    assert run("start", "--wallet", tmp_path / "missing", *place).exit_code == 5
    with hold(datadir):  # none of them has kept the lock
        pass


def test_a_second_node_on_a_data_directory(run: Any, wallet: tuple[str, ...], tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from dfl_node.datadir import hold\n"
    script += "with hold(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    datadir = tmp_path / "node"
    holder = subprocess.Popen([sys.executable, "-c", script, str(datadir)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        told = run("start", *wallet, "--rpc-url", DEAD, "--datadir", datadir, "--json")
    finally:
        holder.kill()
        holder.communicate()
    assert (told.exit_code, told.error["type"]) == (2, "DatadirLocked")
    assert str(holder.pid) in told.error["why"]


def test_without_a_chain_there_is_a_command_that_helps(run: Any, wallet: tuple[str, ...]) -> None:
    told = run("start", *wallet, "--json")
    assert told.exit_code == 2
    assert told.error["help"] == "dfl-node chain dev"


def test_a_dead_rpc(wallet: tuple[str, ...], background: Any, tmp_path: Path) -> None:
    process = background("start", *wallet, "--rpc-url", DEAD, "--datadir", str(tmp_path / "node"))
    assert _data(process)["error"]["type"] == "ChainUnreachable"
    assert process.wait(30) == 3
    assert not node_file_path(tmp_path / "node").exists()


# -- a whole life --------------------------------------------------------------------------------------------
def test_a_chain_and_a_node_begin_and_end(
    run: Any, wallet: tuple[str, ...], background: Any, tmp_path: Path
) -> None:
    chain = background("chain", "dev", "--fund", wallet[1])
    made = _data(chain)
    assert made["chain_id"] == 31337
    assert sorted(made["contracts"]) == sorted(CONTRACTS)
    assert run("chain", "fund", wallet[1], "--vnx", "1.5", "--json").data["vnx_wei"] == "1500000000000000000"

    datadir = tmp_path / "home" / "node"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        node = background("start", *wallet, "--no-mdns", "--stake", "10", "--log-format", "json")
        ready = _data(node)
        assert (ready["datadir"], ready["pid"]) == (str(datadir), node.pid)
        status = run("status", "--json").data
        assert status["address"] == ready["address"]
        assert status["http_url"] == ready["http_url"]
        assert status["chain"]["id"] == 31337
        assert [a for a in status["multiaddrs"] if a.endswith(f"/p2p/{status['peer_id']}")]
        began = time.monotonic()
        node.send_signal(number)
        assert node.wait(10) == code
        assert time.monotonic() - began < 2
        assert run("status", "--json").exit_code == 3
        assert run("job", "list", "--json").data == {"jobs": []}
    logged = (tmp_path / "log-1").read_text()
    assert PASSWORD not in logged
    assert [json.loads(line) for line in logged.splitlines() if line.startswith("{")]

    chain.send_signal(signal.SIGINT)
    assert chain.wait(10) in (0, 130)
    assert run("chain", "fund", wallet[1], "--json").exit_code == 3
