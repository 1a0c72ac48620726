"""Nurseries raise groups; who waits for one kind of failure wants the failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unwrapped(*kinds: type[Exception]) -> Iterator[None]:
    """Raises the first of `kinds` out of a group of nothing else; what else there is goes before it."""
    try:
        yield
    except BaseExceptionGroup as group:
        wanted, rest = group.split(kinds)
        if rest is not None:
            raise rest from None
        found: BaseException | None = wanted
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        if found is not None:
            raise found from None
