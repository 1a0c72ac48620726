"""Real nodes in network namespaces of their own: bad links, cut cables, frozen hosts, full disks,
a chain that is far away or out of reach.

Whatever happens to one node, the job completes, no phase outlives its deadline by more than the others take
to step up, nobody is paid twice, and the node finds its way back.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dfl_ledger.chain import ChainLedger
from dfl_ledger.records import JobId
from dfl_ledger.rpc import Rpc
from dfl_node.cli.demo_jobs import JOBS
from dfl_node.localnet import LocalNet, LocalNode, Place
from dfl_node.node import POLL_S
from dfl_node.rounds.machine import ADVANCE_GRACE_S, ADVANCE_SPREAD_S, RETRY_S
from tests.faults.disks import SmallDisk
from tests.faults.netns import Host, Hosts, why_not
from tests.faults.proxy import Proxy
from tests.faults.test_processes import assert_paid_once, ended

DONE_S = 240.0
CAUGHT_UP_S = 60.0
FROZEN_S, CUT_S, DOWN_S, FULL_S = 30.0, 15.0, 20.0, 20.0
FAR_S = 0.1  # one way: the round trip to a public endpoint on another continent
# The last in the queue of those who advance what is overdue, who may have to look and try once more.
OVERDUE_S = ADVANCE_GRACE_S + 3 * ADVANCE_SPREAD_S + 2 * RETRY_S + 2 * POLL_S
NODES = 4
ROUNDS = 3

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "namespaces work here"),
]


@dataclass
class Lab:
    """Four nodes, each on a host of its own, and the bridge between them and the chain."""

    net: LocalNet
    hosts: Hosts
    chain: Proxy  # of the last node alone
    places: list[Host] = field(default_factory=list)

    @property
    def victim(self) -> LocalNode:
        return self.net.nodes[-1]

    @property
    def host(self) -> Host:
        return self.places[-1]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("DFL_HOME", str(tmp_path / "home"))
    with ExitStack() as stack:
        hosts = stack.enter_context(Hosts())
        net = stack.enter_context(LocalNet(tmp_path / "net"))
        rpc = urlsplit(net.chain.rpc_url)
        target = (str(rpc.hostname), int(rpc.port or 0))
        shared, own = (stack.enter_context(Proxy(target, host=hosts.address)) for _ in range(2))
        lab = Lab(net, hosts, own)
        for number in range(1, NODES + 1):
            host = hosts.add()
            lab.places.append(host)
            url = own.url if number == NODES else shared.url
            shard = f"{3 * number - 2}:{3 * number}/12"
            net.add_node("--shard", shard, place=Place(host.address, host.prefix, url))
            if number == 1:
                net.wait_ready()
        net.wait_ready()
        yield lab


def freeze(lab: Lab) -> None:
    """SIGSTOP to a node, and SIGCONT half a minute later."""
    assert lab.victim.process is not None
    lab.victim.process.send_signal(signal.SIGSTOP)
    time.sleep(FROZEN_S)
    lab.victim.process.send_signal(signal.SIGCONT)


def cut(lab: Lab) -> None:
    lab.hosts.cut(lab.host)
    time.sleep(CUT_S)
    lab.hosts.heal(lab.host)


def slow_and_lossy(lab: Lab) -> None:
    lab.hosts.slow(lab.host, rate="2mbit", loss=0.02)


def chain_away(lab: Lab) -> None:
    lab.chain.down()
    time.sleep(DOWN_S)
    lab.chain.up()


def chain_far(lab: Lab) -> None:
    lab.chain.delay_s = FAR_S


FAULTS = (freeze, cut, slow_and_lossy, chain_away, chain_far)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("mode", ["sync", "async", "pipeline", "chained"])
def test_a_job_completes_on_a_bad_network(lab: Lab, mode: str, fault: Callable[[Lab], None]) -> None:
    suffer(lab, mode, fault)


@pytest.mark.parametrize("mode", ["sync", "async", "pipeline", "chained"])
def test_a_job_completes_while_a_disk_is_full(lab: Lab, mode: str) -> None:
    process = lab.victim.process
    assert process is not None
    process.terminate()
    process.wait(timeout=10)
    with SmallDisk(lab.victim.datadir) as disk:

        def full(_: Lab) -> None:
            disk.fill()
            time.sleep(FULL_S)
            disk.free()

        lab.net.start_node(lab.victim)
        lab.net.wait_ready(lab.victim)
        suffer(lab, mode, full)


def suffer(lab: Lab, mode: str, fault: Callable[[Lab], None]) -> None:
    """Run a job, do `fault` to the victim in its second round, and see that all ends well."""
    job = lab.net.submit(JOBS[mode].spec(nodes=NODES, rounds=ROUNDS))
    lab.net.watch(job, lambda j: j["round"] >= 2, timeout_s=DONE_S)
    fault(lab)
    final = lab.net.watch(job, ended, timeout_s=DONE_S)
    assert final["completed"] == ROUNDS
    lab.net.watch(job, ended, timeout_s=CAUGHT_UP_S, node=lab.victim)
    assert_paid_once(lab.net, job, ROUNDS * 100 * 10**18)
    assert overdue_s(lab.net, job) <= OVERDUE_S
    for node in lab.net.nodes:
        assert "Traceback" not in node.log.read_text()


def overdue_s(net: LocalNet, job: JobId) -> float:
    """By how many seconds of the chain the slowest phase or lease of the job outlived its deadline."""
    rpc, ledger = Rpc(net.chain.rpc_url), ChainLedger(net.chain.rpc_url, net.chain.deployment())
    try:
        worst, deadline = 0, None
        for event in ledger.events(0, ledger.head()):
            if event.args.get("job") != job:
                continue
            if event.name == "JobEnded" or "deadline" in event.args:
                block = rpc.as_object(rpc.call("eth_getBlockByNumber", hex(event.block), False))
                worst = max(worst, rpc.as_int(block["timestamp"]) - (deadline or 2**63))
                deadline = event.args.get("deadline")
        assert deadline is None, "the job has not ended"
        return worst
    finally:
        ledger.close()
        rpc.close()
