"""Real networks for fault tests: one chain and its node processes a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dfl_node.localnet import LocalNet

SPEC = """
name = "fault test"
app = "digits"
[model]
name = "mlp"
[training]
rounds = {rounds}
local_steps = {steps}
batch_size = 16
lr = 0.05
[round]
min_nodes = {nodes}
quorum = {quorum}
open_s = 60
commit_s = 20
reveal_s = 10
aggregate_s = 12
settle_s = 60
challenge_s = 1
[reward]
round_budget = "30"
required_stake = "10"
score_s = {score_s}
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalNet]:
    monkeypatch.setenv("DFL_HOME", str(tmp_path / "home"))
    with LocalNet(tmp_path / "net") as network:
        yield network
