"""A network of twins in one trio loop and in virtual time: hours pass in a second, and every run is the same.

A `Machine` is what survives a SIGKILL: wallet, node key, the files on its disk. A `Running` is a node on it,
with a real journal and a real index. Kill = cancel its tasks; restart = new objects on the same machine.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
import trio
from trio.testing import MockClock

from dfl_ledger.errors import DflError
from dfl_ledger.evidence import MAX_EVIDENCE_BYTES, Evidence
from dfl_ledger.indexer import Indexer
from dfl_ledger.memory import MemoryChain, MemoryLedger
from dfl_ledger.memory_chain import CAP_WEI, ETHER
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import Address, Cid, Event, JobId, JobState, Mode, Phase
from dfl_ledger.rewards import Pots
from dfl_node import jobspec
from dfl_node.holders import Holders
from dfl_node.jobspec import JobSpec
from dfl_node.journal import Journal
from dfl_node.modes.pipeline.lines import Lines
from dfl_node.net.channel import PeerId
from dfl_node.net.memory import MemoryNetwork
from dfl_node.parts import Parts
from dfl_node.specrules import model_config
from dfl_node.store.memory import Fault as StoreFault
from dfl_node.store.memory import MemorySwarm
from dfl_node.store.unixfs import Assembly
from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.trainer import DataConfig, WeightedUpdate
from tests.node.modes import chains, pipelines
from tests.node.modes.machines import (
    POLL_S,
    Machine,
    Running,
    Trap,
    WatchedJournal,
    WatchedLedger,
    WatchedTrainer,
    When,
    account_of,
    binding_of,
    is_absence,
    peer_id_of_machine,
)
from tests.node.modes.terms import BUDGET_WEI, COMPUTE_WEI, JUDGING_WEI, SCORE_S, SPEC, STAKE_WEI, T0

__all__ = [
    "BUDGET_WEI",
    "COMPUTE_WEI",
    "JUDGING_WEI",
    "SCORE_S",
    "STAKE_WEI",
    "Machine",
    "Running",
    "When",
    "World",
    "cid_of",
    "open_world",
    "play",
    "virtual_time",
]

T = TypeVar("T")
Story = Callable[["World"], Awaitable[None]]


class World:
    """The chain, the network, and every machine."""

    def __init__(self, path: Path, clock: MockClock, nursery: trio.Nursery, seed: int) -> None:
        self.clock = clock
        self.chain = MemoryChain(lambda: int(self.now()), seed=b"story %d" % seed)
        self.network = MemoryNetwork()
        self.swarm = MemorySwarm()
        self.machines: dict[str, Machine] = {}
        self.running: dict[str, Running] = {}
        self.traps: list[Trap] = []
        self.rpc_down_until = 0.0
        self.told = 0  # announcements of new jobs
        self.lose_answer: Callable[[str], bool] = lambda call: False
        self._path = path
        self._nursery = nursery
        self._scopes: dict[str, trio.CancelScope] = {}

    def now(self) -> float:
        return T0 + self.clock.current_time()

    # -- machines and nodes ---------------------------------------------------------------------------
    def machine(self, name: str, *, trains: bool = True, evaluates: bool = True) -> Machine:
        """A new machine with a funded and registered wallet, and stake if it judges rounds."""
        account, peer_key = account_of(name), hashlib.sha256(name.encode()).digest()
        path = self._path / name
        path.mkdir()
        store = self.swarm.store(peer_id_of_machine(name))
        machine = Machine(name, path, account, peer_key, store, trains, len(self.machines) + 1)
        self.machines[name] = machine
        self.chain.fund(machine.address, vnx_wei=0 if trains else 1000 * ETHER)
        if evaluates:
            self.chain.fund(machine.address, vnx_wei=STAKE_WEI)
        ledger = MemoryLedger(self.chain, machine.address)
        ledger.register(machine.node_key.public, STAKE_WEI if evaluates else 0, [])
        if evaluates:
            ledger.enlist()
        machine.store.fault = StoreFault.MISSING  # until it runs
        return machine

    async def start(self, name: str, *, trains: bool = True) -> Running:
        """Start a node, on a new machine if there is none of this name."""
        machine = self.machines.get(name) or self.machine(name, trains=trains)
        assert name not in self.running
        running: Running = await self._nursery.start(self._run, machine)
        return running

    def kill(self, name: str) -> None:
        """As by SIGKILL: nothing more happens on this machine, and nobody is told."""
        if name in self.running:
            self.machines[name].store.fault = StoreFault.MISSING
            del self.running[name]
            self._scopes.pop(name).cancel()

    def freeze(self, name: str) -> None:
        """As by SIGSTOP: connections stay, and nothing comes from this machine until `thaw`."""
        machine = self.machines[name]
        machine.frozen, machine.store.fault = True, StoreFault.MISSING
        self.network.freeze(PeerId(peer_id_of_machine(name)))

    def thaw(self, name: str) -> None:
        """As by SIGCONT."""
        machine = self.machines[name]
        machine.frozen = False
        machine.store.fault = machine.fault if name in self.running else StoreFault.MISSING
        self.network.thaw(PeerId(peer_id_of_machine(name)))

    async def _run(self, machine: Machine, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as scope:
            self._scopes[machine.name] = scope
            async with AsyncExitStack() as stack:
                nursery = await stack.enter_async_context(trio.open_nursery())
                node = await self._open(machine, stack, nursery)
                self.running[machine.name] = node
                machine.store.fault = machine.fault
                nursery.start_soon(node.follow_chain)
                nursery.start_soon(node.evidence.run)
                for row in node.parts.rows.jobs():
                    node.consider(row.job)
                task_status.started(node)
                await trio.sleep_forever()

    async def _open(self, machine: Machine, stack: AsyncExitStack, nursery: trio.Nursery) -> Running:
        binding = binding_of(machine.name, self.chain.chain_id)
        channel = await stack.enter_async_context(
            self.network.open_channel(binding, peer_key=machine.peer_key)
        )
        for other in tuple(self.network.members.values()):
            if other is not channel:
                with suppress(DflError):
                    await channel.connect(other.multiaddrs[0])
        ledger: Any = WatchedLedger(self, machine)
        path = machine.path / "ledger.sqlite"
        index = Indexer(path, MemoryLedger(self.chain, machine.address), deployment_key="d", start_block=0)
        index._ledger = ledger  # opened while the chain answers
        stack.callback(index.close)
        rows = LedgerRows(path)
        stack.callback(rows.close)
        data = {"digits": DataConfig("digits", None, (machine.shard, machine.shard, 12), None)}
        box: list[Running] = []

        async def limit_for(job: JobId, node: Address) -> int | None:
            if job not in box[0].jobs or not (ledger.active_round(job, node) or rows.seats_of(node, job)):
                return None
            part = box[0].jobs[job]
            return max(part.spec.training.max_update_bytes, part.max_piece_bytes, MAX_EVIDENCE_BYTES)

        parts = Parts(
            ledger=ledger,
            index=index,
            rows=rows,
            store=machine.store,
            channel=channel,
            holders=Holders(channel, machine.store, limit_for),
            trainer=WatchedTrainer(self, machine),
            journal=WatchedJournal(self, machine),
            data=data if machine.trains else {},
            trains=machine.trains,
            share_rows=machine.share_rows,
            node_key=machine.node_key,
            lines=Lines(channel),
            trainer_memory_bytes=machine.memory_bytes,
        )
        box.append(Running(self, machine, parts, nursery))
        return box[0]

    # -- what happens to them -------------------------------------------------------------------------
    def trap(self, call: str, when: When, spring: Callable[[Running], None], **where: Any) -> Trap:
        self.traps.append(Trap(call, when, spring, **where))
        return self.traps[-1]

    def spring(self, machine: Machine, call: str, when: When) -> None:
        node = self.running.get(machine.name)
        for trap in self.traps:
            if (
                node is not None
                and not trap.sprung
                and (trap.call, trap.when) == (call, when)
                and trap.of in (None, machine.name)
                and self.round >= trap.round
            ):
                trap.sprung = True
                trap.spring(node)

    @property
    def round(self) -> int:
        """Of the newest job."""
        return max((job.round for job in self.chain.jobs.jobs.values()), default=0)

    # -- jobs -----------------------------------------------------------------------------------------
    async def submit(
        self,
        *,
        rounds: int = 3,
        min_nodes: int = 3,
        quorum: int = 2,
        settle_s: int = 60,
        text: str = SPEC,
        **more: Any,
    ) -> JobId:
        """As the node "requester" does it. `more` are other fields of a spec `text`."""
        parts = self.running["requester"].parts
        spec = jobspec.parse(
            text.format(rounds=rounds, min_nodes=min_nodes, quorum=quorum, settle_s=settle_s, **more)
        )
        model = await parts.trainer.init_model(model_config(spec), spec.training.seed)
        validation = await parts.store.put(await parts.trainer.validation_rows(spec.app))
        spec = spec.with_validation(validation)
        model_cid, spec_cid = await parts.store.put(model), await parts.store.put(spec.encode())
        return MemoryLedger(self.chain, parts.ledger.address).create_job(spec.terms(spec_cid, model_cid))

    def state(self, job: JobId = JobId(1)) -> JobState:  # noqa: B008  an int
        return self.chain.jobs.jobs[job].state()

    def job_events(self, name: str) -> list[Event]:
        return [e for e in self.chain.blocks.events(0, 1 << 62) if e.name == name]

    def mined_at(self, event: Event) -> int:
        """Unix seconds."""
        return self.chain.blocks._mined[event.block].timestamp

    def contributions(self, name: str) -> list[int]:
        """The rounds in which a machine's node revealed."""
        me = self.machines[name].address
        return [
            int(str(e.args["round"])) for e in self.job_events("ContributionRevealed") if e.args["node"] == me
        ]

    async def until(self, holds: Callable[[], bool], what: str, within_s: float = 3600) -> None:
        with trio.move_on_after(within_s) as patience:
            while not holds():  # noqa: ASYNC110  polling costs nothing in virtual time
                await trio.sleep(POLL_S)
        assert not patience.cancelled_caught, f"in {within_s} s it never came to this: {what}"

    async def until_round(self, round_: int, phase: Phase) -> None:
        """The phase has begun; a short one may be over by now."""
        await self.until(
            lambda: any(
                (e.args["round"], e.args["phase"]) == (round_, int(phase))
                for e in self.job_events("PhaseChanged")
            ),
            f"round {round_} is in {phase.name}",
        )

    async def until_over(self, job: JobId = JobId(1)) -> JobState:  # noqa: B008
        """The job has ended, and every node that runs has nothing left to do for it."""
        await self.until(lambda: self.state(job).phase.terminal, "the job ends")
        await self.until(
            lambda: all(job in n.jobs and n.jobs[job].closed.is_set() for n in self.running.values()),
            "every node is done with the job",
        )
        await trio.sleep(20)  # the challenge window, and the index of everybody
        return self.state(job)

    # -- checks ---------------------------------------------------------------------------------------
    def blob(self, cid: Cid) -> bytes | None:
        """A file from whichever disk has it."""
        for store in self.swarm.stores.values():
            assembly = Assembly(cid, 1 << 24)
            store._fill_here(assembly)
            if assembly.done:
                return assembly.data()
        return None

    def is_settled(self, round_: int) -> bool:
        return (1, round_) in self.chain.distributor.settlements

    def settled(self, round_: int) -> tuple[Cid, int]:
        """The evidence of the settlement that stands, and what it pays in all."""
        event = [e for e in self.job_events("Settled") if e.args["round"] == round_][-1]
        return cid_of(event.args["evidence"]), int(str(event.args["total"]))

    def evidence(self, round_: int) -> Evidence:
        data = self.blob(self.settled(round_)[0])
        assert data is not None
        return Evidence.decode(data)

    def earned_by_work(self, round_: int) -> dict[Address, int]:
        """What each account got in a round, without its pay for judging."""
        evidence = self.evidence(round_)
        facts, pot_wei = evidence.facts, Pots.of(evidence.shares).evaluator_wei
        return {
            leaf.account: leaf.reward_wei
            - (pot_wei // len(facts.ballots) if leaf.account in facts.judges else 0)
            for leaf in evidence.leaves
        }

    async def check_models(self) -> None:
        """Each published model is what a fresh trainer makes of the updates that its aggregator accepted.

        Those who judged the round, where it was settled, say the same of each update.
        """
        spec, parent = self.spec(), self.state().terms.model
        if spec.mode is Mode.PIPELINE:
            await pipelines.check_models(self)
            return
        if spec.mode is Mode.CHAINED:
            await chains.check_models(self)
            return
        models = [parent]  # in the order of publication
        for event in self.job_events("ModelPublished"):
            round_, model = int(str(event.args["round"])), cid_of(event.args["model"])
            (machine,) = (m for m in self.machines.values() if m.address == event.args["aggregator"])
            journal = Journal(machine.path / "journal.sqlite")
            verdicts = journal.verdicts(JobId(1), round_, model)
            assert verdicts is not None
            refused = {index for index, verdict in enumerate(verdicts) if not verdict.accepted}
            if self.is_settled(round_):
                judged = {entry.index for entry in self.evidence(round_).entries if not entry.accepted}
                unseen = {index for index, verdict in enumerate(verdicts) if is_absence(verdict.why)}
                assert refused - unseen <= judged  # what did not come to one may have come to the others
            updates = []
            for row in self.job_events("ContributionRevealed"):
                if row.args["round"] == round_ and row.args["index"] not in refused:
                    data = self.blob(cid_of(row.args["update"]))
                    assert data is not None
                    staleness = models[::-1].index(cid_of(row.args["parent"]))
                    updates.append(WeightedUpdate(data, int(str(row.args["samples"])), staleness))
            parent_bytes = self.blob(parent)
            assert parent_bytes is not None
            again = await MemoryTrainer().aggregate(
                model_config(spec), parent_bytes, updates, max_update_bytes=4096
            )
            assert self.blob(model) == again.model, f"round {round_}"
            parent = model
            models.append(model)
        assert self.state().model == parent

    def spec(self) -> JobSpec:
        data = self.blob(self.state().terms.spec)
        assert data is not None
        return jobspec.decode(data)

    async def claim_all(self) -> int:
        """Everybody claims twice; what the first time paid."""
        total_wei = 0
        for node in self.running.values():
            total_wei += int((await node.operator.claim(None))["total_wei"])
            assert (await node.operator.claim(None))["total_wei"] == "0"
        return total_wei

    def check_money(self) -> None:
        """Nothing came from nowhere, nothing was paid twice, nothing is held that nobody can claim."""
        chain, paid = self.chain, defaultdict[tuple[int, str], int](int)
        burned = sum(
            int(str(e.args["slashed"])) - int(str(e.args["reward"])) for e in self.job_events("Slashed")
        )
        assert sum(chain.token.balances.values()) == CAP_WEI - burned
        for number, job in chain.jobs.jobs.items():
            escrow = job.terms.rounds * job.terms.round_budget_wei
            assert 0 <= job.spent_wei + job.refunded_wei <= escrow
            settled = [s for (j, _), s in sorted(chain.distributor.settlements.items()) if j == number]
            assert job.spent_wei == (settled[-1].total_wei if settled else 0)
        for event in self.job_events("Claimed"):
            payee = str(event.args["asset"] or event.args["account"])  # an asset's owner may change
            paid[int(str(event.args["job"])), payee] += int(str(event.args["amount"]))
        for (number, payee), amount in paid.items():
            last = max(r for j, r in chain.distributor.settlements if j == number)
            leaves = {str(leaf.asset or leaf.account): leaf for leaf in self.evidence(last).leaves}
            assert amount <= leaves[payee].cumulative_wei
        for name, key in (
            ("ContributionRevealed", ("round", "node")),
            ("ContributionCommitted", ("round", "node")),
            ("ModelPublished", ("round",)),
            ("Settled", ("round", "epoch")),
        ):
            told = [{**e.args, "epoch": self._epoch(e)} for e in self.job_events(name)]
            seen = Counter(tuple(args[k] for k in ("job", *key)) for args in told)
            assert not [what for what, times in seen.items() if times > 1], name

    def _epoch(self, event: Event) -> int:
        """How many settlements had been overturned by then: each may come again after that."""
        return sum(e.block < event.block for e in self.job_events("Overturned"))

    async def check_end(self) -> None:
        """All of it, of a job that has ended: every wei of the escrow was earned or went back."""
        state = self.state()
        assert state.phase.terminal
        escrow = state.terms.rounds * state.terms.round_budget_wei
        assert state.spent_wei + state.refunded_wei == escrow
        await self.check_models()
        claimed = await self.claim_all()
        self.check_money()
        everybody = self.machines.keys() == self.running.keys()
        assert claimed == state.spent_wei if everybody else claimed <= state.spent_wei
        for node in self.running.values():
            assert not node.given_up
            assert node.parts.rows.index_state().missing_evidence == 0


# -- running a story ----------------------------------------------------------------------------------------
@contextmanager
def virtual_time(monkeypatch: pytest.MonkeyPatch, seed: int) -> Iterator[MockClock]:
    """A clock that jumps to the next deadline; threads run inline, tasks in an order fixed by the seed."""
    from trio._core import _run

    async def run_sync(call: Callable[..., T], *args: Any, **_: Any) -> T:
        await trio.lowlevel.checkpoint()  # here a killed node ends: it makes no further call
        return call(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", run_sync)
        patch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        patch.setattr(_run, "_r", random.Random(seed))  # noqa: S311
        structlog.configure(processors=[_drop])
        try:
            yield MockClock(autojump_threshold=0)
        finally:
            structlog.reset_defaults()


def play(
    story: Story, path: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int = 1, trainers: int = 3
) -> None:
    """Run a story among a requester and some trainers, called "a", "b", "c" ..."""
    with virtual_time(monkeypatch, seed) as clock:

        async def main() -> None:
            async with open_world(path, clock, seed) as world:
                await world.start("requester", trains=False)
                for name in "abcdefgh"[:trainers]:
                    await world.start(name)
                await story(world)

        trio.run(main, clock=clock)


@asynccontextmanager
async def open_world(path: Path, clock: MockClock, seed: int) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(path, clock, nursery, seed)
        nursery.cancel_scope.cancel()


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


def cid_of(digest: object) -> Cid:
    return Cid.from_digest(bytes.fromhex(str(digest).removeprefix("0x")))
