"""Announcements on their way to their readers, who may be slow. Knows no network."""

from __future__ import annotations

from collections import deque

import trio

from dfl_ledger.errors import UsageError

from .channel import PeerId

MAX_TOPIC_CHARS = 128


def check_topic(topic: str) -> None:
    """Raises UsageError for a topic no announcement can have."""
    if not topic or len(topic) > MAX_TOPIC_CHARS:
        raise UsageError(f"not a topic: {topic[:40]!r}", why=f"a topic has 1 to {MAX_TOPIC_CHARS} characters")


def check_announcement(topic: str, body: bytes, max_bytes: int) -> None:
    """Raises UsageError for what cannot be announced."""
    check_topic(topic)
    if len(body) > max_bytes:
        raise UsageError(
            "the announcement is too large",
            why=f"{len(body)} bytes where {max_bytes} are allowed: publish a blob and announce its CID",
        )


class Backlog:
    """Announcements that wait for one reader. When it is full the oldest go."""

    def __init__(self, limit: int) -> None:
        self._waiting: deque[tuple[PeerId, bytes]] = deque(maxlen=limit)
        self._arrived = trio.Event()

    def put(self, origin: PeerId, body: bytes) -> None:
        self._waiting.append((origin, body))
        self._arrived.set()

    def __aiter__(self) -> Backlog:
        return self

    async def __anext__(self) -> tuple[PeerId, bytes]:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._waiting.popleft()


class Inbox:
    """Who of us reads which topic."""

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog
        self._readers: dict[str, list[Backlog]] = {}

    def open(self, topic: str) -> Backlog:
        reader = Backlog(self._backlog)
        self._readers.setdefault(topic, []).append(reader)
        return reader

    def close(self, topic: str, reader: Backlog) -> bool:
        """True when it was the topic's last reader."""
        readers = self._readers[topic]
        readers.remove(reader)
        if not readers:
            del self._readers[topic]
        return not readers

    def has_readers(self, topic: str) -> bool:
        return topic in self._readers

    def deliver(self, topic: str, origin: PeerId, body: bytes) -> None:
        for reader in self._readers.get(topic, ()):
            reader.put(origin, body)
