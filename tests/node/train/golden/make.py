"""Golden values of robust aggregators, from byzfl 0.0.11 (https://github.com/LPD-EPFL/byzfl, MIT).

byzfl does not install beside this project and is no dependency of it: an environment of its own makes
`aggregators.json`, which the tests read.

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install --no-deps byzfl==0.0.11
    /tmp/golden/bin/pip install numpy scipy torch==2.13.0
    /tmp/golden/bin/python tests/node/train/golden/make.py

The package's root imports its benchmark, which wants torchvision; a bare module in its place keeps the root
from running. Vectors are float64; the first f of each case are far from the rest.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

VERSION = "0.0.11"
OUT = Path(__file__).with_name("aggregators.json")
DIMENSIONS = 7
# (updates, hostile ones among them, seed)
ROUNDS = ((9, 2, 1), (7, 3, 2), (4, 1, 3), (12, 5, 4), (3, 1, 5))


def load(name: str) -> Any:
    if "byzfl" not in sys.modules:
        spec = importlib.util.find_spec("byzfl")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("byzfl is not installed: see the docstring")
        root = types.ModuleType("byzfl")
        root.__path__ = list(spec.submodule_search_locations)
        sys.modules["byzfl"] = root
    return importlib.import_module(f"byzfl.aggregators.{name}")


def vectors(n: int, f: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    random = np.random.RandomState(seed)
    drawn = random.standard_normal((n, DIMENSIONS)) * 0.3 + random.standard_normal(DIMENSIONS)
    drawn[:f] = -4 * drawn[:f] + 3 * random.standard_normal((f, DIMENSIONS))
    return drawn


def cases(f: int) -> list[tuple[str, dict[str, float], Any]]:
    """Our name and arguments, and byzfl's rule."""
    rules = load("aggregators")
    found: list[tuple[str, dict[str, float], Any]] = [
        ("mean", {}, rules.Average()),
        ("median", {}, rules.Median()),
        ("trimmed-mean", {}, rules.TrMean(f)),
        ("multi-krum", {}, rules.MultiKrum(f)),
    ]
    for nu, steps in ((0.1, 3), (0.5, 1), (1e-6, 40)):
        found.append(("geometric-median", {"nu": nu, "steps": steps}, rules.GeometricMedian(nu, steps)))
    for tau, steps in ((0.8, 1), (2.5, 4), (100.0, 1)):
        found.append(
            ("centered-clip", {"tau": tau, "steps": steps}, rules.CenteredClipping(None, steps, tau))
        )
    return found


def main() -> None:
    written = []
    for n, f, seed in ROUNDS:
        given = vectors(n, f, seed)
        nearest = load("preaggregators").NNM(f)
        answers = []
        for mixing, inputs in ((0, given), (1, nearest(given))):
            for name, args, rule in cases(f):
                chosen = {**args, "f": f, "mixing": mixing}
                answers.append({"aggregator": name, "args": chosen, "result": rule(inputs).tolist()})
        written.append({"vectors": given.tolist(), "answers": answers})
    head = {"made_by": f"byzfl {VERSION}, numpy {np.__version__}, by golden/make.py", "rounds": written}
    OUT.write_text(json.dumps(head, indent=1) + "\n")


if __name__ == "__main__":
    main()
