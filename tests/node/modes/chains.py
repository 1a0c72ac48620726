"""What stories about chained jobs share: a spec, and what must be true of their laps whatever happened."""

from __future__ import annotations

import struct
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from dfl_ledger.errors import UpdateRefused
from dfl_ledger.records import Cid, Event, JobId, Kind
from dfl_node.journal import Journal
from dfl_node.specrules import model_config
from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.trainer import Verdict
from tests.node.modes.machines import is_absence

if TYPE_CHECKING:
    from tests.node.modes.world import World

LEASE_S = 12
UNDELIVERED = ("nobody delivered", "wrong bytes")  # reasons that are the aggregator's word
CHAINED = """
name = "story"
app = "digits"
mode = "chained"
[model]
name = "mlp"
personal = {personal}
[training]
rounds = {rounds}
local_steps = 5
batch_size = 8
lr = 0.1
max_update_bytes = 4096
[round]
min_nodes = {min_nodes}
quorum = {quorum}
open_s = 40
commit_s = {lease_s}
reveal_s = 20
aggregate_s = 40
settle_s = {settle_s}
challenge_s = 10
[reward]
round_budget = "1.000000000000000001"
"""


async def submit(
    world: World,
    *,
    rounds: int = 3,
    min_nodes: int = 3,
    quorum: int = 2,
    settle_s: int = 60,
    personal: str = "[]",
) -> JobId:
    return await world.submit(
        text=CHAINED,
        rounds=rounds,
        min_nodes=min_nodes,
        quorum=quorum,
        settle_s=settle_s,
        lease_s=LEASE_S,
        personal=personal,
    )


class Hop:
    """A hop as the chain has it."""

    def __init__(self, world: World, event: Event) -> None:
        args = event.args
        self.round, self.index = int(str(args["round"])), int(str(args["index"]))
        self.kind = int(str(args["kind"]))
        self.parent, self.model = _cid(args["parent"]), _cid(args["update"])
        self.samples = int(str(args["samples"]))
        self.at = world.mined_at(event)
        (self.name,) = (m.name for m in world.machines.values() if m.address == args["node"])


def hops(world: World, round_: int | None = None) -> list[Hop]:
    """In the order of the chain."""
    found = [Hop(world, event) for event in world.job_events("ContributionRevealed")]
    return [hop for hop in found if round_ in (None, hop.round)]


def leases(world: World, round_: int) -> list[str]:
    """The names of those whose turn it was, in order, whether they used it or not."""
    names = {m.address: m.name for m in world.machines.values()}
    return [names[e.args["node"]] for e in world.job_events("HopLeased") if e.args["round"] == round_]


def lap_starts(world: World) -> dict[int, Cid]:
    return {int(str(e.args["round"])): _cid(e.args["parent"]) for e in world.job_events("RoundOpened")}


async def loss(world: World, model: Cid) -> float:
    """Of a fresh trainer, on the requester's validation rows; infinite for what is no model."""
    data, spec = world.blob(model), world.spec()
    rows = world.blob(spec.validation)
    assert data is not None
    assert rows is not None
    try:
        return await MemoryTrainer().loss(model_config(spec), data, rows)
    except UpdateRefused:
        return float("inf")


def rewards(world: World, round_: int) -> dict[str, int]:
    """What each node that hopped earned in a lap by that, by name."""
    earned = world.earned_by_work(round_)
    return {hop.name: earned[world.machines[hop.name].address] for hop in hops(world, round_)}


def refusals(world: World, round_: int) -> dict[str, str]:
    """Why which nodes' hops were refused."""
    names = {machine.address: name for name, machine in world.machines.items()}
    return {names[entry.node]: entry.why for entry in world.evidence(round_).entries if not entry.accepted}


async def check_models(world: World) -> None:
    """Every hop goes on from what the chain offered it; every lap ends with the better of its last two."""
    laps = defaultdict[int, list[Hop]](list)
    for hop in hops(world):
        laps[hop.round].append(hop)
    starts, standing = lap_starts(world), world.state().terms.model
    published = {int(str(e.args["round"])): e for e in world.job_events("ModelPublished")}
    for round_, lap in sorted(laps.items()):
        assert standing == starts[round_] == lap[0].parent
        assert [hop.index for hop in lap] == list(range(len(lap)))
        assert {hop.kind for hop in lap} == {Kind.HOP}
        assert len({hop.name for hop in lap}) == len(lap), "one hop a node and lap"
        for before, hop in pairwise(lap):
            assert hop.parent in (before.model, before.parent)
        standing = lap[-1].parent
        if round_ in published:
            standing = _cid(published[round_].args["model"])
            assert standing in (lap[-1].model, lap[-1].parent)
            verdicts = await _check_verdicts(world, lap, published[round_])
            offered = [await loss(world, lap[-1].parent)]
            if not verdicts[-1].why.startswith(UNDELIVERED):
                offered.append(await loss(world, lap[-1].model))
            assert await loss(world, standing) == min(offered) < float("inf")
    assert world.state().model == standing


async def _check_verdicts(world: World, lap: list[Hop], published: Event) -> tuple[Verdict, ...]:
    """What made the model worse is refused, and what the evidence says is what the aggregator said."""
    round_, aggregator = lap[0].round, published.args["aggregator"]
    (machine,) = (m for m in world.machines.values() if m.address == aggregator)
    journal = Journal(machine.path / "journal.sqlite")
    verdicts = journal.verdicts(JobId(1), round_, _cid(published.args["model"]))
    assert verdicts is not None
    for hop, verdict in zip(lap, verdicts, strict=True):
        before, after = await loss(world, hop.parent), await loss(world, hop.model)
        assert not verdict.accepted or after <= before < float("inf")
    if world.is_settled(round_):
        evidence = world.evidence(round_)
        assert evidence.method == "hop-gain"
        assert evidence.parent == lap[0].parent
        for entry, verdict in zip(evidence.entries, verdicts, strict=True):
            assert entry.accepted is verdict.accepted or is_absence(verdict.why)
            assert entry.score >= 0 or not entry.accepted
    return verdicts


# -- what a crook makes of its hop --------------------------------------------------------------------------
def worse(model: bytes) -> bytes:
    """A sound file, every number of it far from where it was."""
    numbers = model[-128:]
    return model[:-128] + struct.pack("<32f", *(x + 3 for x in struct.unpack("<32f", numbers)))


def with_nan(model: bytes) -> bytes:
    return model[:-4] + struct.pack("<f", float("nan"))


def not_a_model(model: bytes) -> bytes:
    return b"\x80\x04\x95" + model[3:]


def _cid(digest: object) -> Cid:
    return Cid.from_digest(bytes.fromhex(str(digest).removeprefix("0x")))
