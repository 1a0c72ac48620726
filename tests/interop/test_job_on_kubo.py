"""A node whose store is an IPFS daemon works with one whose store is its own, in the same job."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfl_node.localnet import LocalNet
from tests.faults.conftest import SPEC
from tests.faults.test_processes import earnings
from tests.interop.support import js_ipfs


def test_a_job_runs_on_a_node_behind_a_daemon_and_one_with_the_embedded_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFL_HOME", str(tmp_path / "home"))
    with js_ipfs(tmp_path) as multiaddr, LocalNet(tmp_path / "net") as net:
        net.wait_ready(net.add_node("--shard", "1/2", "--ipfs", multiaddr))
        net.wait_ready(net.add_node("--shard", "2/2"))
        job = net.submit(SPEC.format(rounds=2, steps=10, nodes=2, quorum=2, score_s=60))
        final = net.watch(
            job,
            lambda j: all(r["state"] == "settled" for r in j["rounds"]) and j["completed"] == 2,
            timeout_s=400,
        )
        assert final["phase"] == "completed"
        assert earnings(net, job)  # waits for the evidence, which comes after the settlement
        with net.rows() as ledger:
            rows = ledger.contributions(job=job)
        assert len(rows) == 4
        assert [row.why for row in rows if not row.accepted] == []
        # the daemon's node published the spec; the other one must have had it from there
        spec = final["spec"]
        where = ("--datadir", str(net.nodes[1].datadir))
        net.cli("blob", "get", spec, "-o", str(tmp_path / "spec"), *where)
        assert (tmp_path / "spec").stat().st_size > 0
