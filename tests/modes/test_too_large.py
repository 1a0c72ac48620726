"""A model that no node can train under its `--max-memory`, trained by all of them together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfl_node.localnet import LocalNet
from tests.faults.test_processes import DONE_S, ended

MAX_MEMORY = 512  # MiB a node
NODES, STAGES = 4, 3
PARAMETERS_MB = 70  # with AdamW's moments and the gradients four times that
SPEC = """
name = "too large for one"
app = "digits"
mode = "{mode}"
[model]
name = "mlp"
args = {{ hidden = 1792, layers = 6 }}
[training]
rounds = 1
local_steps = 6
batch_size = 32
optimizer = "adamw"
lr = 0.0005
max_update_bytes = 100000000
[round]
min_nodes = 4
quorum = {quorum}
open_s = 60
commit_s = {commit_s}
reveal_s = 10
aggregate_s = 60
settle_s = 120
challenge_s = 1
{of_mode}
[reward]
round_budget = "30"
"""

pytestmark = pytest.mark.long


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalNet]:
    monkeypatch.setenv("DFL_HOME", str(tmp_path / "home"))
    with LocalNet(tmp_path / "net") as network:
        for number in range(1, NODES + 1):
            network.add_node("--shard", f"{number}:{number}/{NODES}", "--max-memory", str(MAX_MEMORY))
            if number == 1:
                network.wait_ready()
        network.wait_ready()
        yield network


def said(net: LocalNet, what: str) -> bool:
    """Whether a node's log says it."""
    return any(
        what in json.dumps(json.loads(line)) for n in net.nodes for line in n.log.open() if line[0] == "{"
    )


def test_stages_train_what_no_node_could(net: LocalNet) -> None:
    alone = net.submit(SPEC.format(mode="sync", quorum=2, commit_s=15, of_mode=""))
    ending = ("completed", "failed", "cancelled")
    failed = net.watch(alone, lambda j: j["phase"] in ending, timeout_s=DONE_S)
    assert failed["phase"] == "failed"
    assert said(net, "ran out of memory")

    pipeline = f"[pipeline]\nstages = {STAGES}\nmicro_batches = 4\nsnapshot_steps = 3"
    job = net.submit(SPEC.format(mode="pipeline", quorum=STAGES, commit_s=120, of_mode=pipeline))
    final = net.watch(job, ended, timeout_s=2 * DONE_S)
    assert final["completed"] == 1
    with net.rows() as ledger:
        stages = {row.node for row in ledger.contributions(job=job) if row.kind == "stage"}
    assert len(stages) == STAGES
    datadir = ("--datadir", str(net.nodes[0].datadir))
    net.cli("job", "download", str(job), "-o", str(net.root / "model"), *datadir, timeout_s=120)
    assert (net.root / "model" / "model.safetensors").stat().st_size > PARAMETERS_MB * 10**6 * 0.95
