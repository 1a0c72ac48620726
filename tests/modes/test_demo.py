"""`dfl-node demo --mode`: each mode on real nodes and a real chain, with one of them killed at work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfl_node.cli.demo_jobs import JOBS

FIELDS = {
    *("job_id", "mode", "recovered", "model_cid", "accuracy", "central_accuracy", "rounds", "nodes"),
    *("contributions", "output_dir", "datadir"),
}


def demo(tmp_path: Path, *options: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "dfl_node",
        "demo",
        "--datadir",
        str(tmp_path / "demo"),
        "--json",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, check=False, timeout=400)
    answer = json.loads(done.stdout)
    assert answer["status"] == "ok", answer["data"]["error"]
    data: dict[str, Any] = answer["data"]
    return data


# In the fast suite examples of all modes run to their end, and deaths are in virtual time.
@pytest.mark.long
@pytest.mark.parametrize("mode", JOBS)
def test_a_mode_reads_digits_although_a_node_at_work_is_killed(tmp_path: Path, mode: str) -> None:
    data = demo(tmp_path, "--mode", mode, "--kill-one")
    assert data.keys() >= FIELDS
    assert data["mode"] == mode
    assert data["accuracy"] >= 0.95
    (killed,) = [node for node in data["nodes"] if node["killed"]]
    (recovered,) = data["recovered"]
    assert recovered["address"] == killed["address"]
    assert recovered["seconds"] is not None
    assert (Path(data["output_dir"]) / "model.safetensors").exists()
    for node in data["nodes"]:
        if not node["killed"]:
            assert node["claimed_wei"] == node["earned_wei"]
    assert sum(int(node["earned_wei"]) for node in data["nodes"]) > 0
