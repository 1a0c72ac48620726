"""How updates are valued: a method's name, and which coalitions it asks for. Pure.

shapley         what a job spec asks for: exact up to 8 players, above that
gtg-shapley     the estimate of `gtg`, with an error bar
leave-one-out   n + 1 evaluations, but blind to updates that replace each other
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

from dfl_node.value import gtg, shapley
from dfl_node.value.shapley import LEAVE_ONE_OUT, MAX_EXACT, SHAPLEY

GTG_SHAPLEY = "gtg-shapley"
METHODS = (SHAPLEY, LEAVE_ONE_OUT)  # that can be asked for

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Valuation:
    worths: tuple[int, ...]  # one a player
    errors: tuple[int, ...]  # standard errors; 0 where nothing was estimated
    method: str  # which one it was
    evaluations: int  # coalitions that were asked for


def used(n: int, method: str) -> str:
    """The method that values n players when `method` is asked for."""
    return GTG_SHAPLEY if method == SHAPLEY and n > MAX_EXACT else method


def most_evaluations(n: int, method: str) -> int:
    """No valuation of n players asks for more coalitions."""
    found = used(n, method)
    return gtg.most_evaluations(n) if found == GTG_SHAPLEY else len(shapley.coalitions(n, found))


def value(n: int, method: str, seed: int) -> Generator[int, int, Valuation]:
    """Yields the coalitions (bit masks) whose values it wants, each once, and is sent them."""
    if used(n, method) == GTG_SHAPLEY:
        found = yield from gtg.estimate(n, seed)
        return Valuation(found.worths, found.errors, GTG_SHAPLEY, found.evaluations)
    values: dict[int, int] = {}
    for coalition in shapley.coalitions(n, method):
        values[coalition] = yield coalition
    return Valuation(shapley.worths(values, n, method), (0,) * n, method, len(values))


def asked_once(
    asking: Generator[int, int, Result], known: dict[int, int], of: Callable[[int], int] = lambda own: own
) -> Generator[int, int, Result]:
    """The same, but it yields `of(coalition)`, and only what is not in `known`, where answers are kept."""
    try:
        coalition = of(next(asking))
        while True:
            if coalition not in known:
                known[coalition] = yield coalition
            coalition = of(asking.send(known[coalition]))
    except StopIteration as end:
        result: Result = end.value
        return result


def drive(asking: Generator[int, int, Result], answer: Callable[[int], int]) -> Result:
    """What `asking` returns when `answer` gives the values it wants."""
    try:
        coalition = next(asking)
        while True:
            coalition = asking.send(answer(coalition))
    except StopIteration as end:
        result: Result = end.value
        return result
