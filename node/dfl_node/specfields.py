"""How one field of a spec is read: a table that refuses what nobody asked for, and readers with ranges.

A reader takes (the field's full name, the value) and gives the checked value or raises SpecInvalid with that
name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dfl_ledger.errors import SpecInvalid
from dfl_ledger.records import Cid

WEI = 10**18
MAX_WEI = 2**96 - 1  # of a round's budget: what fits its place on chain and in the evidence
MAX_ARGS = 32  # of a model, a strategy ...
MAX_ARG_CHARS = 256

_VNX = re.compile(r"(\d{1,29})(?:\.(\d{1,18}))?", re.ASCII)
_WEI = re.compile(r"0|[1-9]\d{0,28}", re.ASCII)

T = TypeVar("T")


class Table:
    """Reads one table of a spec and remembers what was asked for, so that the rest can be refused."""

    def __init__(self, values: Any, path: str) -> None:
        if not isinstance(values, Mapping):
            raise SpecInvalid(path, "must be a table")
        self.given = True
        self._values = dict(values)
        self._names = frozenset(values)
        self._path = path

    def field(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str, read: Callable[[str, Any], T], default: Any = ...) -> T:
        if name in self._values:
            return read(self.field(name), self._values.pop(name))
        if default is ...:
            raise SpecInvalid(self.field(name), "is missing")
        return read(self.field(name), default)

    def table(self, name: str) -> Table:
        if name not in self._values:
            raise SpecInvalid(self.field(name), "is missing")
        return self.optional(name)

    def optional(self, name: str) -> Table:
        """A table that may be missing: then it is empty, and not `given`."""
        found = Table(self._values.pop(name, {}), self.field(name))
        found.given = name in self._names
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def end(self) -> None:
        for name in self._values:
            raise SpecInvalid(self.field(str(name)[:80]), "is not a field of a job spec")


def whole(low: int, high: int) -> Callable[[str, Any], int]:
    def read(field: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise SpecInvalid(field, f"must be a whole number, not {shown(value)}")
        if not low <= value <= high:
            raise SpecInvalid(field, f"must be from {low} to {high}, not {shown(value)}")
        return value

    return read


def number(low: float, high: float, *, above: bool = False) -> Callable[[str, Any], float]:
    def read(field: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecInvalid(field, f"must be a number, not {shown(value)}")
        if not low <= value <= high or (above and value == low):  # NaN is in no range
            edge = "above" if above else "from"
            raise SpecInvalid(field, f"must be {edge} {low} to {high}, not {shown(value)}")
        return float(value)

    return read


def flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SpecInvalid(field, f"must be true or false, not {shown(value)}")
    return value


def percent(field: str, value: Any) -> int:
    """Percent with at most two decimals -> basis points, exactly."""
    share = number(0, 100)(field, value)
    bps = round(share * 100)
    if bps / 100 != share:
        raise SpecInvalid(field, f"must be percent with at most two decimals, not {shown(value)}")
    return bps


def choice(*choices: str) -> Callable[[str, Any], str]:
    def read(field: str, value: Any) -> str:
        if value not in choices:
            raise SpecInvalid(field, f"must be one of {', '.join(choices)}, not {shown(value)}")
        return str(value)

    return read


def name(field: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 64:
        raise SpecInvalid(field, "must be a text of 1 to 64 characters")
    if not all(c.isalnum() or c in "-_. " for c in value):
        raise SpecInvalid(field, "may hold letters, digits, space, dot, - and _ only")
    return value


def cid(field: str, value: Any) -> Cid:
    if not isinstance(value, str):
        raise SpecInvalid(field, f"must be a CID, not {shown(value)}")
    try:
        return Cid.parse(value)
    except ValueError as bad:
        raise SpecInvalid(field, f"must be a CID ({bad})") from bad


def texts(most: int) -> Callable[[str, Any], tuple[str, ...]]:
    def read(field: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or len(value) > most:
            raise SpecInvalid(field, f"must be a list of at most {most} texts")
        for item in value:
            if not isinstance(item, str) or not 1 <= len(item) <= MAX_ARG_CHARS:
                raise SpecInvalid(
                    field, f"holds {shown(item)}, not a text of 1 to {MAX_ARG_CHARS} characters"
                )
        return tuple(value)

    return read


def plain_args(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or len(value) > MAX_ARGS:
        raise SpecInvalid(field, f"must be a table of at most {MAX_ARGS} entries")
    for key, item in value.items():
        if not 1 <= len(key) <= 64:
            raise SpecInvalid(f"{field}.{key[:80]}", "its name must have 1 to 64 characters")
        match item:
            case bool():
                fits = True
            case int():
                fits = -(2**63) <= item < 2**63
            case float():
                fits = math.isfinite(item)
            case str():
                fits = len(item) <= MAX_ARG_CHARS
            case _:
                fits = False
        if not fits:
            why = f"must be a finite number, a text of at most {MAX_ARG_CHARS} characters, true or false"
            raise SpecInvalid(f"{field}.{key}", f"{why}, not {shown(item)}")
    return dict(value)


def vnx(field: str, value: Any) -> int:
    """A VNX amount as a whole number or decimal text, in wei. Exact: money is never rounded."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SpecInvalid(field, 'must be an amount of VNX such as 10 or "0.5"')
    found = _VNX.fullmatch(shown(value) if isinstance(value, int) else value)
    if found is None:
        raise SpecInvalid(field, f"must be VNX with at most 18 decimals, not {shown(value)}")
    whole, decimals = found.groups(default="")
    return _in_wei(field, int(whole) * WEI + int(decimals.ljust(18, "0")))


def wei(field: str, value: Any) -> int:
    if not isinstance(value, str) or not _WEI.fullmatch(value):
        raise SpecInvalid(field, f"must be wei as decimal text, not {shown(value)}")
    return _in_wei(field, int(value))


def _in_wei(field: str, wei: int) -> int:
    if wei > MAX_WEI:
        raise SpecInvalid(field, f"must be at most {MAX_WEI} wei, not {wei}")
    return wei


def shown(value: Any) -> str:
    """A value for a message, whatever it is and however long."""
    try:
        return f"{value!r:.40}"
    except (ValueError, RecursionError):
        return "a number of thousands of digits"
