"""Fixtures and helpers of the indexer's tests."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.indexer import Indexer
from dfl_ledger.records import Event
from tests.ledger.fake_chain import (
    FakeChain,
    JobStory,
)

DERIVED = (
    *("nodes", "jobs", "rounds", "contributions", "settlements", "leaves", "claims"),
    *("payees", "panels", "seats", "offences", "overturned"),
)
OpenIndexer = Callable[..., Indexer]


@pytest.fixture
def chain() -> FakeChain:
    return FakeChain()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def indexer_of(path: Path) -> Iterator[OpenIndexer]:
    opened: list[Indexer] = []

    def open_indexer(chain: FakeChain, at: Path = path, **options: Any) -> Indexer:
        settings: dict[str, Any] = {"deployment_key": "test", "start_block": 1, "span_blocks": 50} | options
        opened.append(Indexer(at, chain.ledger, **settings))
        return opened[-1]

    yield open_indexer
    for indexer in opened:
        indexer.close()


def catch_up(indexer: Indexer) -> list[Event]:
    events: list[Event] = []
    for _ in range(10_000):
        events += indexer.step()
        if indexer.lag() == 0:
            return events
    raise AssertionError("the indexer never caught up")


def dump(path: Path, *tables: str) -> dict[str, list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(path)) as db:
        return {t: db.execute(f"SELECT * FROM {t} ORDER BY 1, 2, 3, 4").fetchall() for t in tables}  # noqa: S608


def three_rounds(chain: FakeChain, job: int = 1) -> JobStory:
    story = JobStory(chain, job)
    story.create()
    for _ in range(3):
        story.whole_round()
    return story
