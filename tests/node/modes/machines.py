"""Machines, and the nodes that run on them: real journals and indexes, and twins of all that is far away."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio

from dfl_ledger.accounts import Account
from dfl_ledger.errors import ChainUnreachable, DflError, StoreUnavailable
from dfl_ledger.memory import MemoryLedger
from dfl_ledger.records import Address, JobId
from dfl_node import jobspec
from dfl_node.config import Role
from dfl_node.identity import NodeKey
from dfl_node.journal import Journal
from dfl_node.modes.evidence_keeper import EvidenceKeeper
from dfl_node.modes.job import JobPart
from dfl_node.net.binding import peer_id_of, sign_binding
from dfl_node.operator import Operator
from dfl_node.parts import Parts
from dfl_node.store.memory import Fault as StoreFault
from dfl_node.store.memory import MemoryStore
from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.memory_stage import MemoryStage
from dfl_node.train.stage import Array, StageConfig
from dfl_node.train.trainer import Aggregate, Assignment, DataConfig, ModelUpdate, Shard

if TYPE_CHECKING:
    from tests.node.modes.world import World

POLL_S = 0.25
TRAIN_S = 2.0
REGISTRY = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")


class When(Enum):
    BEFORE = "before"
    AFTER = "after"


@dataclass
class Trap:
    """Does something the first time a node is about to make a call, or has made it."""

    call: str
    when: When
    spring: Callable[[Running], None]
    of: str | None = None  # the machine's name; None = whoever comes first
    round: int = 1  # not before this round
    sprung: bool = False


@dataclass
class Machine:
    """What outlives a node's process."""

    name: str
    path: Path
    account: Any
    peer_key: bytes
    store: MemoryStore
    trains: bool
    shard: int
    fault: StoreFault | None = None  # of its store, towards others
    forge: Callable[[ModelUpdate], ModelUpdate] | None = None  # what it makes of its own updates
    forge_model: Callable[[bytes], bytes] | None = None  # what it makes of its own hops
    train_s: float = TRAIN_S
    memory_bytes: int = 4 << 30  # that its trainer may take
    share_rows: bool = True  # its owner allows pipelines
    stage_s: float = 0.02  # of a call of a stage
    forge_array: Callable[[Array], Array] | None = None  # what its stages send
    forge_snapshot: Callable[[bytes], bytes] | None = None
    frozen: bool = False
    forge_shard: Callable[[Shard], Shard] | None = None  # what it opens to a jury
    blocked: set[str] = field(default_factory=set)  # ledger calls that never get through
    rpc_down_until: float = 0.0  # Unix seconds; of its own RPC endpoint
    forge_call: Callable[[str, tuple[Any, ...]], tuple[Any, ...]] | None = None  # what it sends to the chain
    disk_full: bool = False  # the journal can be read and not written
    trained: Counter[int] = field(default_factory=Counter)  # round -> trainings begun

    @property
    def node_key(self) -> NodeKey:
        """As the registry has it."""
        return NodeKey(hashlib.sha256(f"node key of {self.name}".encode()).digest())

    @property
    def address(self) -> Address:
        return Address(str(self.account.address))


class Running:
    """A node that runs on a machine, as far as jobs are concerned; see `dfl_node.peer`."""

    def __init__(self, world: World, machine: Machine, parts: Parts, nursery: trio.Nursery) -> None:
        self.world = world
        self.machine = machine
        self.parts = parts
        self.jobs: dict[JobId, JobPart] = {}
        self.given_up: list[DflError] = []
        self.roles = frozenset({Role.TRAIN if machine.trains else Role.REQUEST})
        self.evidence = EvidenceKeeper(parts)
        self._considered: set[JobId] = set()
        self._nursery = nursery

    @property
    def operator(self) -> Operator:
        """A NodeService on this node."""

        async def tell_news() -> None:
            self.world.told += 1

        node = SimpleNamespace(
            parts=self.parts,
            jobs=self.jobs,
            trainer=self.parts.trainer,
            config=SimpleNamespace(roles=self.roles),
            deployment=SimpleNamespace(chain_id=self.world.chain.chain_id, addresses={}),
            tell_news=tell_news,
        )
        return Operator(node)  # type: ignore[arg-type]

    async def follow_chain(self) -> None:
        while True:
            try:
                events = await trio.to_thread.run_sync(self.parts.index.step)
            except DflError:
                await trio.sleep(1)
                continue
            for event in events:
                job = event.args.get("job")
                if event.name == "JobCreated":
                    self.consider(JobId(int(str(job))))
                elif event.name == "Settled":
                    self.evidence.notify()
                if job in self.jobs:
                    self.jobs[JobId(int(str(job)))].notify()
            if not events:
                await trio.sleep(POLL_S)

    def consider(self, job: JobId) -> None:
        if job not in self._considered:
            self._considered.add(job)
            self._nursery.start_soon(self._run_job, job)

    async def _run_job(self, job: JobId) -> None:
        while True:
            try:
                state = await trio.to_thread.run_sync(self.parts.ledger.job, job)
                assert state is not None
                data = await self.parts.store.get(state.terms.spec, max_bytes=jobspec.MAX_SPEC_BYTES)
                break
            except DflError:
                await trio.sleep(3)
        part = JobPart(job, jobspec.decode(data), self.parts, bytes_sent=lambda: 0, clock=self.world.now)
        self.jobs[job] = part
        try:
            await part.run()
        except* DflError as failures:
            self.given_up += failures.exceptions  # type: ignore[arg-type]


