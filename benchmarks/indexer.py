"""How fast the ledger is: events into SQLite, queries over many contributions, and a settlement's sum tree.

    python benchmarks/indexer.py [--contributions N] [--chain-events N] [--leaves N] [--write]

Three figures: events a second through `Indexer.step` from an anvil on this machine, RPC and decoding
included; the median and the worst of each kind of query over contributions that a ledger in memory told;
seconds to build the sum tree. Prints one JSON object; --write records it in benchmarks/results/indexer.json.

The chain's events are logged by a few bytes of code put at the job contract's address: as many in a block as
a busy chain would have, which our contracts alone would take an hour to emit.
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

from dfl_ledger import projection, schema
from dfl_ledger.chain import ChainLedger
from dfl_ledger.contracts import load
from dfl_ledger.devchain import DevChain, dev_chain
from dfl_ledger.indexer import Indexer
from dfl_ledger.ledger import Ledger
from dfl_ledger.merkle import RewardTree
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import Address, BlockRef, Event, Kind, Leaf, TxHash
from dfl_ledger.rpc import Rpc

RESULT = Path(__file__).parent / "results" / "indexer.json"
BUSY_BLOCK = 100  # events in a block of the chain: ten million gas
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


# -- from a chain -----------------------------------------------------------------------------------------
# For each record of 9 words in its call data, four topics and five words of data, an event:
#   for (at = 0; at < calldatasize(); at += 288)
#     calldatacopy(0, at + 128, 160); log4(0, 160, topics at `at`, at + 32, at + 64 and at + 96)
_LOGGER = "0x" + "".join(
    (
        "6000",  # at = 0
        "5b36811015603057",  # 02: unless at < size, go to 30
        "60a081608001600037",  # copy 160 bytes from at + 128 to 0
        "80606001358160400135826020013583",  # the topics, the last one first
        "35",
        "60a06000a4",  # log4
        "61012001600256",  # at += 288, go to 02
        "5b00",  # 30: end
    )
)


def fill_chain(chain: DevChain, events: int) -> int:
    """Blocks full of ContributionRevealed; the number of them in all."""
    rpc, jobs = Rpc(chain.rpc_url), chain.deployment().jobs
    abi = load("TrainingJobs")
    topic = next(topic for topic, entry in abi.events.items() if entry.name == "ContributionRevealed")
    original = rpc.call("eth_getCode", jobs, "latest")
    rpc.call("anvil_setCode", jobs, _LOGGER)
    rpc.call("anvil_setBlockGasLimit", hex(10**9))
    sender, nodes = rpc.call("eth_accounts")[1], make_nodes(1000)
    made = 0
    while made < events:
        records = bytearray()
        for _ in range(BUSY_BLOCK):
            round_, index = divmod(made, UPDATES_PER_ROUND)
            words = (1, round_ + 1, int(nodes[made % len(nodes)], 16), 0, index)
            records += topic + b"".join(word.to_bytes(32, "big") for word in words)
            records += bytes.fromhex(_word(f"{made}")[2:]) + bytes.fromhex(_word(f"{round_}")[2:])
            records += (640).to_bytes(32, "big")
            made += 1
        fields = {"from": sender, "to": jobs, "data": "0x" + records.hex(), "gas": hex(10**8)}
        rpc.call("eth_sendTransaction", fields)
    while rpc.quantity("eth_getTransactionCount", sender, "latest") * BUSY_BLOCK < made:
        time.sleep(0.05)
    rpc.call("anvil_setCode", jobs, original)  # a reader looks whether the contracts are there
    rpc.close()
    return made


def index_chain(folder: Path, events: int) -> dict[str, float]:
    """Events a second from anvil into SQLite."""
    with dev_chain(folder / "chain") as chain:
        made = fill_chain(chain, events)
        reader = ChainLedger(chain.rpc_url, chain.deployment(), timeout_s=60)
        path = folder / "chain.sqlite"
        indexer = Indexer(
            path,
            reader,
            deployment_key="benchmark",
            start_block=chain.deployment().deploy_block,
        )
        _open_rounds(indexer, made // UPDATES_PER_ROUND + 1)
        started, cpu = time.perf_counter(), time.process_time()
        while indexer.lag():
            indexer.step()
        elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        indexer.close()
        reader.close()
        with LedgerRows(path) as rows:
            assert len(rows.contributions(job=1, limit=None)) == made
    return {
        "events": made,
        "events_per_s": round(made / elapsed_s),
        "events_per_cpu_s": round(
            made / cpu_s
        ),  # of ours alone: what a machine with nothing else to do gives
    }


def _open_rounds(indexer: Indexer, rounds: int) -> None:
    """A job with its rounds, as their own events would make them."""
    created = next(args for name, args in make_events(1, make_nodes(1)) if name == "JobCreated")
    event = Event(0, "0x00", 0, TxHash("0x" + "00" * 32), "0x", "JobCreated", created)
    with schema.transaction(indexer._db):
        projection.record(indexer._db, event)
        indexer._db.executemany(
            "INSERT INTO rounds (job, round) VALUES (1, ?)", [(number,) for number in range(1, rounds + 1)]
        )


def build_tree(leaves: int) -> dict[str, float]:
    """Seconds from leaves to a root."""
    accounts = make_nodes(leaves)
    made = [Leaf(account, 0, place, place, 2 * place) for place, account in enumerate(accounts)]
    started, cpu = time.perf_counter(), time.process_time()
    RewardTree(made)
    return {
        "leaves": leaves,
        "tree_s": round(time.perf_counter() - started, 2),
        "tree_cpu_s": round(time.process_time() - cpu, 2),
    }


# -- from memory ------------------------------------------------------------------------------------------
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
    parser.add_argument("--chain-events", type=int, default=20_000)
    parser.add_argument("--leaves", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--write", action="store_true", help="record the result")
    options = parser.parse_args()
    nodes = make_nodes(options.nodes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from_chain = index_chain(folder, options.chain_events)
        tree = build_tree(options.leaves)
        chain = MemoryEvents(make_events(options.contributions, nodes))
        path = folder / "ledger.sqlite"
        elapsed_s = index(path, chain)
        result = {
            "from_anvil": from_chain,
            "sum_tree": tree,
            "from_memory": {"events": chain.count, "events_per_s": round(chain.count / elapsed_s)},
            "contributions": options.contributions,
            "database_mb": round(path.stat().st_size / 1e6, 1),
            "queries": query(path, nodes),
        }
    print(json.dumps(result, indent=1))
    if options.write:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
