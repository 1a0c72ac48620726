"""How fast the ledger is: events into SQLite, and queries over many contributions.

    python benchmarks/indexer.py [--contributions N] [--nodes N] [--keep FILE]

Prints one JSON object: events a second through `Indexer.step` from a ledger that answers from memory, then
the median and the worst of each kind of query. Nothing is scored: it is indexing alone that is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from eth_utils.address import to_checksum_address

from dfl_ledger.indexer import Indexer
from dfl_ledger.ledger import Ledger
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import Address, BlockRef, Event, Kind, TxHash

ROUNDS_PER_JOB = 100
UPDATES_PER_ROUND = 20
EVENTS_PER_BLOCK = 50


class MemoryEvents:
    """The reading half of a Ledger, over events made beforehand."""

    chain_id = 31337

    def __init__(self, events: Iterator[tuple[str, dict[str, Any]]]) -> None:
        self._blocks: list[list[Event]] = [[]]
        for index, (name, args) in enumerate(events):
            log_index = index % EVENTS_PER_BLOCK
            if log_index == 0:
                self._blocks.append([])
            block = len(self._blocks) - 1
            tx = TxHash(f"0x{index:064x}")
            self._blocks[-1].append(Event(block, f"0x{block:064x}", log_index, tx, "0x", name, args))
        self.count = sum(map(len, self._blocks))

    def head(self) -> int:
        return len(self._blocks) - 1

    def block(self, number: int | None = None) -> BlockRef:
        number = self.head() if number is None else number
        return BlockRef(number, f"0x{number:064x}", number)

    def events(self, from_block: int, to_block: int) -> list[Event]:
        return [event for block in self._blocks[from_block : to_block + 1] for event in block]


def make_nodes(count: int) -> list[Address]:
    return [Address(to_checksum_address(hashlib.sha256(b"%d" % i).digest()[:20])) for i in range(count)]


def make_events(contributions: int, nodes: list[Address]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Jobs, rounds, reveals and models, as a busy network would emit them (commitments left out)."""
    made = job = 0
    while made < contributions:
        job += 1
        model = _word(f"{job}")
        yield (
            "JobCreated",
            {
                "job": job,
                "requester": nodes[0],
                "spec": model,
                "model": model,
                "mode": 0,
                "rounds": ROUNDS_PER_JOB,
                "quorum": 2,
                "minNodes": 3,
                "target": 0,
                "roundBudget": 10**18,
                "requiredStake": 0,
            },
        )
        for round_ in range(1, ROUNDS_PER_JOB + 1):
            here = {"job": job, "round": round_}
            yield "RoundOpened", here | {"parent": model, "expected": UPDATES_PER_ROUND, "deadline": 1}
            for index in range(UPDATES_PER_ROUND):
                update = {
                    "node": nodes[(made * 7919 + job) % len(nodes)],
                    "kind": 0,
                    "index": index,
                    "update": _word(f"{job} {round_} {index}"),
                    "parent": model,
                    "samples": 640,
                }
                yield "ContributionRevealed", here | update
                made += 1
            model = _word(f"{job} {round_}")
            yield "ModelPublished", here | {"aggregator": nodes[0], "model": model}
            if made >= contributions:
                return


def _word(text: str) -> str:
    return "0x" + hashlib.sha256(text.encode()).hexdigest()


def index(path: Path, chain: MemoryEvents) -> float:
    """Seconds until everything is indexed."""
    indexer = Indexer(path, cast(Ledger, chain), deployment_key="benchmark", start_block=0, span_blocks=100)
    started = time.perf_counter()
    while indexer.lag():
        indexer.step()
    elapsed_s = time.perf_counter() - started
    indexer.close()
    return elapsed_s


def query(path: Path, nodes: list[Address], repeats: int = 15) -> dict[str, dict[str, float]]:
    """Milliseconds of each kind of query, with other arguments each time."""
    rng = random.Random(1)  # noqa: S311  reproducible, not secret
    rows = LedgerRows(path)
    jobs = len(rows.jobs())

    def node() -> Address:
        return rng.choice(nodes)

    def job() -> int:
        return rng.randint(1, jobs)

    def round_() -> int:
        return rng.randint(1, ROUNDS_PER_JOB)

    queries: dict[str, Callable[[], object]] = {
        "newest": rows.contributions,
        "node": lambda: rows.contributions(node=node()),
        "job": lambda: rows.contributions(job=job()),
        "round": lambda: rows.contributions(round_=round_()),
        "kind": lambda: rows.contributions(kind=Kind.UPDATE),
        "kind, none": lambda: rows.contributions(kind=Kind.HOP),
        "node and kind": lambda: rows.contributions(node=node(), kind=Kind.UPDATE),
        "node and job": lambda: rows.contributions(node=node(), job=job()),
        "node and round": lambda: rows.contributions(node=node(), round_=round_()),
        "job and round": lambda: rows.contributions(job=job(), round_=round_()),
        "one": lambda: rows.contribution(f"{job()}.{round_()}.0"),
        "a job with its rounds": lambda: rows.job(job()),
        "earnings": lambda: rows.earnings(node()),
    }
    found = {}
    for name, run in queries.items():
        times_ms = []
        for _ in range(repeats):
            started = time.perf_counter()
            run()
            times_ms.append((time.perf_counter() - started) * 1000)
        found[name] = {
            "median_ms": round(statistics.median(times_ms), 2),
            "worst_ms": round(max(times_ms), 2),
        }
    rows.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--contributions", type=int, default=20_000)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--keep", type=Path, help="write the database here and leave it")
    options = parser.parse_args()
    nodes = make_nodes(options.nodes)
    chain = MemoryEvents(make_events(options.contributions, nodes))
    with tempfile.TemporaryDirectory() as folder:
        path = options.keep or Path(folder) / "ledger.sqlite"
        elapsed_s = index(path, chain)
        result = {
            "events": chain.count,
            "contributions": options.contributions,
            "index_s": round(elapsed_s, 2),
            "events_per_s": round(chain.count / elapsed_s),
            "database_mb": round(path.stat().st_size / 1e6, 1),
            "queries": query(path, nodes),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
