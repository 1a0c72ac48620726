"""Mutation testing of the contracts: slither-mutate's operators, a seeded sample of mutants, forge's verdict.

slither-mutate itself edits the sources in place, one mutant at a time, and takes all of them: thousands. Here
each worker has a copy of the project, and the sample keeps it to minutes. A mutant that does not compile does
not count; one that runs into the timeout is killed, for the tests would hang on it.

Runs in the environment that has slither, with contracts/analysis/bin first in PATH (`make mutate`).
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from queue import SimpleQueue

from slither import Slither
from slither.tools.mutator.mutators import all_mutators
from slither.tools.mutator.mutators.abstract_mutator import AbstractMutator

REPO = Path(__file__).resolve().parents[2]
# Left out: FHR, which changes a function's visibility or purity, and MVIE and MVIV, which drop an initial
# zero: the compiler refuses those or makes the same code of them. MWA works on `require`: there is none.
OPERATORS = ("RR", "CR", "ROR", "MIA", "AOR", "ASOR", "LOR", "UOR", "BOR", "LIR", "SBR")
# Mutants that no test can tell from the original: an unsigned number is never below zero; the counter of a
# loop, or a constant that fits, has the same value in a narrower type.
EQUIVALENT = (
    ("ROR", re.compile(r"== 0$"), re.compile(r"<= 0$")),
    ("ROR", re.compile(r"!= 0$"), re.compile(r"> 0$")),
    ("SBR", re.compile(r"^for \(uint|^uint\d+ (public|internal|private) constant"), re.compile(r"uint\d+")),
)
TIMEOUT_S = 240.0
SEED = 0xDF1


class Fate(Enum):
    KILLED = "killed"
    SURVIVED = "SURVIVED"
    INVALID = "does not compile"


@dataclass(frozen=True, order=True)
class Mutant:
    """A piece of a source file, by bytes, and what stands there instead."""

    file: str  # relative to the project
    start: int
    end: int
    text: str
    operator: str
    line: int

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def told(self, source: bytes) -> str:
        old = " ".join(source[self.start : self.end].decode().split())
        return f"{self.file}:{self.line} [{self.operator}] {old[:80]} ==> {' '.join(self.text.split())[:80]}"


def copy_project(to: Path) -> None:
    """What forge needs of this project; packages are linked, but for those that are compiled."""
    for name in ("foundry.toml", "package.json"):
        shutil.copy2(REPO / name, to / name)
    shutil.copytree(REPO / "contracts", to / "contracts")
    packages = to / "node_modules"
    packages.mkdir()
    shutil.copytree(REPO / "node_modules/@openzeppelin", packages / "@openzeppelin")
    for name in ("@foundry-rs", "solc"):
        (packages / name).symlink_to(REPO / "node_modules" / name)


def is_equivalent(operator: str, old: str, new: str) -> bool:
    return any(operator == of and was.search(old) and now.search(new) for of, was, now in EQUIVALENT)


def mutants_of(project: Path) -> Iterator[Mutant]:
    """Every mutant of every contract and library, each once."""
    operators = [
        item
        for item in vars(all_mutators).values()
        if inspect.isclass(item) and issubclass(item, AbstractMutator) and item.NAME in OPERATORS
    ]
    for unit in Slither(str(project)).compilation_units:
        for contract in unit.contracts:
            path = Path(contract.source_mapping.filename.absolute).relative_to(project)
            if contract.is_interface or path.parts[0] != "contracts":
                continue
            for operator in operators:
                maker = operator(unit, 0, "", None, contract, None, False, project, [])
                try:
                    made = maker._mutate().get("patches", {})
                except IndexError as error:  # a relational operator inside assembly
                    print(f"{operator.NAME} passes over {contract.name}: {error}")
                    continue
                for patches in made.values():
                    for patch in patches:
                        old, new = patch["old_string"], patch["new_string"]
                        if is_equivalent(operator.NAME, old, new):
                            continue
                        place = patch["start"], patch["end"]
                        yield Mutant(str(path), *place, new, operator.NAME, patch["line_number"])


def forge_test(project: Path, timeout_s: float) -> tuple[int, str]:
    """Exit code and output of the tests, stopped at the first that fails."""
    # Without the ten thousand vectors of the twins: half a minute a mutant.
    command = ["forge", "test", "--fail-fast", "--threads", "1", "--no-match-contract", "VectorsTest"]
    env = {**os.environ, "FOUNDRY_PROFILE": "mutate"}
    # A group of its own: forge's compiler must end with it, or its end of the pipe would keep us waiting.
    with subprocess.Popen(
        command,
        cwd=project,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as forge:
        try:
            output, _ = forge.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(forge.pid, signal.SIGKILL)
            raise
    return forge.returncode, output


def judge(mutant: Mutant, project: Path) -> Fate:
    path = project / mutant.file
    original = path.read_bytes()
    path.write_bytes(mutant.applied(original))
    try:
        code, output = forge_test(project, TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Fate.KILLED
    finally:
        path.write_bytes(original)
    if code == 0:
        return Fate.SURVIVED
    return Fate.INVALID if "Compiler run failed" in output else Fate.KILLED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sample", type=int, default=240, help="mutants to try, 0 for all")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", default="", help="part of the path of the files to mutate")
    parser.add_argument("--least", type=float, default=90.0, help="percent that must be killed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="dfl-mutate-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        first = Path(folder).resolve() / "0"
        first.mkdir()
        copy_project(first)
        code, output = forge_test(first, 20 * TIMEOUT_S)
        if code != 0:
            print(
                f"{output[-4000:]}\nThe tests fail without any mutation. Run: make test-contracts",
                file=sys.stderr,
            )
            return 1
        with contextlib.chdir(first):
            mutants = sorted({mutant for mutant in mutants_of(first) if args.only in mutant.file})
        if args.sample and args.sample < len(mutants):
            # Seeded, so that a survivor is found again.
            chosen = random.Random(args.seed).sample(mutants, args.sample)  # noqa: S311
        else:
            chosen = mutants
        print(f"{len(chosen)} of {len(mutants)} mutants", flush=True)
        for number in range(args.workers):
            copy = first.with_name(str(number))
            if number:
                shutil.copytree(first, copy, symlinks=True)
            copies.put(copy)

        def tried(mutant: Mutant) -> Fate:
            project = copies.get()
            try:
                fate = judge(mutant, project)
            finally:
                copies.put(project)
            if fate is Fate.SURVIVED:
                print(f"{fate.value}: {mutant.told((REPO / mutant.file).read_bytes())}", flush=True)
            return fate

        with ThreadPoolExecutor(args.workers) as pool:
            # In the order of files: forge compiles anew whatever changed since its last run.
            fates = list(pool.map(tried, sorted(chosen)))

    counted = Counter(fates)
    per_file = Counter((mutant.file, fate) for mutant, fate in zip(sorted(chosen), fates, strict=True))
    for file in sorted({mutant.file for mutant in chosen}):
        killed, survived = per_file[file, Fate.KILLED], per_file[file, Fate.SURVIVED]
        print(f"{file:44} {killed:4} of {killed + survived:4} killed")
    total = counted[Fate.KILLED] + counted[Fate.SURVIVED]
    if total == 0:
        print("No mutant compiled", file=sys.stderr)
        return 1
    percent = 100 * counted[Fate.KILLED] / total
    invalid = f"{counted[Fate.INVALID]} did not compile"
    print(f"{counted[Fate.KILLED]} of {total} mutants killed: {percent:.1f} % ({invalid})")
    if percent < args.least:
        print(f"Fewer than {args.least:g} %: write the tests that see the survivors above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
