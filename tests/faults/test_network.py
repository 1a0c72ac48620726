"""Real nodes in network namespaces of their own: bad links, cut cables, frozen hosts, a chain out of reach.

Each mode under each of them: the job completes, no round outlives its deadlines, nobody is paid twice.
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

from dfl_node.cli.demo_jobs import JOBS
from dfl_node.localnet import LocalNet, LocalNode, Place
from tests.faults.netns import Host, Hosts, why_not
from tests.faults.proxy import Proxy
from tests.faults.test_processes import assert_paid_once, ended

DONE_S = 240.0
FROZEN_S, CUT_S, DOWN_S = 30.0, 15.0, 20.0
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
    """SIGSTOP to a node, for longer than any window of its job's rounds."""
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


@pytest.mark.parametrize("fault", [freeze, cut, slow_and_lossy, chain_away], ids=lambda f: f.__name__)
@pytest.mark.parametrize("mode", ["sync", "async", "pipeline", "chained"])
def test_a_job_completes_on_a_bad_network(lab: Lab, mode: str, fault: Callable[[Lab], None]) -> None:
    job = lab.net.submit(JOBS[mode].spec(nodes=NODES, rounds=ROUNDS))
    lab.net.watch(job, lambda j: j["round"] >= 2, timeout_s=DONE_S)
    fault(lab)
    final = lab.net.watch(job, ended, timeout_s=DONE_S)
    assert final["completed"] == ROUNDS
    assert_paid_once(lab.net, job, ROUNDS * 100 * 10**18)
