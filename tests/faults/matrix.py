"""Faults with names, and the four modes they strike, in the network of twins and in virtual time."""

from __future__ import annotations

import math
import random
import sqlite3
import struct
from array import array
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from dfl_ledger.errors import StoreUnavailable
from dfl_ledger.memory import MemoryLedger
from dfl_ledger.records import Cid, Event, JobId, Mode, Phase
from dfl_node.net.channel import PeerId
from dfl_node.net.memory import Fault as LinkFault
from dfl_node.net.memory_links import Links
from dfl_node.rounds import machine as rounds
from dfl_node.store.memory import Fault as StoreFault
from dfl_node.store.memory import MemoryStore, MemorySwarm
from dfl_node.store.unixfs import Assembly
from dfl_node.train.stage import Array
from dfl_node.train.trainer import ModelUpdate
from tests.node.modes import buffers, chains, pipelines
from tests.node.modes.machines import POLL_S, Machine, deny_writes, peer_id_of_machine
from tests.node.modes.world import Story, World, open_world, virtual_time

# After its deadline a phase, or a lease, waits for the last in the queue of those who advance it; each may
# have to try again once, after its own pause, and after the endpoint's.
GRACE_S = rounds.ADVANCE_GRACE_S + 3 * rounds.ADVANCE_SPREAD_S + 2 * rounds.RETRY_S + 4 * POLL_S
STRUCK = 2  # the round in which a fault begins
AWAY_S, STOPPED_S, CUT_S, SLOW_S, FULL_S, DOWN_S = 10.0, 30.0, 20.0, 30.0, 20.0, 20.0
SLOW_LINK_S = 0.2, 1.5  # seconds that a message takes
LOSS_EVERY_S, LOSS_S = 8.0, 0.5  # now and then everything is lost for a moment


class Fault(Enum):
    """What happens to one node, or to all."""

    KILLED = "SIGKILL, and it stays away"
    RESTARTED = "SIGKILL, and it is started again 10 s later"
    STOPPED = "SIGSTOP, and SIGCONT 30 s later"
    CUT_OFF = "its network is cut for 20 s; the chain is still there"
    SLOW_LINK = "messages come up to 1.5 s late, and some never"
    FLIPPED_BYTES = "serves its files with a bit flipped"
    WRONG_LAYOUT = "writes files of another layout"
    NAN = "writes NaN into its files"
    REPLAYED = "sends what it sent in an earlier round again"
    DISK_FULL = "its disk is full for 20 s"
    DISK_FULL_FOR_EVER = "its disk is full for ever"
    RPC_DOWN = "its RPC endpoint is down for 20 s"
    RPC_DOWN_FOR_ALL = "everybody's RPC endpoint is down for 20 s"

    @property
    def is_a_lie(self) -> bool:
        """The node works on, and its pieces are bad."""
        return self in (Fault.FLIPPED_BYTES, Fault.WRONG_LAYOUT, Fault.NAN, Fault.REPLAYED)

    @property
    def passes_after_s(self) -> float:
        """Of a lie or a death: until somebody ends it."""
        return {
            Fault.RESTARTED: AWAY_S,
            Fault.STOPPED: STOPPED_S,
            Fault.CUT_OFF: CUT_S,
            Fault.SLOW_LINK: SLOW_S,
            Fault.DISK_FULL: FULL_S,
            Fault.RPC_DOWN: DOWN_S,
            Fault.RPC_DOWN_FOR_ALL: DOWN_S,
        }.get(self, math.inf)


