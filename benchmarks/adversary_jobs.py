"""What each adversary loses, earns and destroys in jobs on a real local chain.

    python benchmarks/adversary_jobs.py [--only NAME] [--journal FILE] [--write]

One development chain. For each adversary a job of scored rounds with four honest members and three or more
honest evaluators, of the parts of real nodes (played_job.py), and the adversary (cheats.py). After each job
all money is counted: what was paid and refunded is the escrow, what was slashed was burned or is a
reporter's, and what everybody has more than before is what it earned. An honest node has lost if any of its
stake was taken, or if it earned less than its own work is worth by the scores of an honest evaluator.
--write records the results and the table of docs/attacks.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import comb
from pathlib import Path
from statistics import fmean

import cheats
import played_job
import structlog
import trio
from cheats import vnx
from played_job import Books, Chain, PlayedJob, Player

from dfl_ledger.devchain import dev_chain
from dfl_node.train.process import open_trainer
from dfl_node.train.trainer import Trainer

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "adversaries.json"
PAGE = ROOT / "docs" / "attacks.md"
BEGIN, END = "<!-- measured by benchmarks/adversary_jobs.py -->", "<!-- end of the adversaries -->"
COMMAND = "python benchmarks/adversary_jobs.py --write"
ROUNDS, HONEST_MEMBERS = 3, 4
Players = Callable[[], Sequence[Player]]


def _nobody() -> Sequence[Player]:
    return ()


@dataclass(frozen=True)
class Case:
    """An adversary: who it is among the members and the evaluators."""

    did: str
    members: Players = _nobody
    evaluators: Players = _nobody
    judges: int = played_job.EVALUATORS  # honest ones
    requester_stays: bool = True
    leak: bool = False  # somebody gives its update away
    open: str = ""  # why honest nodes lose


CASES: dict[str, Case] = {
    "nobody": Case("everybody is honest"),
    "copier of a commitment": Case(
        "commits another's commitment, shows what the other showed", lambda: [cheats.CommitmentCopier()]
    ),
    "copier of last round's piece": Case(
        "delivers a file that another showed a round ago", lambda: [cheats.LateCopier()]
    ),
    "copier, disguised": Case(
        "the same with noise of 5 %, so another file", lambda: [cheats.DisguisedCopier()]
    ),
    "copier of a leaked piece": Case(
        "has another's update before the commit, delivers it with noise of 5 %",
        lambda: [cheats.LeakCopier()],
        leak=True,
        open="the one that gave its update away shares its worth with the copy",
    ),
    "free rider, noise": Case("delivers noise", lambda: [cheats.NoiseRider()]),
    "free rider, stale model": Case(
        "trains once, on the first model, and delivers that each round with noise of 5 %",
        lambda: [cheats.StaleRider()],
    ),
    "label flipper": Case("honest work on rows that say 9 - y", lambda: [cheats.LabelFlipper()]),
    "equivocator": Case(
        "commits twice, shows another piece than it committed", lambda: [cheats.Equivocator()]
    ),
    "griefer": Case("commits and never reveals", lambda: [cheats.Griefer()]),
    "settler who pays himself": Case(
        "settles first, with another's reward on its own line", lambda: [cheats.SelfPayer()]
    ),
    "settler who hides it": Case(
        "the same in the last round, with evidence that nobody can fetch",
        lambda: [cheats.HiddenSelfPayer()],
        open="no line of a tree that nobody has can be shown to be wrong",
    ),
    "lazy evaluator": Case("says 0 of every piece", evaluators=lambda: [cheats.LazyJudge()]),
    "lazy evaluator, copying": Case(
        "commits another's commitment, shows what the other showed",
        evaluators=lambda: [cheats.CopyingJudge()],
    ),
    "colluding evaluators, 20 %": Case(
        "one of five equal stakes praises a member that delivers noise",
        lambda: [cheats.NoiseRider()],
        lambda: [cheats.Colluder()],
        judges=4,
    ),
    "colluding evaluators, 33 %": Case(
        "two of six equal stakes do so",
        lambda: [cheats.NoiseRider()],
        lambda: [cheats.Colluder(), cheats.Colluder()],
        judges=4,
    ),
    "requester who disappears": Case(
        "gives its validation rows to nobody, and sends nothing after the job's submission",
        requester_stays=False,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """Of a job; money in VNX."""

    did: str
    slashed: float  # of the adversary's stake
    forgone: float  # of an honest node's pay, in its role
    earned: float | None  # of an honest node's pay; None: there is no adversary among the nodes
    honest: int
    honest_lost: int
    honest_lost_vnx: float
    refused: dict[str, int]  # calls that the contracts refused, by the name of the error
    escrow: float
    paid: float
    refunded: float
    burned: float
    rounds: int
    voids: int
    open: str = field(default="")


async def play(case: Case, chain: Chain, trainer: Trainer, folder: Path, rounds: int = ROUNDS) -> Outcome:
    """A job, its books checked. Raises AssertionError if money was lost, or an honest node's was."""
    bad_members, bad_judges = tuple(case.members()), tuple(case.evaluators())
    honest = HONEST_MEMBERS + (not bad_members)
    members = [*(Player() for _ in range(honest)), *bad_members]
    members.sort(key=lambda member: not getattr(member, "first", False))
    judges = [*(Player() for _ in range(case.judges)), *bad_judges]
    job = PlayedJob(
        chain,
        trainer,
        folder,
        members,
        judges,
        rounds=rounds,
        requester_stays=case.requester_stays,
        copied=(members[0], bad_members[0]) if case.leak else None,
    )
    try:
        return _outcome(case, job, await job.play())
    finally:
        job.close()


