"""Real nodes, a real chain, real digits: who owns rows is paid for what they taught, and stays at home."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dfl_apps.digits import APP
from dfl_node.localnet import LocalNet, LocalNode
from dfl_node.train.rows import write_npz

from .test_processes import DONE_S, EVIDENCE_S, ended, spec

PAYS_DATA = "shares = { data = 20.0, evaluators = 5.0 }\n"


def run(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code and data."""
    command = [sys.executable, "-m", "dfl_node", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=300, check=False)
    return done.returncode, json.loads(done.stdout)["data"]


def stop(node: LocalNode) -> None:
    assert node.process is not None
    node.process.send_signal(signal.SIGTERM)
    node.process.wait()


@pytest.mark.long
def test_an_owner_is_paid_for_rows_that_somebody_else_trains_on(net: LocalNet, tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(write_npz(APP.load(None, (1, 1, 3), None)))
    owner = net.add_node(roles="request,evaluate")
    net.wait_ready(owner)
    at_owner = ("--datadir", str(owner.datadir))
    where = ("--app", "digits", "--licence", "CC0-1.0", "--price", "20")
    asset = net.cli("dataset", "add", str(tmp_path / "mine.npz"), *where, *at_owner)["asset"]
    friend = net.add_node("--data", f"digits={tmp_path / 'mine.npz'}")
    net.add_node("--data", "digits", "--shard", "2:2/3")
    net.wait_ready()
    stop(friend)

    # neither without the owner's word nor with other rows
    begin = (
        *("start", "--wallet", friend.wallet, "--password-file", net.root / "password"),
        *("--datadir", friend.datadir, "--rpc-url", net.chain.rpc_url, "--no-mdns"),
        *("--deployment", net.chain.deployment_path, "--bootnodes", owner.info["multiaddrs"][0]),
        *("--dataset", asset, "--data", "digits", "--shard", "3:3/3"),
    )
    code, told = run(*begin)
    assert (code, told["error"]["help"]) == (2, f"dfl-node asset allow {asset} {friend.address}")
    net.cli("asset", "allow", asset, friend.address, *at_owner)
    code, told = run(*begin)
    assert (code, told["error"]["type"]) == (2, "UsageError")
    assert "the rows of digits are not those of data set" in told["error"]["what"]

    friend.options = (*friend.options, "--dataset", asset)
    net.start_node(friend)
    net.wait_ready(friend)
    job = net.submit(spec(rounds=2, nodes=2) + PAYS_DATA, owner)
    final = net.watch(job, ended, timeout_s=DONE_S)
    rounds = [r["round"] for r in final["rounds"] if r["model"]]
    (lent,) = net.cli("status", "--datadir", str(friend.datadir))["datasets"]
    assert lent == {"asset": asset, "app": "digits", "jobs": [job], "left_out": {}}

    pot_wei, paid_wei, deadline = 6 * 10**18, 0, time.monotonic() + EVIDENCE_S
    while paid_wei < len(rounds) * pot_wei:  # it is the only data set, and taught something in each round
        assert time.monotonic() < deadline, f"{paid_wei} wei were claimed"
        net.cli("ledger", "claim", *at_owner)
        with net.rows() as rows:
            paid_wei = sum(c.amount_wei for c in rows.claims(owner.address) if c.asset == int(asset))
    assert paid_wei == len(rounds) * pot_wei
    told = net.cli("ledger", "explain", owner.address, *at_owner)
    assert [(a["asset"], a["used_by"]) for a in told["assets"]] == [(asset, [friend.address])] * 2
    assert all(a["median"] > 0 and a["claim_tx"] for a in told["assets"])
    assert net.cli("asset", "show", asset, *at_owner)["jobs"][0]["earned_wei"] == str(paid_wei)
    code, told = run("ledger", "verify", job, *at_owner)
    assert code == 0, told