# -- a network whose files take the same ways as its messages -----------------------------------------------
class LinkedStore(MemoryStore):
    """Its blocks travel over the network's links; its disk may be full."""

    links: Links
    full = False

    async def put(self, data: bytes, *, pin: bool = True) -> Cid:
        if self.full:
            raise StoreUnavailable("the disk is full")
        return await super().put(data, pin=pin)

    async def get(
        self, cid: Cid, *, max_bytes: int, timeout_s: float = 30.0, providers: Sequence[str] = ()
    ) -> bytes:
        files, blocks = self._files.keys() | (), self._blocks.keys() | ()
        data = await super().get(cid, max_bytes=max_bytes, timeout_s=timeout_s, providers=providers)
        if self.full:  # what came is right all the same, and cannot be kept
            self._files = {cid: file for cid, file in self._files.items() if cid in files}
            self._blocks = {digest: block for digest, block in self._blocks.items() if digest in blocks}
        return data

    async def _fill_from(self, peer: str, assembly: Assembly, liars: set[str]) -> None:
        one, other, links = PeerId(self.peer_id), PeerId(peer), self.links
        if links.are_cut(one, other) or links.lose(one, other) or links.hold(one, other):
            return
        await trio.sleep(2 * links.delay_s(one, other))
        await super()._fill_from(peer, assembly, liars)


class LinkedSwarm(MemorySwarm):
    def __init__(self, links: Links) -> None:
        super().__init__()
        self._links = links

    def store(self, peer_id: str) -> MemoryStore:
        store = LinkedStore(peer_id, self)
        store.links = self._links
        return store


def play(
    story: Story, path: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int = 1, trainers: int = 3
) -> None:
    """Run a story among a requester and some trainers, called "a", "b", "c" ..."""
    with virtual_time(monkeypatch, seed) as clock:

        async def main() -> None:
            async with open_world(path, clock, seed) as world:
                world.swarm = LinkedSwarm(world.network.links)
                await world.start("requester", trains=False)
                for name in "abcdefgh"[:trainers]:
                    await world.start(name)
                await story(world)

        trio.run(main, clock=clock)


# -- the modes ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    """A job of one mode, and where it hurts most."""

    mode: Mode
    rounds: int
    trainers: int
    submit: Callable[[World], Awaitable[JobId]]
    at_work: Callable[[World], Awaitable[str]]  # when somebody is in the middle of its work: who


async def _training(world: World) -> str:
    """b, in the middle of a training."""
    trained = world.machines["b"].trained
    await world.until(lambda: max(trained, default=0) >= STRUCK, f"b trains for round {STRUCK} or later")
    await trio.sleep(1)
    return "b"


async def hopping(world: World, position: int = 1) -> str:
    """Who holds a lease of a lap, by default the second, in the middle of its training."""
    ledger = MemoryLedger(world.chain, world.machines["requester"].address)

    def holder() -> str:
        lease = ledger.lease(JobId(1)) if world.state().round == STRUCK else None
        return name_of(world, lease.node) if lease is not None and lease.position == position else ""

    await world.until(
        lambda: bool(holder()) and world.machines[holder()].trained[STRUCK] > 0,
        f"who has position {position} in a lap trains",
    )
    await trio.sleep(1)
    return holder()


async def _second_stage(world: World) -> str:
    """Who holds the last stage, between two recovery points."""
    await world.until_round(STRUCK, Phase.COMMIT)
    await pipelines.until_step(world, 6)
    return pipelines.holder(world, 1)


JOBS = {
    Mode.SYNC: Job(Mode.SYNC, 3, 3, lambda world: world.submit(rounds=3), _training),
    Mode.ASYNC: Job(Mode.ASYNC, 6, 3, lambda world: buffers.submit(world, rounds=6), _training),
    Mode.CHAINED: Job(Mode.CHAINED, 3, 3, lambda world: chains.submit(world, rounds=3), hopping),
    Mode.PIPELINE: Job(
        Mode.PIPELINE,
        2,
        4,
        lambda world: pipelines.submit(world, rounds=2, steps=12, commit_s=90),
        _second_stage,
    ),
}


# -- the faults ---------------------------------------------------------------------------------------------
async def strike(world: World, mode: Mode, fault: Fault, name: str, *, for_s: float | None = None) -> None:
    """The fault begins, and has passed when this returns: after `for_s`, or when it passes by itself."""
    begin(world, mode, fault, name)
    lasts_s = fault.passes_after_s if for_s is None else for_s
    if lasts_s == math.inf:
        return
    if fault is Fault.SLOW_LINK:
        await _bad_weather(world, name, lasts_s)
    else:
        await trio.sleep(lasts_s)
    await end(world, fault, name)


