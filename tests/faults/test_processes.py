"""Real processes on a real chain: nodes die, come late, come back; the job ends and everyone is paid once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dfl_ledger.records import JobId
from dfl_node.localnet import LocalNet, LocalNode

from .conftest import SPEC

# When to give up, on a machine that may be busy: no promise of the product.
DONE_S = 400.0
# For the evidence that a claim needs: a node that was cut off may only get it at its second attempt.
EVIDENCE_S = 180.0
MANY = 60  # rounds: more than processes need to start, however busy the machine


def spec(**values: int) -> str:
    return SPEC.format(**{"rounds": 3, "steps": 20, "nodes": 3, "quorum": 2, "score_s": 60, **values})


def start(net: LocalNet, count: int) -> list[LocalNode]:
    first = net.add_node("--shard", f"1:1/{count}")
    net.wait_ready(first)
    for number in range(2, count + 1):
        net.add_node("--shard", f"{number}:{number}/{count}")
    net.wait_ready()
    return list(net.nodes)


def ended(job: dict[str, Any]) -> bool:
    over = job["phase"] in ("completed", "cancelled")
    return over and all(r["state"] in ("settled", "void") for r in job["rounds"])


def has_contributed(net: LocalNet, job: JobId, node: LocalNode, after: int = 0) -> Callable[[Any], bool]:
    """Whether a round later than `after` has a model with work of `node`."""

    def found(job_: dict[str, Any]) -> bool:
        rounds = (r["round"] for r in job_["rounds"] if r["model"] and r["round"] > after)
        return any(node.address in contributors(net, job, round_) for round_ in rounds)

    return found


def find_one_another(nodes: list[LocalNode], net: LocalNet) -> None:
    everyone = {n.info["peer_id"] for n in nodes}
    deadline = time.monotonic() + 60
    for node in nodes:
        others = everyone - {node.info["peer_id"]}
        while True:
            peers = net.cli("peers", "--datadir", str(node.datadir))["peers"]
            if {p["peer_id"] for p in peers} >= others:
                break
            assert time.monotonic() < deadline, f"node {node.number} found only {peers}"


def wait_until_paid(net: LocalNet, node: LocalNode) -> None:
    """Until a node has claimed all that it earned."""
    deadline = time.monotonic() + EVIDENCE_S
    with net.rows() as ledger:
        while not 0 < (paid := ledger.earnings(node.address)).earned_wei == paid.claimed_wei:
            assert time.monotonic() < deadline, paid
            time.sleep(0.2)


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
        while "--auto-claim" not in node.options and total < earned.get(node.address, 0):
            assert time.monotonic() < deadline, f"{total} of {earned} could be claimed"
            total += int(net.cli("ledger", "claim", "--datadir", str(node.datadir))["total_wei"])
        assert total == earned.get(node.address, 0) or "--auto-claim" in node.options
        assert net.cli("ledger", "claim", "--datadir", str(node.datadir))["total_wei"] == "0"


def test_a_job_goes_on_while_nodes_die_come_back_and_come_late(net: LocalNet) -> None:
    """The late one finds everybody else through one boot node, and collects its pay without being asked."""
    nodes = start(net, 3)
    job = net.submit(spec(rounds=MANY, score_s=25))  # which a seat of the dead node costs twice
    net.watch(job, lambda j: j["completed"] >= 1, timeout_s=DONE_S)
    net.kill(nodes[2])
    late = net.add_node("--shard", "3:3/3", "--auto-claim")
    at_work = net.watch(job, has_contributed(net, job, late), timeout_s=DONE_S)
    models = [r["round"] for r in at_work["rounds"] if r["model"]]
    assert models == list(range(1, at_work["completed"] + 1))  # none was lost to the kill
    assert contributors(net, job, 1) == {n.address for n in nodes}
    assert contributors(net, job, models[-1]) == {nodes[0].address, nodes[1].address, late.address}

    net.start_node(nodes[2])
    net.watch(job, has_contributed(net, job, nodes[2], after=models[-1]), timeout_s=DONE_S)
    net.wait_ready()
    find_one_another(net.nodes, net)
    net.cli("job", "cancel", str(job), "--datadir", str(net.nodes[0].datadir))
    final = net.watch(job, ended, timeout_s=DONE_S)
    assert (final["phase"], len(net.nodes)) == ("cancelled", 4)
    wait_until_paid(net, late)
    assert_paid_once(net, job, final["completed"] * 30 * 10**18)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNet]:
    """A boot node, and one that was told nobody's address."""
    root = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFL_HOME", str(root / "home"))
        with LocalNet(root / "net") as net:
            net.wait_ready(net.add_node(roles="boot,request"))
            net.wait_ready(net.add_node(knows_another=False))
            yield net


def test_a_node_that_knows_nobody_finds_the_boot_node_of_the_registry(pair: LocalNet) -> None:
    boot, stranger = pair.nodes
    deadline = time.monotonic() + 30
    while not (peers := pair.cli("peers", "--datadir", str(stranger.datadir))["peers"]):
        assert time.monotonic() < deadline
    assert [(p["peer_id"], p["found_by"]) for p in peers] == [(boot.info["peer_id"], "registry")]


def test_ctrl_c_ends_a_node_cleanly_and_its_data_directory_is_free_again(pair: LocalNet) -> None:
    node = pair.nodes[1]
    assert node.process is not None
    began = time.monotonic()
    os.kill(node.process.pid, signal.SIGINT)
    assert node.process.wait(timeout=10) == 130
    assert time.monotonic() - began < 5  # the promise is 2 s; a loaded test machine gets some room
    assert not (node.datadir / "node.json").exists()
    assert "Traceback" not in node.log.read_text()
    pair.start_node(node)
    pair.wait_ready(node)
