"""Minutes: nodes of a real network are killed and restarted again and again, as a seed draws it."""

from __future__ import annotations

import json
import random
import time
from collections import Counter

import pytest

from dfl_ledger.records import JobId
from dfl_node.localnet import LocalNet, LocalNode

from .test_processes import DONE_S, assert_paid_once, ended, spec, start

ROUNDS = 8


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_a_job_survives_kills_and_restarts_and_everyone_is_paid_once(net: LocalNet, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311  a schedule, not a secret
    nodes = start(net, 4)
    job = net.submit(spec(nodes=4, rounds=ROUNDS, steps=40))
    watcher = nodes[0]  # it pays for the job and shows it to us; the others are fair game
    done = 0
    while done < ROUNDS:
        done = net.watch(
            job, lambda j, more=done: ended(j) or j["completed"] > more, timeout_s=DONE_S, node=watcher
        )["completed"]
        victim = draw.choice(nodes[1:])
        if victim.running:
            time.sleep(draw.random())  # somewhere in the round
            net.kill(victim)
        for node in nodes[1:]:
            if node.killed and draw.random() < 0.7:
                net.start_node(node)
    final = net.watch(job, ended, timeout_s=DONE_S, node=watcher)
    assert final["completed"] == ROUNDS, f"seed {seed}: {final}"
    for node in nodes[1:]:
        if node.killed:
            net.start_node(node)
    net.wait_ready()
    assert_paid_once(net, job, ROUNDS * 30 * 10**18)


# What a node says right after it has done it, so that it dies at this point of a round.
POINTS = ("joined", "trained", "committed", "revealed", "published", "settled")


def next_to_say(net: LocalNet, job: JobId, point: str, nodes: list[LocalNode]) -> LocalNode | None:
    """The first of the nodes whose log says it from now on; None once the job has ended."""
    read = {node.number: node.log.stat().st_size for node in nodes}
    deadline = time.monotonic() + DONE_S
    while time.monotonic() < deadline:
        for node in nodes:
            with node.log.open("rb") as log:
                log.seek(read[node.number])
                whole, _, _ = log.read().rpartition(b"\n")
            read[node.number] += len(whole) + 1 if whole else 0
            if any(said(line) == point for line in whole.split(b"\n")):
                return node
        now = net.job(job)
        if now is not None and ended(now):
            return None
        time.sleep(0.005)
    raise AssertionError(f"within {DONE_S} s nobody said {point!r}")


def said(line: bytes) -> object:
    try:
        return json.loads(line).get("event")
    except ValueError:  # not of our making
        return None


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_each_named_point_of_a_round_everyone_is_paid_once(net: LocalNet, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311  a schedule, not a secret
    nodes = start(net, 4)
    killed = Counter[str]()
    job = net.submit(spec(nodes=4, rounds=3 * ROUNDS, steps=20))
    while True:
        point = min(POINTS, key=lambda p: (killed[p], draw.random()))
        victim = next_to_say(net, job, point, nodes[1:])
        if victim is None:
            break
        net.kill(victim)
        killed[point] += 1
        time.sleep(draw.random())
        net.start_node(victim)
        net.wait_ready(victim)
    net.wait_ready()
    print(f"seed {seed}: killed after {dict(killed)}")
    assert killed.total() >= len(POINTS)
    assert_paid_once(net, job, 3 * ROUNDS * 30 * 10**18)
