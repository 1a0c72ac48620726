"""A job's terms as the ABI has them: in the order of `struct JobTerms`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from dfl_ledger.records import Cid, JobTerms, Mode


def to_abi(terms: JobTerms) -> tuple[object, ...]:
    """For a call."""
    return tuple(_word(getattr(terms, field.name)) for field in fields(JobTerms))


def to_args(terms: JobTerms) -> list[object]:
    """As `Event.args` has them."""
    return ["0x" + word.hex() if isinstance(word, bytes) else word for word in to_abi(terms)]


def from_args(words: Sequence[Any]) -> JobTerms:
    """Back from `to_args`, and from a call's result. Raises ValueError, TypeError for what is something
    else.
    """
    names = [field.name for field in fields(JobTerms)]
    told: dict[str, Any] = dict(zip(names, words, strict=True))
    spec, model, seal = _cid(told.pop("spec")), _cid(told.pop("model")), _bytes(told.pop("seal_anchor"))
    if not all(isinstance(number, int) for number in told.values()):
        raise TypeError("a term is not a number")
    return JobTerms(spec, model, seal_anchor=seal, **{**told, "mode": Mode(told["mode"])})


def _word(value: object) -> object:
    if isinstance(value, Cid):
        return value.digest
    return int(value) if isinstance(value, Mode) else value


def _bytes(word: str) -> bytes:
    raw = bytes.fromhex(word.removeprefix("0x"))
    if len(raw) != 32:
        raise ValueError("not 32 bytes")
    return raw


def _cid(word: str) -> Cid:
    return Cid.from_digest(_bytes(word))
