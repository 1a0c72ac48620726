"""Numbers that a job spec may give a strategy or an aggregator, and their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dfl_ledger.errors import SpecInvalid

Args = Mapping[str, float]  # checked: every argument there is, whole ones too


@dataclass(frozen=True, slots=True)
class Arg:
    """A number from `low` to `high`."""

    default: float
    low: float
    high: float
    whole: bool = False


def check(owner: str, field: str, given: Mapping[str, object], wanted: Mapping[str, Arg]) -> dict[str, float]:
    """Every argument of `owner`, defaults filled in. Raises SpecInvalid with `field`.NAME."""
    for name in given:
        if name not in wanted:
            known = ", ".join(wanted) or "no arguments"
            raise SpecInvalid(f"{field}.{str(name)[:80]}", f"{owner} takes {known}")
    return {
        name: _number(f"{field}.{name}", given.get(name, arg.default), arg) for name, arg in wanted.items()
    }


def _number(field: str, value: object, arg: Arg) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecInvalid(field, f"must be a number, not {value!r:.40}")
    if not arg.low <= value <= arg.high:  # NaN is in no range
        raise SpecInvalid(field, f"must be from {arg.low:g} to {arg.high:g}, not {_text(value)}")
    if arg.whole and value != int(value):
        raise SpecInvalid(field, f"must be a whole number, not {value!r:.40}")
    return float(value)


def _text(value: float) -> str:
    """A number for a message, however long."""
    try:
        return f"{value!r:.40}"
    except ValueError:
        return "a number of thousands of digits"