def begin(world: World, mode: Mode, fault: Fault, name: str) -> None:
    machine = world.machines[name]
    match fault:
        case Fault.KILLED | Fault.RESTARTED:
            world.kill(name)
        case Fault.STOPPED:
            world.freeze(name)
        case Fault.CUT_OFF:
            for other in _others(world, name):
                world.network.inject(LinkFault.PARTITION, _peer(name), other)
        case Fault.SLOW_LINK:
            _delay(world, name, SLOW_LINK_S[1])
        case Fault.DISK_FULL | Fault.DISK_FULL_FOR_EVER:
            _set_disk_full(world, name, True)
        case Fault.RPC_DOWN:
            machine.rpc_down_until = math.inf
        case Fault.RPC_DOWN_FOR_ALL:
            world.rpc_down_until = math.inf
        case Fault.FLIPPED_BYTES:
            machine.fault = machine.store.fault = StoreFault.CORRUPT
            machine.blocked |= {"publish_model", "settle"}  # it alone would have what it does not serve
        case Fault.REPLAYED:
            machine.forge_call = _replaying(world, machine)
        case Fault.NAN:
            machine.forge_array = _array_with_nan
            _forge_files(machine, mode, chains.with_nan)
        case Fault.WRONG_LAYOUT:
            machine.forge_snapshot = chains.not_a_model
            _forge_files(machine, mode, chains.not_a_model)


async def end(world: World, fault: Fault, name: str) -> None:
    """A node that was killed runs again, whatever killed it; a disk that is full for ever stays full."""
    machine = world.machines[name]
    match fault:
        case Fault.KILLED | Fault.RESTARTED:
            await world.start(name)
        case Fault.STOPPED:
            world.thaw(name)
        case Fault.CUT_OFF:
            for other in _others(world, name):
                world.network.heal(_peer(name), other)
        case Fault.SLOW_LINK:
            _delay(world, name, 0.0)
        case Fault.DISK_FULL:
            _set_disk_full(world, name, False)
        case Fault.RPC_DOWN:
            machine.rpc_down_until = 0.0
        case Fault.RPC_DOWN_FOR_ALL:
            world.rpc_down_until = 0.0
        case Fault.FLIPPED_BYTES:
            machine.fault = machine.store.fault = None
            machine.blocked -= {"publish_model", "settle"}
        case Fault.REPLAYED | Fault.NAN | Fault.WRONG_LAYOUT:
            machine.forge = machine.forge_model = machine.forge_call = None
            machine.forge_array = machine.forge_snapshot = None


async def _bad_weather(world: World, name: str, lasts_s: float) -> None:
    """Each second other delays, as of packets that are sent again; now and then some messages never come."""
    draw = random.Random(name)  # noqa: S311
    until = world.now() + lasts_s
    next_loss = world.now() + LOSS_EVERY_S
    while world.now() < until:
        _delay(world, name, draw.uniform(*SLOW_LINK_S))
        await trio.sleep(1)
        if world.now() >= next_loss:
            next_loss += LOSS_EVERY_S
            for other in _others(world, name):
                world.network.inject(LinkFault.DROP, _peer(name), other)
            await trio.sleep(LOSS_S)
            for other in _others(world, name):
                world.network.heal(_peer(name), other)


def _delay(world: World, name: str, latency_s: float) -> None:
    for other in _others(world, name):
        world.network.set_latency(_peer(name), other, latency_s)


def _set_disk_full(world: World, name: str, full: bool) -> None:
    """Store, journal and ledger: what is there can be read, and nothing written."""
    machine = world.machines[name]
    assert isinstance(machine.store, LinkedStore)
    machine.disk_full = machine.store.full = full
    if name in world.running:
        index: Any = world.running[name].parts.index
        index._db.set_authorizer(deny_writes if full else None)


def _forge_files(machine: Machine, mode: Mode, forge: Callable[[bytes], bytes]) -> None:
    def forge_update(update: ModelUpdate) -> ModelUpdate:
        return replace(update, delta=forge(update.delta))

    if mode is Mode.CHAINED:  # a hop is a whole model
        machine.forge_model = forge
    else:
        machine.forge = forge_update


