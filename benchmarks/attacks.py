"""What attackers can destroy and earn, with the node's own aggregators, scoring, standing and audits.

    python benchmarks/attacks.py [--quick] [--processes 2] [--journal FILE] [--write]

Jobs of twenty virtual members on the digits: {0, 20, 40} % attackers x nine attacks x {mean, trimmed mean,
trimmed mean with nearest-neighbour mixing (NNM), that with audits}, IID and Dirichlet(0.5), three seeds.
`--write` records benchmarks/results/attacks.json and puts the tables into docs/attacks.md; `--quick` runs a
few of the jobs. An audit is the trainer's local steps done again, so that the same run counts false bans.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # its two other files, wherever it is started from

import adversaries
import torch
from virtual_job import AUDITS, MEMBERS, ROUNDS, Job, Outcome, Setting

REPO = Path(__file__).parents[1]
RESULTS = REPO / "benchmarks" / "results" / "attacks.json"
PAGE = REPO / "docs" / "attacks.md"
BEGIN, END = "<!-- measured by benchmarks/attacks.py -->", "<!-- end of what was measured -->"
NONE = "none"
SEEDS = (1, 2, 3)
FRACTIONS = (0.2, 0.4)
DATA: dict[str, float | None] = {"IID": None, "Dirichlet 0.5": 0.5}
TARGET_POINTS = {0.2: 1.0, 0.4: 2.0}  # that the worst case may be below clean, with audits
TARGET_EARNED = 0.01  # of an honest member's pay


@dataclass(frozen=True)
class Defence:
    name: str
    aggregator: str
    mixing: bool
    audits: bool


DEFENCES = (
    Defence("mean", "mean", False, False),
    Defence("trimmed mean", "trimmed-mean", False, False),
    Defence("NNM + trimmed mean", "trimmed-mean", True, False),
    Defence("NNM + trimmed mean, audits", "trimmed-mean", True, True),
)
BEST = DEFENCES[-1]


@dataclass(frozen=True)
class Cell:
    """A square of the grid: three jobs, one a seed."""

    data: str
    fraction: float
    attack: str
    defence: Defence

    def setting(self, seed: int) -> Setting:
        return Setting(
            attack=adversaries.LABEL_FLIP if self.attack == NONE else self.attack,
            attackers=round(self.fraction * MEMBERS),
            aggregator=self.defence.aggregator,
            mixing=self.defence.mixing,
            audits=self.defence.audits,
            alpha=DATA[self.data],
            seed=seed,
        )


Results = dict[Cell, list[Outcome]]


def grid(
    data: Iterable[str] = tuple(DATA),
    fractions: Iterable[float] = FRACTIONS,
    attacks: Iterable[str] = tuple(adversaries.ATTACKS),
    defences: Sequence[Defence] = DEFENCES,
) -> list[Cell]:
    cells = []
    for name in data:
        cells += [Cell(name, 0.0, NONE, defence) for defence in defences]
        cells += [Cell(name, f, attack, own) for f in fractions for attack in attacks for own in defences]
    return cells


QUICK = grid(("Dirichlet 0.5",), (0.4,), (adversaries.LABEL_FLIP, "inner product 3"), (DEFENCES[0], BEST))
QUICK_ROUNDS = 16


def run(
    cells: Sequence[Cell],
    seeds: Sequence[int] = SEEDS,
    *,
    rounds: int = ROUNDS,
    processes: int = 1,
    journal: Path | None = None,
) -> Results:
    """Every job of these cells. Each is a process's own, on one thread: the same numbers however many run.
    What the journal holds already is not done again."""
    known = _read_journal(journal)
    jobs = [(cell, seed, rounds) for seed in seeds for cell in cells]
    todo = [job for job in jobs if _key(job) not in known]
    with get_context("spawn").Pool(processes, _begin) as pool:
        for done, (job, outcome) in enumerate(zip(todo, pool.imap(_job, todo), strict=True), 1):
            known[_key(job)] = outcome
            if journal is not None:
                with journal.open("a") as file:
                    file.write(json.dumps([_key(job), asdict(outcome)]) + "\n")
            print(f"\r{done}/{len(todo)} jobs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {cell: [known[_key((cell, seed, rounds))] for seed in seeds] for cell in cells}


def _key(job: tuple[Cell, int, int]) -> str:
    cell, seed, rounds = job
    return f"{cell.setting(seed)} {rounds} {cell.attack}"


def _read_journal(journal: Path | None) -> dict[str, Outcome]:
    if journal is None or not journal.exists():
        return {}
    lines = (json.loads(line) for line in journal.read_text().splitlines())
    return {key: Outcome(**outcome) for key, outcome in lines}


def _begin() -> None:
    torch.set_num_threads(1)


def _job(todo: tuple[Cell, int, int]) -> Outcome:
    cell, seed, rounds = todo
    return Job(cell.setting(seed)).run(rounds)


# -- what it comes to ---------------------------------------------------------------------------------
def accuracy(results: Results, cell: Cell) -> float:
    """Mean over the seeds."""
    return fmean(outcome.accuracy for outcome in results[cell])


def worst(results: Results, data: str, fraction: float, defence: Defence) -> tuple[float, str]:
    """The lowest accuracy under any attack, and which."""
    attacked = [c for c in results if (c.data, c.fraction, c.defence) == (data, fraction, defence)]
    return min((accuracy(results, cell), cell.attack) for cell in attacked)


def summary(results: Results) -> dict[str, Any]:
    """The figures that are aimed at, for the best defence."""
    audits = [o for cell, found in results.items() if cell.defence.audits for o in found]
    found: dict[str, Any] = {
        "honest_audits": sum(o.honest_audits for o in audits),
        "false_bans": sum(o.false_bans for o in audits),
        "furthest_honest_distance": max((o.furthest for o in audits), default=0.0),
        "worst": [],
    }
    for data in dict.fromkeys(cell.data for cell in results):
        clean = accuracy(results, Cell(data, 0.0, NONE, BEST))
        for fraction in FRACTIONS:
            own = [c for c in results if (c.data, c.fraction, c.defence) == (data, fraction, BEST)]
            if not own:
                continue
            lowest, attack = worst(results, data, fraction, BEST)
            earned = {c.attack: fmean(o.net for o in results[c]) for c in own}
            best_paid = max(earned, key=lambda name: earned[name])
            found["worst"].append(
                {
                    "data": data,
                    "fraction": fraction,
                    "clean": clean,
                    "worst": lowest,
                    "attack": attack,
                    "points_lost": 100 * (clean - lowest),
                    "target_points": TARGET_POINTS[fraction],
                    "most_earned": earned[best_paid],
                    "by": best_paid,
                    "target_earned": TARGET_EARNED,
                }
            )
    return found


def tables(results: Results) -> str:
    return "\n\n".join((_worst_table(results), _attack_table(results), _audit_words(results)))


def _worst_table(results: Results) -> str:
    """Data and fraction by defence: clean, then the worst case and its attack."""
    lines = [
        f"| rows | attackers | {' | '.join(d.name for d in DEFENCES)} |",
        "|---" * (2 + len(DEFENCES)) + "|",
    ]
    for data in DATA:
        clean = (f"{100 * accuracy(results, Cell(data, 0.0, NONE, defence)):.1f}" for defence in DEFENCES)
        lines.append(f"| {data} | none | {' | '.join(clean)} |")
        for fraction in FRACTIONS:
            found = (worst(results, data, fraction, defence) for defence in DEFENCES)
            cells = (f"{100 * low:.1f} ({attack})" for low, attack in found)
            lines.append(f"| {data} | {fraction:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _attack_table(results: Results) -> str:
    """The best defence, attack by attack: accuracy, and what an attacker is left with."""
    columns = [(data, fraction) for data in DATA for fraction in FRACTIONS]
    head = " | ".join(f"{data}, {fraction:.0%}" for data, fraction in columns)
    lines = [
        f"| {BEST.name} | {head} | withheld | paid |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for attack in adversaries.ATTACKS:
        own = [Cell(data, fraction, attack, BEST) for data, fraction in columns]
        outcomes = [outcome for cell in own for outcome in results[cell]]
        gross = fmean(o.gross for o in outcomes)
        net = max(fmean(o.net for o in results[cell]) for cell in own)
        cells = " | ".join(f"{100 * accuracy(results, cell):.1f}" for cell in own)
        lines.append(f"| {attack} | {cells} | {100 * gross:.1f} % | {100 * net:.1f} % |")
    return "\n".join(lines)


def _audit_words(results: Results) -> str:
    found = summary(results)
    furthest = f"{found['furthest_honest_distance']:.1e} of its length"
    return (
        f"{found['honest_audits']:,} audits of honest members, {found['false_bans']} false bans; "
        f"the furthest honest update was {furthest} from what its audit gave."
    )


def write(results: Results, seconds: float) -> None:
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    cells = [
        {
            "data": cell.data,
            "fraction": cell.fraction,
            "attack": cell.attack,
            "defence": cell.defence.name,
            "seeds": [_rounded(asdict(outcome)) for outcome in found],
        }
        for cell, found in results.items()
    ]
    document = {
        "command": "python benchmarks/attacks.py --write",
        "machine": machine | {"torch": torch.__version__, "seconds": round(seconds)},
        "members": MEMBERS,
        "rounds": ROUNDS,
        "audits_a_round": AUDITS,
        "summary": summary(results),
    }
    text = json.dumps(document, indent=2)[:-2] + ',\n  "cells": [\n    '
    RESULTS.write_text(text + ",\n    ".join(map(json.dumps, cells)) + "\n  ]\n}\n")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(results)}\n{END}{rest.split(END)[1]}")


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a few jobs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--journal", type=Path, help="keeps finished jobs, to go on from there another time")
    parser.add_argument("--write", action="store_true", help="record the results and the page's tables")
    options = parser.parse_args()
    began = time.monotonic()
    if options.quick:
        results = run(QUICK, SEEDS[:1], rounds=QUICK_ROUNDS, processes=options.processes)
        for cell, found in results.items():
            print(f"{cell.data}, {cell.fraction:.0%}, {cell.attack}, {cell.defence.name}: {found[0]}")
        return
    results = run(grid(), processes=options.processes, journal=options.journal)
    print(tables(results))
    print(json.dumps(summary(results), indent=2))
    if options.write:
        write(results, time.monotonic() - began)


if __name__ == "__main__":
    main()
