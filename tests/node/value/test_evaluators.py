"""What evaluators earn, simulated on recorded scores: honesty pays, and nothing else does."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dfl_node.value import honesty

REPO = Path(__file__).parents[3]
ROUNDS = 120


@cache
def benchmark() -> Any:
    """benchmarks/ is no package."""
    spec = importlib.util.spec_from_file_location("evaluators", REPO / "benchmarks" / "evaluators.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def results() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = benchmark().run(ROUNDS)
    return found


def test_honest_evaluators_on_all_machines_are_far_within_the_tolerance() -> None:
    rounds = benchmark().recorded()
    assert {len(own.honest) for pair in rounds for own in pair} == {len(benchmark().MACHINES)}
    assert 20 * benchmark().largest_difference(rounds) < honesty.TOLERANCE_ABS


def test_honest_evaluators_never_lose() -> None:
    """Not in one round, whoever else sits on the panel."""
    for part in ("alone", "together"):
        for name, found in results()[part].items():
            assert found["honest"]["worst_round"] == 0.0, name  # no seat was below
            assert found["honest"]["net_per_round"] == pytest.approx(0.9), name
            assert not any(found["honest"]["caught"].values()), name
            assert found["false_medians"] == 0, name


def test_every_dishonest_strategy_loses_in_absolute_terms() -> None:
    alone = {name: found["strategy"] for name, found in results()["alone"].items()}
    assert alone.pop("honest")["net_per_round"] == pytest.approx(0.9)
    together = {
        name: found["strategy"]
        for name, found in results()["together"].items()
        if "if it has half" not in name
    }
    for name, found in (alone | together).items():
        assert found["net_per_round"] < 0, name


def test_who_lies_only_with_half_of_a_panel_stays_honest_where_it_never_has_it() -> None:
    found = results()["together"]["7 of 21 collude: favours a friend if it has half of the panel"]
    assert found["panels_with_half"] == 0
    assert found["strategy"]["net_per_round"] == pytest.approx(0.9)


def test_plants_make_a_majority_that_does_not_work_lose() -> None:
    found = results()["beyond"]["13 of 21 agree on the round before, plants in two rounds of three"]
    assert found["strategy"]["net_per_round"] < 0
    assert 0.55 < found["strategy"]["caught"]["planted"] < 0.8


def test_recorded_results_are_those_of_the_recorded_scores() -> None:
    recorded = json.loads((REPO / "benchmarks" / "results" / "evaluators.json").read_text())
    again = benchmark().simulate(*benchmark().STRATEGIES["guesses"], 1)
    assert recorded["alone"]["guesses"] == again
    assert recorded["tolerance_abs"] == honesty.TOLERANCE_ABS
