"""`dfl-node demo`: what it promises in JSON, on real nodes, with a watch on the memory that they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.records import Cid
from dfl_node.identity import checksum_address

NODES, ROUNDS = 2, 2
MAX_RESIDENT_BYTES = 450 << 20  # a node with its trainer, while it trains the CNN of the demo
TIMEOUT_S = 300


def _resident_bytes(demo: int) -> list[int]:
    """What each node of the demo and its trainer hold in memory now, shared pages counted in both."""
    parents, resident, nodes = {}, {}, set()
    for entry in Path("/proc").iterdir():
        try:
            pid = int(entry.name)
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            pages = int((entry / "statm").read_text().split()[1])
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):  # no process, or one that has just ended
            continue
        parents[pid], resident[pid] = parent, pages * os.sysconf("SC_PAGE_SIZE")
        if b"start" in command and parent == demo:
            nodes.add(pid)
    return [resident[n] + sum(resident[p] for p, parent in parents.items() if parent == n) for n in nodes]


@pytest.mark.long
def test_its_json_has_what_is_promised_and_its_nodes_are_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dfl_node", "demo", "--datadir", str(tmp_path / "demo"), "--json"]
    command += ["--nodes", str(NODES), "--rounds", str(ROUNDS)]
    most_bytes, deadline = 0, time.monotonic() + TIMEOUT_S
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        try:
            while demo.poll() is None:
                assert time.monotonic() < deadline
                most_bytes = max([most_bytes, *_resident_bytes(demo.pid)])
                time.sleep(0.1)
        finally:
            demo.terminate()
        printed, notes = demo.communicate()

    assert demo.returncode == 0, notes
    answer = json.loads(printed)
    assert (answer["schema_version"], answer["status"]) == ("1", "ok")
    _check(answer["data"])
    assert "round 1: model" in notes  # progress is for people, and goes to stderr
    assert 200_000_000 < most_bytes < MAX_RESIDENT_BYTES  # torch alone is more than the lower bound


def _check(data: dict[str, Any]) -> None:
    assert data["job_id"] == 1
    assert str(Cid.parse(data["model_cid"])) == data["model_cid"]
    assert 0.3 < data["accuracy"] <= 1
    assert 0.3 < data["central_accuracy"] <= 1
    assert [r["round"] for r in data["rounds"]] == list(range(1, ROUNDS + 1))
    assert all(r["duration_s"] > 0 and r["bytes_sent"] > 0 for r in data["rounds"])
    assert data["contributions"] == sum(r["contributions"] for r in data["rounds"]) > 0
    assert len({node["peer_id"] for node in data["nodes"]}) == NODES
    for node in data["nodes"]:
        assert checksum_address(node["address"]) == node["address"]
        assert node["claimed_wei"] == node["earned_wei"]
    earned_wei = sum(int(node["earned_wei"]) for node in data["nodes"])
    assert 0 < earned_wei <= ROUNDS * 100 * 10**18
    assert (Path(data["output_dir"]) / "model.safetensors").exists()
    assert Path(data["datadir"]).is_dir()
