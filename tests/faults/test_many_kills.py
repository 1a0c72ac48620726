"""Minutes: nodes of a real network are killed and restarted again and again, as a seed draws it."""

from __future__ import annotations

import random
import time

import pytest

from dfl_node.localnet import LocalNet

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
