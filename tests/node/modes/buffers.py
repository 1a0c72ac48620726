"""What stories about asynchronous jobs share: a spec, and what their rows and journals say."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfl_ledger.records import Cid, JobId

if TYPE_CHECKING:
    from tests.node.modes.world import World

ASYNC = """
name = "story"
app = "digits"
mode = "async"
[model]
name = "mlp"
[training]
rounds = {rounds}
local_steps = 1
batch_size = 8
lr = 0.1
max_update_bytes = 4096
[async]
size = {size}
max_lag = {max_lag}
[round]
min_nodes = {min_nodes}
quorum = {quorum}
open_s = 40
commit_s = 30
reveal_s = 20
aggregate_s = 40
settle_s = {settle_s}
challenge_s = 10
[reward]
round_budget = "1.000000000000000001"
"""


@dataclass(frozen=True)
class Delivery:
    """A machine's contribution to a round that got a model."""

    round: int
    cid: str
    lag: int | None  # None: its parent is no model of the job
    accepted: bool | None  # as the evidence says; None without a settlement
    why: str
    reward_wei: int


async def submit(
    world: World,
    *,
    rounds: int = 6,
    size: int = 2,
    max_lag: int = 8,
    min_nodes: int = 3,
    quorum: int = 2,
    settle_s: int = 60,
) -> JobId:
    return await world.submit(
        rounds=rounds,
        min_nodes=min_nodes,
        quorum=quorum,
        settle_s=settle_s,
        text=ASYNC,
        size=size,
        max_lag=max_lag,
    )


def lap_s(world: World) -> float:
    """Seconds a published round took, on average, from the opening of the first one."""
    opened = world.mined_at(world.job_events("RoundOpened")[0])
    published = world.job_events("ModelPublished")
    return (world.mined_at(published[-1]) - opened) / len(published)


def deliveries(world: World, name: str) -> list[Delivery]:
    """What a machine's node contributed to published rounds, in their order."""
    models, found = [_hex(world.state().terms.model)], list[Delivery]()
    for published in world.job_events("ModelPublished"):
        round_ = int(str(published.args["round"]))
        for row in world.job_events("ContributionRevealed"):
            if (row.args["round"], row.args["node"]) != (round_, world.machines[name].address):
                continue
            parent, index = str(row.args["parent"]), int(str(row.args["index"]))
            lag = models[::-1].index(parent) if parent in models else None
            accepted, why, reward_wei = None, "", 0
            if world.is_settled(round_):
                evidence = world.evidence(round_)
                (entry,) = (e for e in evidence.entries if e.index == index)
                (leaf,) = (x for x in evidence.leaves if x.account == world.machines[name].address)
                accepted, why, reward_wei = entry.accepted, entry.why, leaf.reward_wei
            found.append(Delivery(round_, str(row.args["update"]), lag, accepted, why, reward_wei))
        models.append(str(published.args["model"]))
    return found


def check_pieces(world: World) -> None:
    """No piece was used for two models, and nothing that any node journalled was lost but for the last ones.

    At the end of a job one piece may be promised to a round that never came, and one may wait behind it.
    """
    for name, machine in world.machines.items():
        delivered = Counter(delivery.cid for delivery in deliveries(world, name))
        assert set(delivered.values()) <= {1}, name
        with closing(sqlite3.connect(machine.path / "journal.sqlite")) as db:
            rows = db.execute("SELECT cid FROM work ORDER BY round, rowid").fetchall()
        pieces = [_hex(Cid.parse(cid)) for (cid,) in rows]
        assert len(pieces) == len(set(pieces)), name
        lost = [place for place, cid in enumerate(pieces) if cid not in delivered]
        assert all(place >= len(pieces) - 2 for place in lost), f"{name} lost {lost} of {len(pieces)}"


def _hex(cid: Cid) -> str:
    return "0x" + cid.digest.hex()