def _outcome(case: Case, job: PlayedJob, books: Books) -> Outcome:
    books.check()
    bad = [money for money in books.players if not money.player.honest]
    good = [money for money in books.players if money.player.honest]
    lost = [money for money in good if money.slashed or money.earned < money.due]
    assert not lost or case.open, lost
    by_role = {
        role: fmean(books.of(player).earned for player in players if player.honest)
        for role, players in (("member", job.members), ("evaluator", job.evaluators))
    }
    usual = sum(by_role["member" if money.player in job.members else "evaluator"] for money in bad)
    earned = sum(money.earned for money in bad)
    refused: dict[str, int] = {}
    for money in bad:
        for error in money.player.refused:
            refused[error] = refused.get(error, 0) + 1
    return Outcome(
        did=case.did,
        slashed=vnx(sum(money.slashed for money in bad)),
        forgone=vnx(max(0, round(usual) - earned)),
        earned=round(earned / usual, 3) if bad else None,
        honest=len(good),
        honest_lost=len(lost),
        honest_lost_vnx=vnx(sum(money.due - money.earned + money.slashed for money in lost)),
        refused=refused,
        escrow=vnx(books.escrow),
        paid=vnx(books.paid),
        refunded=vnx(books.refunded),
        burned=vnx(books.burned),
        rounds=job.rounds,
        voids=job.voids,
        open=case.open,
    )


@contextmanager
def chain_at(folder: Path) -> Iterator[Chain]:
    """A development chain of our own, which no node of this user finds."""
    before = os.environ.get("DFL_HOME")
    os.environ["DFL_HOME"] = str(folder / "home")
    try:
        with dev_chain(folder / "chain") as dev:
            chain = Chain(dev)
            try:
                yield chain
            finally:
                chain.close()
    finally:
        if before is None:
            del os.environ["DFL_HOME"]
        else:
            os.environ["DFL_HOME"] = before


def _kept(journal: Path | None) -> dict[str, Outcome]:
    """What a journal has of jobs that were played before."""
    if journal is None or not journal.exists():
        return {}
    lines = journal.read_text(encoding="utf-8").splitlines()
    return {name: Outcome(**found) for name, found in map(json.loads, lines)}


async def run(names: Sequence[str], journal: Path | None = None) -> dict[str, Outcome]:
    """One job after another, on one chain. Raises AssertionError for the first whose books are wrong.

    Jobs that `journal` has are not played again.
    """
    known = _kept(journal)
    found = {name: known[name] for name in names if name in known}
    with tempfile.TemporaryDirectory() as folder, chain_at(Path(folder)) as chain:
        async with open_trainer(threads=1) as trainer:
            for number, name in enumerate(names):
                if name in found:
                    continue
                began = time.monotonic()
                found[name] = await play(CASES[name], chain, trainer, Path(folder) / f"job-{number}")
                print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
                if journal is not None:
                    with journal.open("a", encoding="utf-8") as file:
                        file.write(json.dumps([name, asdict(found[name])]) + "\n")
    return {name: found[name] for name in names}


# -- the record -------------------------------------------------------------------------------------------
def captured(share: float, seats: int) -> float:
    """How likely most of `seats` drawn from very many equal stakes are of this share of them."""
    least = seats // 2 + 1
    return sum(comb(seats, k) * share**k * (1 - share) ** (seats - k) for k in range(least, seats + 1))


def table(results: dict[str, Outcome]) -> str:
    lines = [
        "| adversary | what it did | lost (VNX) | earned, of an honest member's | honest nodes that lost |",
        "|---|---|---|---|---|",
    ]
    for name, found in results.items():
        lost, share = "", ""
        if found.earned is not None:
            lost = f"{found.slashed:g} of stake, {found.forgone:.1f} not earned"
            share = f"{found.earned:.0%}"
        elif name == "requester who disappears":
            lost = f"the {found.paid:.1f} that the job paid"
        hurt = f"{found.honest_lost} of {found.honest}"
        if found.honest_lost:
            hurt = f"**{hurt}**, {found.honest_lost_vnx:.1f} VNX"
        lines.append(f"| {name} | {found.did} | {lost or '–'} | {share or '–'} | {hurt} |")
    return "\n".join(lines)


def shown(results: dict[str, Outcome]) -> str:
    """What stands on the page: the table, and what is not in it yet."""
    missing = [name for name in CASES if name not in results]
    return table(results) + (f"\n\nNot recorded yet: {'; '.join(missing)}." if missing else "")


def write(played: dict[str, Outcome]) -> None:
    """Into the record, beside what it has of others, and onto the page."""
    known = (recorded() if RESULTS.exists() else {}) | played
    results = {name: known[name] for name in CASES if name in known}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    document = {
        "command": COMMAND,
        "machine": machine,
        "rounds": ROUNDS,
        "round_budget_vnx": played_job.BUDGET,
        "bond_vnx": played_job.BOND,
        "stake_vnx": vnx(played_job.STAKE_WEI),
        "adversaries": {name: asdict(found) for name, found in results.items()},
    }
    RESULTS.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{shown(results)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def recorded() -> dict[str, Outcome]:
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {name: Outcome(**found) for name, found in document["adversaries"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", action="append", choices=list(CASES), help="may be given several times")
    parser.add_argument("--journal", type=Path, help="keeps finished jobs, to go on from there another time")
    parser.add_argument("--write", action="store_true", help="record the results, and the page's table")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    results = trio.run(run, options.only or list(CASES), options.journal)
    print(table(results))
    if options.write:
        write(results)


if __name__ == "__main__":
    main()
