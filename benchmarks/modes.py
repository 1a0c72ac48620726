"""The four modes side by side: accuracy, seconds, bytes, and what a death costs.

    python benchmarks/modes.py [--modes sync async pipeline chained] [--runs 1] [--write]

Each mode is `dfl-node demo --mode MODE`, once undisturbed and once with `--kill-one`: real nodes, chain and
storage on this machine. `--write` records benchmarks/results/modes.json and puts the table into
docs/modes.md. Seconds are those of the job's rounds, added up; bytes those that the nodes sent each other.
What a death costs is the difference in seconds between the two runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
RESULTS = REPO / "benchmarks" / "results" / "modes.json"
PAGE = REPO / "docs" / "modes.md"
BEGIN, END = "<!-- measured by benchmarks/modes.py -->", "<!-- end of what was measured -->"
MODES = ("sync", "async", "pipeline", "chained")


def demo(mode: str, *, kill: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--mode", mode, "--datadir", f"{folder}/demo", "--json", *(["--kill-one"] if kill else [])]
        done = subprocess.run(
            [sys.executable, "-m", "dfl_node", "demo", *options], capture_output=True, check=False
        )
        answer = json.loads(done.stdout)
    if answer["status"] != "ok":
        raise SystemExit(f"{mode}: {answer['data']['error']}")
    data: dict[str, Any] = answer["data"]
    return {
        "accuracy": data["accuracy"],
        "central_accuracy": data["central_accuracy"],
        "nodes": len(data["nodes"]),
        "rounds": len(data["rounds"]),
        "contributions": data["contributions"],
        "job_s": round(sum(r["duration_s"] for r in data["rounds"]), 1),
        "mb_sent": round(sum(r["bytes_sent"] for r in data["rounds"]) / 1e6, 1),
        "whole_demo_s": data["seconds"],
        "recovered": data["recovered"],
    }


def measure(mode: str, runs: int) -> dict[str, Any]:
    """The median run by seconds, of each kind."""

    def median(kill: bool) -> dict[str, Any]:
        found = sorted((demo(mode, kill=kill) for _ in range(runs)), key=lambda run: float(run["job_s"]))
        return found[len(found) // 2]

    calm, killed = median(False), median(True)
    return {
        "undisturbed": calm,
        "kill_one": killed,
        "a_death_costs_s": round(killed["job_s"] - calm["job_s"], 1),
        "went_on_after_s": statistics.median([r["seconds"] for r in killed["recovered"]] or [0.0]),
    }


def table(results: dict[str, Any]) -> str:
    head = (
        "| mode | accuracy | same model, trained centrally | seconds | MB sent | accuracy after a death "
        "| seconds more | work went on after |\n|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for mode, found in results.items():
        calm, killed = found["undisturbed"], found["kill_one"]
        lines.append(
            f"| {mode} | {calm['accuracy']:.3f} | {calm['central_accuracy']:.3f} | {calm['job_s']:.1f} "
            f"| {calm['mb_sent']:.1f} | {killed['accuracy']:.3f} | {found['a_death_costs_s']:+.1f} "
            f"| {found['went_on_after_s']:.1f} s |"
        )
    return head + "\n".join(lines)


def write(results: dict[str, Any], command: str) -> None:
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    RESULTS.write_text(
        json.dumps({"command": command, "machine": machine, "modes": results}, indent=2) + "\n"
    )
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="record the results and the page's table")
    options = parser.parse_args()
    results = {mode: measure(mode, options.runs) for mode in options.modes}
    print(table(results))
    if options.write:
        write(results, f"python benchmarks/modes.py --runs {options.runs} --write")


if __name__ == "__main__":
    main()