def _replaying(world: World, machine: Machine) -> Callable[[str, tuple[Any, ...]], tuple[Any, ...]]:
    """On chain it names its newest piece of an earlier round that got a model."""

    def earlier(round_: int) -> Cid | None:
        published = {event.args["round"] for event in world.job_events("ModelPublished")}
        mine = [e for e in world.job_events("ContributionRevealed") if e.args["node"] == machine.address]
        old = [e for e in mine if e.args["round"] in published and int(str(e.args["round"])) < round_]
        return _cid(old[-1].args["update"]) if old else None

    def forge(call: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        match call, args:
            case "commit" | "reveal", (contribution, salt):
                return replace(contribution, cid=earlier(contribution.round) or contribution.cid), salt
            case "hop", (job, round_, accept, model, samples):
                return job, round_, accept, earlier(round_) or model, samples
            case _:
                return args

    return forge


def _array_with_nan(given: Array) -> Array:
    numbers = array("f", given.data)
    numbers[0] = math.nan
    return replace(given, data=numbers.tobytes())


# -- what must be true afterwards ---------------------------------------------------------------------------
def check_deadlines(world: World, outages_s: float = 0.0) -> None:
    """No phase of any round, and no lease of a lap, outlived its deadline by more than the grace."""
    limits = [
        event
        for event in world.chain.blocks.events(0, 1 << 62)
        if event.name in ("PhaseChanged", "HopLeased", "JobEnded")
    ]
    assert limits[-1].name == "JobEnded"
    for begun, ended in pairwise(limits):
        late_s = world.mined_at(ended) - int(str(begun.args["deadline"]))
        assert late_s <= GRACE_S + outages_s, f"{_told(begun)} ended {late_s} s after its deadline"


@dataclass(frozen=True)
class Entry:
    """What a settlement says of one piece."""

    round: int
    name: str
    cid: Cid
    why: str  # it was refused; "" = it was not
    reward_wei: int  # of its node's work in this round


def entries(world: World, *, since: float = 0.0) -> list[Entry]:
    """Of every piece that was revealed at or after `since` (Unix seconds) in a round that was settled."""
    found = []
    revealed = {
        (event.args["round"], event.args["index"]): world.mined_at(event)
        for event in world.job_events("ContributionRevealed")
    }
    for event in world.job_events("Settled"):
        evidence = world.evidence(int(str(event.args["round"])))
        rewards = world.earned_by_work(evidence.round)
        found += [
            Entry(
                round=evidence.round,
                name=name_of(world, entry.node),
                cid=entry.cid,
                why="" if entry.accepted else entry.why or "without a reason",
                reward_wei=rewards[entry.node],
            )
            for entry in evidence.entries
            if revealed[evidence.round, entry.index] >= since
        ]
    return found


def made_so_far(world: World, name: str) -> frozenset[Cid]:
    """The pieces that a machine has journalled."""
    with closing(sqlite3.connect(world.machines[name].path / "journal.sqlite")) as db:
        return frozenset(Cid.parse(cid) for (cid,) in db.execute("SELECT cid FROM work"))


def numbers(world: World, model: Cid) -> tuple[float, ...]:
    """Of a model file of the twin's trainer."""
    data = world.blob(model)
    assert data is not None
    (length,) = struct.unpack_from("<Q", data)  # of the header of safetensors
    return struct.unpack_from(f"<{(len(data) - 8 - length) // 4}f", data, 8 + length)


def published(world: World, round_: int) -> Cid:
    (event,) = (e for e in world.job_events("ModelPublished") if e.args["round"] == round_)
    return _cid(event.args["model"])


def _told(event: Event) -> str:
    return f"{event.name} {event.args}"


def _others(world: World, name: str) -> list[PeerId]:
    return [_peer(other) for other in world.machines if other != name]


def _peer(name: str) -> PeerId:
    return PeerId(peer_id_of_machine(name))


def name_of(world: World, address: object) -> str:
    (name,) = (m.name for m in world.machines.values() if m.address == address)
    return name


def _cid(digest: object) -> Cid:
    return Cid.from_digest(bytes.fromhex(str(digest).removeprefix("0x")))
