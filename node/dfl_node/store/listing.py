"""What `ls` returns in every store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

from dfl_node.store.blob_store import BlobInfo


class Listing:
    """An async iterator over rows that are read in one go at its first step.

    Not an async generator: one that is left early would have to be closed by its user.
    """

    def __init__(self, read: Callable[[], Awaitable[Iterable[BlobInfo]]]) -> None:
        self._read = read
        self._rows: Iterator[BlobInfo] | None = None

    def __aiter__(self) -> AsyncIterator[BlobInfo]:
        return self

    async def __anext__(self) -> BlobInfo:
        if self._rows is None:
            self._rows = iter(await self._read())
        for row in self._rows:
            return row
        raise StopAsyncIteration
