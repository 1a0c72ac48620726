"""What an evaluator earns by honesty and by everything else.

    python benchmarks/evaluators.py [--write]      simulate, from recorded scores: seconds
    python benchmarks/evaluators.py --measure      record those scores anew: minutes

`--measure` trains digits in two jobs (6 members with a CNN, whose worths are exact; 10 with an MLP, whose
worths are estimated) and scores three rounds, each on a shard of 50 rows, as different machines do: one and
two threads, and processors without AVX-512 and without AVX. Each a second time with a planted contribution:
an honest step of the requester's, turned round, three times as long, of a tenth of the others' samples. It
also scores with two shortcuts: leave-one-out, and a fifth of the rows. results/scores.json has it all.

The simulation draws panels, gives every seat a strategy and the scores of a machine, lets
`dfl_node.value.honesty` judge, and pays: each seat that revealed its share of the pot, less a bond for an
offence. `--write` records results/evaluators.json and puts the table into docs/valuation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dfl_node.value import honesty, scoring, shapley, valuation
from dfl_node.value.honesty import Known, Offence, Seat

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "valuation.md"
BEGIN, END = "<!-- measured by benchmarks/evaluators.py -->", "<!-- end of what was measured -->"
SCORES, RESULTS = HERE / "results" / "scores.json", HERE / "results" / "evaluators.json"
MACHINES: dict[str, dict[str, str]] = {
    "one thread": {"DFL_BENCH_THREADS": "1"},
    "two threads": {"DFL_BENCH_THREADS": "2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
SHORTCUTS = ("leave-one-out", "a fifth of the rows")
ROUNDS, LOOKED_AT = 10, {"cnn": (3,), "mlp": (3, 7)}
SEED = 12345

# -- the money: a seat's pay is 1 ---------------------------------------------------------------------
PAY, BOND = 1.0, 2.0  # TrainingJobs: all bonds are worth twice the pot at least
WORK = 0.1  # what fetching and scoring cost; who does not work saves it
PLANTED = 0.25  # of rounds that have a planted contribution
EVALUATORS, SEATS = 21, 16  # a third of 21 never has half of 16 seats
SIMULATED = 1000


# -- scores: measured ---------------------------------------------------------------------------------
def make(folder: Path) -> list[dict[str, Any]]:
    """Train, and keep what evaluators fetch; a task a round and kind."""
    import numpy as np
    import torch

    from dfl_node.train import aggregation, evaluation, local_sgd, models, network, rows, tensors
    from dfl_node.train.application import load_application
    from dfl_node.train.evaluation import inputs_of
    from dfl_node.train.trainer import ModelConfig, TrainingConfig
    from dfl_node.value import shards

    torch.set_num_threads(1)
    app, config = load_application("digits"), TrainingConfig(10, 32, 0.002, 0.9, "adamw", 1, 1 << 28)
    validation = app.validation()
    parts = shards.places(validation.y.tolist(), ROUNDS, SEED)
    tasks: list[dict[str, Any]] = []

    def keep(name: str, data: bytes) -> str:
        (folder / name).write_bytes(data)
        return name

    for model, members in ((ModelConfig("cnn", {}), 6), (ModelConfig("mlp", {"hidden": 32}), 10)):
        kind, schema = models.kind(model), models.schema(model)
        data = [inputs_of(app.load(None, (i, i, members), None), kind) for i in range(1, members + 1)]
        net = network.start(model, None)
        parent = {name: tensor.copy() for name, tensor in evaluation.get_state(net).items()}
        for round_ in range(1, ROUNDS + 1):
            updates = []
            for member, inputs in enumerate(data):
                evaluation.set_state(net, parent)
                seed = local_sgd.seed_words(1, round_, member, 1)
                local_sgd.train(net, inputs, config, steps=10, seed=seed, progress=lambda *_: None)
                trained = evaluation.get_state(net)
                updates.append({name: parent[name] - trained[name] for name in parent})
            if round_ in LOOKED_AT[model.name]:
                tag, part = f"{model.name}-{round_}", parts[round_ - 1]
                names = [keep(f"{tag}-{i}", tensors.encode(u, schema)) for i, u in enumerate(updates)]
                turned = {name: np.float32(-3) * tensor for name, tensor in updates[0].items()}
                task = {
                    "job": model.name,
                    "round": round_,
                    "model": asdict(model),
                    "parent": keep(f"{tag}-parent", tensors.encode(parent, schema)),
                    "rows": keep(f"{tag}-rows", rows.write_npz(validation.take(np.array(part)))),
                    "few": keep(f"{tag}-few", rows.write_npz(validation.take(np.array(part[::5])))),
                }
                tasks.append({**task, "updates": names, "samples": [320] * members})
                planted = [*names[1:], keep(f"{tag}-planted", tensors.encode(turned, schema))]
                tasks.append({**task, "updates": planted, "samples": [320] * (members - 1) + [32]})
            parent = aggregation.coalition(parent, [(update, 1.0) for update in updates])
    return tasks


def score(folder: Path, tasks: Sequence[Mapping[str, Any]], *, shortcuts: bool) -> list[dict[str, Any]]:
    """What this machine makes of them, in a process of its own that has the machine's environment."""
    from dfl_node.train.frames import Frame
    from dfl_node.train.operations import Operations
    from dfl_node.train.trainer import PLAIN

    operations = Operations(int(os.environ.get("DFL_BENCH_THREADS", "1")), lambda _: None)
    found = []
    for task in tasks:

        def worths(rows: str, method: str, task: Mapping[str, Any] = task) -> tuple[tuple[int, ...], int]:
            files = [(folder / name).read_bytes() for name in (task["parent"], task[rows], *task["updates"])]
            header = {"model": task["model"], "rule": asdict(PLAIN), "samples": task["samples"]}
            header |= {"staleness": [0] * len(task["samples"]), "max_update_bytes": 1 << 28, "session": 1}
            opened = operations.score_open(Frame(header, tuple(files)))
            before, n = shapley.fixed(opened.header["loss"]), len(task["updates"])
            known: dict[int, int] = {}

            def value(coalition: int) -> int:
                answer = operations.score_value(Frame({"session": 1, "coalition": coalition}))
                known[coalition] = before - shapley.fixed(answer.header["loss"])
                return known[coalition]

            accepted, alike = opened.header["accepted"], opened.header["alike"]
            asking = scoring.score(accepted, alike, [frozenset()] * n, method, SEED)
            result = valuation.drive(asking, value)
            return result.worths, known.get(1 << (n - 1), 0)

        whole, alone = worths("rows", "shapley")
        found.append({"shapley": whole, "alone": alone})
        if shortcuts:
            found[-1] |= {SHORTCUTS[0]: worths("rows", "leave-one-out")[0]}
            found[-1] |= {SHORTCUTS[1]: worths("few", "shapley")[0]}
    return found


