"""Real processes on a real chain: nodes die, come late, come back; the job ends and everyone is paid once."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from dfl_ledger.records import JobId
from dfl_node.localnet import LocalNet, LocalNode

from .conftest import SPEC

# When to give up, on a machine that may be busy: no promise of the product.
DONE_S = 400.0
# For the evidence that a claim needs: a node that was cut off may only get it at its second attempt.
EVIDENCE_S = 180.0
MANY = 60  # rounds: more than a process needs to start


def spec(**values: int) -> str:
    return SPEC.format(**{"rounds": 3, "steps": 20, "nodes": 3, "quorum": 2, **values})


def start(net: LocalNet, count: int) -> list[LocalNode]:
    first = net.add_node("--shard", f"1:1/{count}")
    net.wait_ready(first)
    for number in range(2, count + 1):
        net.add_node("--shard", f"{number}:{number}/{count}")
    net.wait_ready()
    return list(net.nodes)


def ended(job: dict[str, Any]) -> bool:
    return job["phase"] == "completed" and all(r["state"] in ("settled", "void") for r in job["rounds"])


def end_once_it_contributed(net: LocalNet, job: JobId, node: LocalNode, after: int = 0) -> dict[str, Any]:
    """The job, which its requester ends as soon as a round later than `after` has a model with work of `node`.

    A job of a fixed number of rounds may be over before a process has started on a busy machine.
    """

    def contributed(job_: dict[str, Any]) -> bool:
        rounds = (r["round"] for r in job_["rounds"] if r["model"] and r["round"] > after)
        return any(node.address in contributors(net, job, round_) for round_ in rounds)

    net.watch(job, contributed, timeout_s=DONE_S)
    net.cli("job", "cancel", str(job), "--datadir", str(net.nodes[0].datadir))
    return net.watch(
        job,
        lambda j: j["phase"] == "cancelled" and all(r["state"] in ("settled", "void") for r in j["rounds"]),
        timeout_s=DONE_S,
    )


def contributors(net: LocalNet, job: JobId, round_: int) -> set[str]:
    with net.rows() as ledger:
        return {row.node for row in ledger.revealed(job, round_)}


def earnings(net: LocalNet, job: JobId) -> dict[str, int]:
    """What each node earned in a job that has ended, once the evidence of all its settlements is checked."""
    deadline = time.monotonic() + EVIDENCE_S
    with net.rows() as ledger:
        while True:
            found, settled = ledger.job(job), ledger.settlements(job)
            leaves = ledger.leaves(job, settled[-1]["round"]) if settled else ()
            earned = {str(leaf.account): leaf.cumulative_wei for leaf in leaves if not leaf.asset}
            if found is not None and leaves and sum(earned.values()) == found.settled_wei:
                return earned
            assert time.monotonic() < deadline, f"the rows lack evidence: {earned}, {found}"
            time.sleep(0.1)


def assert_paid_once(net: LocalNet, job: JobId, budget_wei: int) -> None:
    """Claims of every wallet add up to what its rows say, twice asked is once paid, and the sum fits."""
    earned = earnings(net, job)
    assert 0 < sum(earned.values()) <= budget_wei
    for node in net.nodes:
        if not node.running:
            continue
        total, deadline = 0, time.monotonic() + EVIDENCE_S
        while total < earned.get(node.address, 0):
            assert time.monotonic() < deadline, f"{total} of {earned} could be claimed"
            total += int(net.cli("ledger", "claim", "--datadir", str(node.datadir))["total_wei"])
        assert total == earned.get(node.address, 0)
        assert net.cli("ledger", "claim", "--datadir", str(node.datadir))["total_wei"] == "0"


def test_a_node_killed_in_mid_round_does_not_stop_the_job_and_a_late_one_takes_part(net: LocalNet) -> None:
    nodes = start(net, 3)
    job = net.submit(spec(rounds=MANY))
    net.watch(job, lambda j: j["completed"] >= 1, timeout_s=DONE_S)
    net.kill(nodes[2])
    late = net.add_node("--shard", "3:3/3")
    final = end_once_it_contributed(net, job, late)

    models = [r["round"] for r in final["rounds"] if r["model"]]
    assert models == list(range(1, final["completed"] + 1))  # none was lost to the kill
    assert contributors(net, job, 1) == {n.address for n in nodes}
    assert contributors(net, job, models[-1]) == {nodes[0].address, nodes[1].address, late.address}
    assert_paid_once(net, job, final["completed"] * 30 * 10**18)


def test_a_killed_node_comes_back_on_its_data_directory_and_rejoins(net: LocalNet) -> None:
    nodes = start(net, 3)
    job = net.submit(spec(rounds=MANY))
    at_work = net.watch(job, lambda j: j["completed"] >= 1, timeout_s=DONE_S)
    net.kill(nodes[1])
    net.start_node(nodes[1])
    final = end_once_it_contributed(net, job, nodes[1], after=len(at_work["rounds"]) + 1)

    assert_paid_once(net, job, final["completed"] * 30 * 10**18)


def test_nodes_that_know_one_boot_node_find_one_another(net: LocalNet) -> None:
    nodes = start(net, 4)
    net.submit(spec(nodes=4, rounds=1))
    everyone = {n.info["peer_id"] for n in nodes}
    deadline = time.monotonic() + 60
    for node in nodes:
        others = everyone - {node.info["peer_id"]}
        while True:
            peers = net.cli("peers", "--datadir", str(node.datadir))["peers"]
            if {p["peer_id"] for p in peers} >= others:
                break
            assert time.monotonic() < deadline, f"node {node.number} found only {peers}"


def test_ctrl_c_ends_a_node_cleanly_and_its_data_directory_is_free_again(net: LocalNet) -> None:
    node = net.add_node()
    net.wait_ready(node)
    assert node.process is not None
    began = time.monotonic()
    os.kill(node.process.pid, signal.SIGINT)
    assert node.process.wait(timeout=10) == 130
    assert time.monotonic() - began < 5  # the promise is 2 s; a loaded test machine gets some room
    assert not (node.datadir / "node.json").exists()
    assert "Traceback" not in node.log.read_text()
    net.start_node(node)
    net.wait_ready(node)


def test_a_node_with_auto_claim_is_paid_without_being_asked(net: LocalNet) -> None:
    node = net.add_node("--auto-claim")
    net.wait_ready(node)
    job = net.submit(spec(rounds=1, steps=5, nodes=1, quorum=1))
    final = net.watch(job, ended, timeout_s=DONE_S)
    assert final["phase"] == "completed"
    deadline = time.monotonic() + 60
    with net.rows() as ledger:
        while (paid := ledger.earnings(node.address)).claimed_wei < paid.earned_wei:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert paid.claimed_wei == 30 * 10**18


def test_a_node_that_knows_nobody_finds_the_boot_node_of_the_registry(net: LocalNet) -> None:
    boot = net.add_node(roles="boot,request")
    net.wait_ready(boot)
    stranger = net.add_node(knows_another=False)
    net.wait_ready(stranger)
    deadline = time.monotonic() + 30
    while not (peers := net.cli("peers", "--datadir", str(stranger.datadir))["peers"]):
        assert time.monotonic() < deadline
    assert [(p["peer_id"], p["found_by"]) for p in peers] == [(boot.info["peer_id"], "registry")]
