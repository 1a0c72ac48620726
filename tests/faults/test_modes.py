"""One real job a mode, on real processes: who is at work is killed, and the model is what the pieces give."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from dfl_ledger.records import JobId
from dfl_node.api.client import NodeClient
from dfl_node.cli.demo_jobs import JOBS
from dfl_node.localnet import LocalNet, LocalNode
from tests.faults.references import check_models
from tests.faults.test_network import OVERDUE_S, overdue_s
from tests.faults.test_processes import DONE_S, assert_paid_once, ended

NODES, ROUNDS = 4, 3
STRUCK = 2  # the round in which somebody dies
BUDGET_WEI = 100 * 10**18  # of a round


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNet]:
    """Four nodes; who was killed is started again before the next job."""
    root = tmp_path_factory.mktemp("modes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFL_HOME", str(root / "home"))
        with LocalNet(root / "net") as network:
            for number in range(1, NODES + 1):
                network.add_node("--shard", f"{3 * number - 2}:{3 * number}/12")
                if number == 1:
                    network.wait_ready()
            network.wait_ready()
            yield network


def at_work(net: LocalNet, job: JobId, mode: str) -> LocalNode:
    """Who would be missed most, but the first, who pays for the job and shows it to us."""
    others = {node.address: node for node in net.nodes[1:]}
    view: dict[str, Any] = {}
    deadline = time.monotonic() + 2 * DONE_S
    while time.monotonic() < deadline:
        with NodeClient(net.nodes[0].datadir, timeout_s=10.0) as node:
            view = node.job(job)
        live = view.get("live", {})
        if live.get("round", 0) >= STRUCK and live["phase"] == "commit":
            activity, awaited = live["activity"], [a for a in view["awaited"] if a in others]
            if mode == "pipeline":  # beyond the first recovery point, and between two
                awaited = [a for a in activity.get("stages", []) if a in others]
                awaited = awaited if activity.get("step", 0) >= 11 else []
            if awaited:
                return others[awaited[-1]]
        time.sleep(0.02)
    raise AssertionError(f"nobody is ever at work: {view}")


@pytest.mark.long
@pytest.mark.parametrize("mode", JOBS)
def test_a_job_survives_a_kill_and_its_models_can_be_computed_again(net: LocalNet, mode: str) -> None:
    spec = JOBS[mode].spec(nodes=NODES, rounds=ROUNDS)
    job = net.submit(spec)
    victim = at_work(net, job, mode)
    net.kill(victim)
    final = net.watch(job, ended, timeout_s=DONE_S)
    assert final["completed"] == ROUNDS
    assert overdue_s(net, job) <= OVERDUE_S
    if mode != "chained":  # where a model is what its hop made it
        check_models(net, job, spec)
    net.start_node(victim)
    net.wait_ready(victim)
    assert_paid_once(net, job, final["completed"] * BUDGET_WEI)
    for node in net.nodes:
        assert "Traceback" not in node.log.read_text()