def measure() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = make(folder)
        (folder / "tasks.json").write_text(json.dumps(tasks))
        by_machine = {}
        for number, (machine, environment) in enumerate(MACHINES.items()):
            command = [sys.executable, __file__, "--score-in", name, *(["--shortcuts"] if not number else [])]
            done = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, check=True, text=True
            )
            by_machine[machine] = json.loads(done.stdout)
            print(f"scored as {machine}", flush=True)
    first = next(iter(by_machine))
    rounds = [
        {
            "job": task["job"],
            "round": task["round"],
            "planted": len(set(task["samples"])) > 1,
            "alone": by_machine[first][i]["alone"],  # what the last update is worth by itself
            "honest": {machine: found[i]["shapley"] for machine, found in by_machine.items()},
            "shortcuts": {name: by_machine[first][i][name] for name in SHORTCUTS},
        }
        for i, task in enumerate(tasks)
    ]
    lines = ",\n".join(json.dumps(entry) for entry in rounds)
    SCORES.write_text(
        f'{{"command": "python benchmarks/evaluators.py --measure", "rounds": [\n{lines}\n]}}\n'
    )


# -- the simulation -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Round:
    """A scored round. `planted` is what the requester knows of its own contribution, if there is one."""

    honest: tuple[tuple[int, ...], ...]  # by machine
    shortcuts: Mapping[str, tuple[int, ...]]
    planted: tuple[Known, ...]


@dataclass(frozen=True)
class Look:
    """What a strategy may use: what honest work would give, the round before, chance, its panel."""

    honest: tuple[int, ...]
    now: Round
    before: Round
    chance: random.Random
    captured: bool  # whether colluders hold half of the panel


Strategy = Callable[[Look], "tuple[int, ...] | None"]  # None: no scores in time


def known_worth(alone: int, n: int) -> tuple[int, int]:
    """Of a planted harmful update with few samples: it does harm where it is alone, in one order of n, and
    little beside others. Rough on purpose: from a third to three times that."""
    return 3 * alone // n, alone // (3 * n)