class WatchedLedger:
    """A MemoryLedger behind an RPC endpoint that may be down, lose answers, or be the scene of a murder."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world, self._machine = world, machine
        self._ledger = MemoryLedger(world.chain, machine.address)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)
        if not callable(found):
            return found

        def call(*args: Any) -> Any:
            self._world.spring(self._machine, name, When.BEFORE)
            dead = self._machine.name not in self._world.running or self._machine.frozen
            down = self._world.now() < max(self._world.rpc_down_until, self._machine.rpc_down_until)
            if dead or down or name in self._machine.blocked:
                raise ChainUnreachable("the RPC endpoint does not answer", why="it is down")
            forge = self._machine.forge_call
            result = found(*(forge(name, args) if forge else args))
            self._world.spring(self._machine, name, When.AFTER)
            if self._world.lose_answer(name):
                raise ChainUnreachable("the RPC endpoint does not answer", why="the answer was lost")
            return result

        return call


class WatchedTrainer(MemoryTrainer):
    def __init__(self, world: World, machine: Machine) -> None:
        super().__init__(train_s=machine.train_s, stage_s=machine.stage_s)
        self._world, self._machine = world, machine

    async def train(self, assignment: Assignment) -> ModelUpdate:
        self._machine.trained[assignment.round] += 1
        self._world.spring(self._machine, "train", When.BEFORE)
        update = await super().train(assignment)
        return self._machine.forge(update) if self._machine.forge else update

    async def shard(self, data: DataConfig) -> Shard:
        self._world.spring(self._machine, "shard", When.BEFORE)
        found = await super().shard(data)
        return self._machine.forge_shard(found) if self._machine.forge_shard else found

    async def aggregate(self, *args: Any, **named: Any) -> Aggregate:
        made = await super().aggregate(*args, **named)
        forge = self._machine.forge_model
        return replace(made, model=forge(made.model)) if forge else made

    async def open_stage(
        self, config: StageConfig, parent: bytes | None, snapshot: bytes | None
    ) -> MemoryStage:
        stage = await super().open_stage(config, parent, snapshot)
        forge_stage(stage, self._machine)
        return stage


def forge_stage(stage: MemoryStage, machine: Machine) -> None:
    """From here on the stage sends what the machine makes of it, whenever the machine begins to lie."""
    honest, honest_snapshot = (stage.forward, stage.backward, stage.last), stage.snapshot

    def forged(made: Array | None) -> Any:
        return machine.forge_array(made) if machine.forge_array and made is not None else made

    async def forward(micro: int, x: Array) -> Array:
        return forged(await honest[0](micro, x))  # type: ignore[no-any-return]

    async def backward(micro: int, gradient: Array) -> Array | None:
        return forged(await honest[1](micro, gradient))  # type: ignore[no-any-return]

    async def last(micro: int, x: Array, labels: Array) -> tuple[float, Array | None]:
        loss, gradient = await honest[2](micro, x, labels)
        return loss, forged(gradient)

    async def snapshot() -> bytes:
        made = await honest_snapshot()
        return machine.forge_snapshot(made) if machine.forge_snapshot else made

    stage.forward, stage.backward, stage.last = forward, backward, last  # type: ignore[method-assign]
    stage.snapshot = snapshot  # type: ignore[method-assign]


class WatchedJournal(Journal):
    def __init__(self, world: World, machine: Machine) -> None:
        self._world, self._machine = world, machine
        super().__init__(machine.path / "journal.sqlite")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with super()._transaction() as db:
            if self._machine.disk_full:
                db.set_authorizer(deny_writes)
            yield db

    def record(self, *args: Any, **named: Any) -> Any:
        return self._watched("record", super().record, *args, **named)

    def bind_scores(self, *args: Any, **named: Any) -> Any:
        return self._watched("bind_scores", super().bind_scores, *args, **named)

    def promise(self, *args: Any, **named: Any) -> Any:
        return self._watched("promise", super().promise, *args, **named)

    def _watched(self, name: str, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        self._world.spring(self._machine, name, When.BEFORE)
        if self._machine.name not in self._world.running:
            raise StoreUnavailable("a dead process writes no journal")
        result = call(*args, **named)
        self._world.spring(self._machine, name, When.AFTER)
        return result


def deny_writes(action: int, *_: Any) -> int:
    """For `set_authorizer`: a database on a full disk can still be read."""
    writes = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)
    return sqlite3.SQLITE_DENY if action in writes else sqlite3.SQLITE_OK


def is_absence(why: str) -> bool:
    """True if a piece was refused because nobody brought it, or not the right bytes."""
    return "nobody delivered" in why or "wrong bytes" in why


# -- keys, the same in every story ------------------------------------------------------------------------
@cache
def account_of(name: str) -> Any:
    return Account.from_key(hashlib.sha256(f"wallet of {name}".encode()).digest())


@cache
def binding_of(name: str, chain_id: int) -> Any:
    key = hashlib.sha256(name.encode()).digest()
    return sign_binding(account_of(name), peer_key=key, chain_id=chain_id, registry=REGISTRY)


def peer_id_of_machine(name: str) -> str:
    return peer_id_of(hashlib.sha256(name.encode()).digest())
