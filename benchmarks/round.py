"""What a round costs beyond training: seconds, CPU-seconds and bytes, on real processes, chain and storage.

    python benchmarks/round.py [--nodes 2 4 8] [--rounds 5] [--out benchmarks/results/round.json]

Every node is a `dfl-node start` process; the chain is anvil; updates are fetched through the nodes' stores.
A round's overhead is its duration (as its nodes lived it) less the longest training loop in it. Bytes are
those of the loopback interface, chain RPC and TCP headers included; CPU-seconds are those of all nodes,
trainers and the chain, training included. The first round warms up (imports, connections)
and is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dfl_node import logs
from dfl_node.localnet import LocalNet

SPEC = """
name = "round benchmark"
app = "digits"
[model]
name = "cnn"
args = {{ {model_args} }}
[training]
rounds = {rounds}
local_steps = {steps}
batch_size = 32
lr = 0.02
[round]
min_nodes = {nodes}
quorum = {nodes}
open_s = 120
commit_s = 120
reveal_s = 60
aggregate_s = 120
settle_s = 120
challenge_s = 1
[reward]
round_budget = "1"
valuation = "leave-one-out"
"""
MODEL_ARGS = "hidden = 1000"  # 1,194,546 parameters
TICK = os.sysconf("SC_CLK_TCK")


def loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    raise SystemExit("this machine has no loopback interface")


def cpu_s(pids: list[int]) -> float:
    """User and system seconds of the processes and all they have started."""
    total, todo = 0, list(pids)
    while todo:
        pid = todo.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            children = [
                int(child)
                for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
        todo += children
    return total / TICK


def measure(nodes: int, rounds: int, steps: int, root: Path) -> dict[str, Any]:
    """Run one job and give its figures per round."""
    with LocalNet(root) as net:
        net.wait_ready(net.add_node("--shard", f"1/{nodes}"))
        for number in range(2, nodes + 1):
            net.add_node("--shard", f"{number}/{nodes}")
        net.wait_ready()
        job = net.submit(SPEC.format(model_args=MODEL_ARGS, rounds=rounds + 1, steps=steps, nodes=nodes))
        pids = [n.process.pid for n in net.nodes if n.process is not None] + [net.chain.pid]
        net.watch(job, lambda j: j["completed"] >= 1, timeout_s=180)
        began = time.monotonic(), loopback_bytes(), cpu_s(pids)
        final = net.watch(job, lambda j: j["completed"] >= rounds + 1, timeout_s=600)
        ended = time.monotonic(), loopback_bytes(), cpu_s(pids)
        time.sleep(1.0)  # the last round's bookkeeping
        stats = net.round_stats(job)
    rows = []
    for number, lived in sorted(stats.items())[1:]:
        done = [s for s in lived if s.closed_at is not None and s.train_s is not None]
        duration = statistics.median([s.closed_at - s.opened_at for s in done if s.closed_at is not None])
        trained = [s.train_s for s in done if s.train_s is not None]
        rows.append(
            {
                "round": number,
                "duration_s": round(duration, 3),
                "longest_train_s": round(max(trained), 3),
                "overhead_s": round(duration - max(trained), 3),
                "node_bytes_sent": sum(s.bytes_sent or 0 for s in done),
            }
        )
    per_round = len(rows)
    return {
        "nodes": nodes,
        "rounds": per_round,
        "phase": final["phase"],
        "overhead_s": round(statistics.median(r["overhead_s"] for r in rows), 3),
        "round_s": round((ended[0] - began[0]) / per_round, 3),
        "cpu_s": round((ended[2] - began[2]) / per_round, 2),
        "loopback_mb": round((ended[1] - began[1]) / per_round / 1e6, 2),
        "detail": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logs.configure("console", "warning")
    results = []
    for nodes in options.nodes:
        with tempfile.TemporaryDirectory(prefix="dfl-round-") as root:
            results.append(measure(nodes, options.rounds, options.steps, Path(root) / "net"))
        shown = {k: v for k, v in results[-1].items() if k != "detail"}
        print(json.dumps(shown), flush=True)
    if options.out:
        report = {
            "command": "python benchmarks/round.py " + " ".join(sys.argv[1:]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "model": f"cnn({MODEL_ARGS})",
            "results": results,
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