def recorded() -> list[tuple[Round, Round]]:
    """Each round as it was, and with a planted contribution."""
    found = json.loads(SCORES.read_text())["rounds"]

    def read(entry: dict[str, Any]) -> Round:
        honest = tuple(tuple(worths) for worths in entry["honest"].values())
        n = len(honest[0])
        planted = (Known(n - 1, *known_worth(entry["alone"], n)),) if entry["planted"] else ()
        return Round(honest, {name: tuple(worths) for name, worths in entry["shortcuts"].items()}, planted)

    return [(read(plain), read(planted)) for plain, planted in zip(found[::2], found[1::2], strict=True)]


def reordered(own: Round, chance: random.Random) -> Round:
    """Contributions come in another order each round: that of their reveals."""
    places = list(range(len(own.honest[0])))
    chance.shuffle(places)

    def moved(scores: Sequence[int]) -> tuple[int, ...]:
        return tuple(scores[place] for place in places)

    return Round(
        tuple(map(moved, own.honest)),
        {name: moved(scores) for name, scores in own.shortcuts.items()},
        tuple(Known(places.index(plant.subject), plant.low, plant.high) for plant in own.planted),
    )


def largest_difference(rounds: Sequence[tuple[Round, Round]]) -> int:
    """Between any two machines, of any subject."""
    return max(
        max(column) - min(column)
        for pair in rounds
        for own in pair
        for column in zip(*own.honest, strict=True)
    )


def favour(look: Look) -> tuple[int, ...]:
    """The first contributor is a friend: as good as all others together."""
    return (sum(abs(worth) for worth in look.honest), *look.honest[1:])


def guess(look: Look) -> tuple[int, ...]:
    """Numbers like those of the round before."""
    usual = look.before.honest[0]
    return tuple(look.chance.choice(usual) for _ in look.honest)


def previous(look: Look) -> tuple[int, ...]:
    """The round before, which everybody can read; what it lacks is the first one's again."""
    usual = look.before.honest[0]
    return tuple(usual[i % len(usual)] for i in range(len(look.honest)))


def constant(look: Look) -> tuple[int, ...]:
    """The mean of the round before, for everybody."""
    usual = look.before.honest[0]
    return (sum(usual) // len(usual),) * len(look.honest)


STRATEGIES: dict[str, tuple[Strategy, float]] = {  # and how much of the work it does
    "honest": (lambda look: look.honest, 1.0),
    "all zero": (lambda look: (0,) * len(look.honest), 0.0),
    "constant": (constant, 0.0),
    "copies the round before": (previous, 0.0),
    "waits to copy others, and misses the commit": (lambda look: None, 0.0),
    "guesses": (guess, 0.0),
    "works every other time, else guesses": (
        lambda look: look.honest if look.chance.random() < 0.5 else guess(look),
        0.5,
    ),
    "leave-one-out instead of Shapley": (lambda look: look.now.shortcuts[SHORTCUTS[0]], 0.2),
    "looks at a fifth of the rows": (lambda look: look.now.shortcuts[SHORTCUTS[1]], 0.2),
}
COLLUSIONS: dict[str, tuple[Strategy, float]] = {
    "favours a friend": (favour, 1.0),
    "agrees on the round before": (previous, 0.0),
    "favours a friend if it has half of the panel": (
        lambda look: favour(look) if look.captured else look.honest,
        1.0,
    ),
}


@dataclass
class Account:
    """What happened to the seats of one strategy."""

    seats: int = 0
    net: float = 0.0
    least: float = 0.0  # of one seat
    offences: Counter[Offence] = field(default_factory=Counter)

    def add(self, revealed: bool, work: float, offence: Offence | None) -> None:
        net = (PAY if revealed else 0.0) - WORK * work - (BOND if offence else 0.0)
        self.seats, self.net, self.least = self.seats + 1, self.net + net, min(self.least, net)
        if offence is not None:
            self.offences[offence] += 1

    def told(self) -> dict[str, Any]:
        shares = {own.name.lower(): round(self.offences[own] / self.seats, 4) for own in Offence}
        return {"net_per_round": round(self.net / self.seats, 4), "worst_round": self.least, "caught": shares}


def simulate(
    strategy: Strategy,
    work: float,
    crooks: int,
    *,
    evaluators: int = EVALUATORS,
    seats: int = SEATS,
    planted: float = PLANTED,
    rounds: int = SIMULATED,
    seed: int = 1,
) -> dict[str, Any]:
    """`crooks` of the evaluators, all of one stake, have a strategy; the others are honest."""
    chance = random.Random(seed)  # noqa: S311  a simulation, not a secret
    story = recorded()
    theirs, honest, captured, lies_stood = Account(), Account(), 0, 0
    before = story[0][0]
    for number in range(rounds):
        now = reordered(story[number % len(story)][chance.random() < planted], chance)
        panel = chance.sample(range(evaluators), seats)
        crooked = [seat for seat, member in enumerate(panel) if member < crooks]
        has_half = 2 * len(crooked) >= seats
        said: list[Seat] = []
        for seat in range(seats):
            own = chance.choice(now.honest)
            if seat in crooked:  # those who agree start from the same
                look = Look(now.honest[0] if crooks > 1 else own, now, before, chance, has_half)
                said.append(Seat(1, strategy(look)))
            else:
                said.append(Seat(1, own))
        found = honesty.judge(said, len(now.honest[0]), now.planted)
        captured += has_half
        truth = honesty.judge([Seat(1, own) for own in now.honest], len(now.honest[0])).medians
        pairs = zip(found.medians, truth, strict=True)
        lies_stood += any(not honesty.tolerated(own, true) for own, true in pairs)
        for seat, own_seat in enumerate(said):
            account, own_work = (theirs, work) if seat in crooked else (honest, 1.0)
            account.add(own_seat.scores is not None, own_work, found.offences.get(seat))
        before = now
    return {
        "strategy": theirs.told(),
        "honest": honest.told(),
        "panels_with_half": round(captured / rounds, 4),
        "false_medians": round(lies_stood / rounds, 4),
    }


def run(rounds: int = SIMULATED) -> dict[str, Any]:
    """Everything that the table shows."""
    alone = {
        name: simulate(strategy, work, 1, rounds=rounds) for name, (strategy, work) in STRATEGIES.items()
    }
    together = {
        f"{crooks} of {EVALUATORS} collude: {name}": simulate(strategy, work, crooks, rounds=rounds)
        for crooks in (4, 7)
        for name, (strategy, work) in COLLUSIONS.items()
    }
    # What remains: beyond these numbers a third can have half of a panel, and three fifths always have.
    beyond = {
        f"33 of 100 collude: {name}": simulate(strategy, work, 33, evaluators=100, rounds=rounds)
        for name, (strategy, work) in COLLUSIONS.items()
    }
    beyond["13 of 21 agree on the round before, plants in two rounds of three"] = simulate(
        previous, 0.0, 13, planted=2 / 3, rounds=rounds
    )
    return {"alone": alone, "together": together, "beyond": beyond}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "| strategy | net a round (pay = 1) | caught as outlier | by a plant | withheld | honest seats, net "
        "| honest seats caught | false medians |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for part in results.values():
        for name, found in part.items():
            own, honest = found["strategy"], found["honest"]
            caught, blamed = own["caught"], sum(honest["caught"].values())
            lines.append(
                f"| {name} | {own['net_per_round']:+.2f} | {caught['outlier']:.1%} | {caught['planted']:.1%} "
                f"| {caught['withheld']:.1%} | {honest['net_per_round']:+.2f} | {blamed:.1%} "
                f"| {found['false_medians']:.1%} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--measure", action="store_true", help="record what machines score")
    parser.add_argument("--write", action="store_true", help="record the results")
    parser.add_argument("--score-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shortcuts", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score_in is not None:
        tasks = json.loads((options.score_in / "tasks.json").read_text())
        print(json.dumps(score(options.score_in, tasks, shortcuts=options.shortcuts)))
        return
    if options.measure:
        measure()
    difference = largest_difference(recorded())
    results = run()
    print(table(results))
    print(f"machines differ by {difference} of 1e-9 at most; tolerance {honesty.TOLERANCE_ABS}")
    if options.write:
        head = {
            "command": "python benchmarks/evaluators.py --write",
            "python": platform.python_version(),
            "pay": PAY,
            "bond": BOND,
            "work": WORK,
            "planted": PLANTED,
            "evaluators": EVALUATORS,
            "seats": SEATS,
            "rounds": SIMULATED,
            "tolerance_abs": honesty.TOLERANCE_ABS,
            "largest_difference": difference,
        }
        RESULTS.write_text(json.dumps({**head, **results}, indent=2) + "\n")
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
