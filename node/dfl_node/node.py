"""What a running node does: follows the chain, takes part in jobs, and knows its peers."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import time
from urllib.parse import urlsplit

import structlog
import trio

from dfl_ledger.chain import ChainLedger
from dfl_ledger.deploy import Deployment
from dfl_ledger.errors import (
    ChainUnreachable,
    DflError,
    InsufficientFunds,
    ReorgTooDeep,
    SpecInvalid,
    UpdateRefused,
)
from dfl_ledger.records import Event, JobId, JobState
from dfl_node import enlisting, jobspec
from dfl_node.bases import keep_base
from dfl_node.config import NodeConfig, Role
from dfl_node.modes.evidence_keeper import EvidenceKeeper
from dfl_node.modes.job import JobPart
from dfl_node.net.channel import FoundBy
from dfl_node.net.libp2p_channel import Libp2pChannel
from dfl_node.parts import Parts
from dfl_node.train.process import ProcessTrainer

log = structlog.get_logger(__name__)

LOCAL_POLL_S = 0.1  # a development chain mines at once: waiting for it would be most of a round
POLL_S = 2.0
MEET_MIN_S, MEET_MAX_S = 1.0, 60.0
REGISTRY_DIALS, MAX_REGISTRY_DIALS = 4, 16
SPEC_RETRY_S = 3.0
NEWS_TOPIC = "dfl/news"


class Node:
    """A node's parts, its jobs, and what it does about them while `nursery` is open."""

    def __init__(
        self,
        config: NodeConfig,
        parts: Parts,
        jobs: dict[JobId, JobPart],
        trainer: ProcessTrainer,
        ledger: ChainLedger,
        channel: Libp2pChannel,
        peer_key: bytes,
        http_url: str,
        deployment: Deployment,
    ) -> None:
        self.config = config
        self.parts = parts
        self.trainer = trainer
        self.ledger = ledger
        self.channel = channel
        self.http_url = http_url
        self.deployment = deployment
        self._peer_key = peer_key
        self.nursery: trio.Nursery  # what the node does lives in here
        self.jobs = jobs
        self._considered: set[JobId] = set()
        self._poke = trio.Event()
        self.evidence = EvidenceKeeper(parts)

    # -- the registry ---------------------------------------------------------------------------------
    async def enter_registry(self) -> None:
        """Stake and say which peer we are, unless the chain knows it already."""
        await trio.to_thread.run_sync(self._enter_registry)

    def _enter_registry(self) -> None:
        me, config = self.ledger.address, self.config
        if self.ledger.native_wei(me) == 0:
            raise InsufficientFunds(
                f"wallet {me} has no coin to pay for gas",
                why="every step of a round is a transaction",
                help_command=f"dfl-node chain fund {me}",
            )
        key = self._peer_key
        boot = self.channel.multiaddrs[:8] if Role.BOOT in config.roles else ()
        known = self.ledger.node(me)
        staked = known.stake_wei if known is not None else 0
        missing = max(0, (config.stake_wei or 0) - staked)
        if known is not None and not missing and (known.peer_key, known.boot_addrs) == (key, boot):
            if not known.unbond_at:
                self._enter_panels(staked)
            return
        if missing > self.ledger.balance_wei(me):
            raise InsufficientFunds(
                f"wallet {me} cannot stake {missing} wei of VNX",
                why=f"it holds {self.ledger.balance_wei(me)} wei",
                help_command=f"dfl-node chain fund {me}",
            )
        self.ledger.register(key, missing, boot)
        log.info("registered", stake_wei=str(staked + missing), boot=bool(boot))
        self._enter_panels(staked + missing)

    def _enter_panels(self, stake_wei: int) -> None:
        enlisting.enter_panels(self.ledger, stake_wei, willing=Role.EVALUATE in self.config.roles)

    # -- the chain ------------------------------------------------------------------------------------
    async def follow_chain(self) -> None:
        """Index every block and tell the jobs concerned; a dead RPC only delays it."""
        poll_s = LOCAL_POLL_S if _is_loopback(self.config.rpc_url) else POLL_S
        silent_s = 0.0
        while True:
            try:
                events = await trio.to_thread.run_sync(self.parts.index.step)
                silent_s = 0.0
            except ReorgTooDeep:  # loudly: whatever we decided of the replaced blocks may be wrong
                log.error("the ledger cannot follow the chain: stopping", indexed=self.parts.index.indexed)
                raise
            except DflError as failure:  # the RPC is silent or lies, or the disk is full: none is final
                silent_s = min(10.0, silent_s * 2 or 0.5)
                log.warning("chain not read", why=str(failure), retry_in_s=silent_s)
                await trio.sleep(silent_s)
                continue
            self._spread(events)
            if not events:
                self._poke = trio.Event()
                with trio.move_on_after(poll_s):
                    await self._poke.wait()

    def _spread(self, events: list[Event]) -> None:
        for event in events:
            job = event.args.get("job")
            if not isinstance(job, int):
                continue
            if event.name == "JobCreated":
                self.consider(JobId(job))
            elif event.name == "Settled":
                self.evidence.notify()
            if JobId(job) in self.jobs:
                self.jobs[JobId(job)].notify()

    # -- jobs -----------------------------------------------------------------------------------------
    async def resume_jobs(self) -> None:
        """Look again at every job known when this node last ran."""
        for row in await trio.to_thread.run_sync(self.parts.rows.jobs):
            self.consider(row.job)

    def consider(self, job: JobId) -> None:
        if job not in self._considered:
            self._considered.add(job)
            self.nursery.start_soon(self._run_job, job)

    async def _run_job(self, job: JobId) -> None:
        """Read the spec, meet the others, take part. What is wrong with one job stays with that job."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._meet, job)
                part = await self._enter(job)
                if part is not None:
                    self.jobs[job] = part
                    await part.run()
                nursery.cancel_scope.cancel()
        except* DflError as failures:
            for failure in failures.exceptions:
                log.error("job given up", job=job, why=str(failure))

    async def _enter(self, job: JobId) -> JobPart | None:
        """Our part in the job, None if it has ended or its spec is not what the chain says."""
        while True:
            try:
                state = await trio.to_thread.run_sync(self.ledger.job, job)
                if state is None or (
                    state.phase.terminal and not await trio.to_thread.run_sync(self._is_owed, state)
                ):
                    return None
                data = await self.parts.store.get(state.terms.spec, max_bytes=jobspec.MAX_SPEC_BYTES)
                spec = jobspec.decode(data)
                if spec.terms(state.terms.spec, state.terms.model) != state.terms:
                    raise SpecInvalid("round", "the terms on chain are not those of the spec")
                may_join = await trio.to_thread.run_sync(self._has_stake_for, state)
                await keep_base(self.parts, spec)
                break
            except (SpecInvalid, UpdateRefused) as bad:  # UpdateRefused: larger than a spec may be
                log.warning("job refused", job=job, why=str(bad))
                return None
            except DflError as failure:
                log.warning("job spec not here yet", job=job, why=str(failure), retry_in_s=SPEC_RETRY_S)
                await trio.sleep(SPEC_RETRY_S)
        part = JobPart(job, spec, self.parts, bytes_sent=self.bytes_sent, clock=time.time, may_join=may_join)
        log.info("job found", job=job, name=spec.name, app=spec.app, trains=part.state.trains)
        if part.declined:
            log.warning("job declined: watching only", job=job, why=part.declined)
        return part

    def _has_stake_for(self, state: JobState) -> bool:
        """Whether the chain would let us join; said once here, not by a refusal every few seconds."""
        record = self.ledger.node(self.ledger.address)
        staked = record.stake_wei if record is not None and record.unbond_at == 0 else 0
        if staked < state.terms.required_stake_wei:
            log.warning(
                "job asks for more stake than ours: watching only",
                job=state.job,
                staked_wei=str(staked),
                required_wei=str(state.terms.required_stake_wei),
                help="dfl-node start --stake VNX …",
            )
            return False
        return True

    def _is_owed(self, state: JobState) -> bool:
        """An ended job still concerns us: escrow to take back, a round of ours to judge or settle, or a
        settlement that may still be overturned.
        """
        me, rows = self.ledger.address, self.parts.rows
        budget_wei = state.terms.rounds * state.terms.round_budget_wei
        if state.requester == me and state.spent_wei + state.refunded_wei < budget_wei:
            return True
        if self.ledger.final_at(state.job) > self.ledger.now():
            return True
        undecided = (row for row in rows.audits(state.job) if row.appeal_until and row.upheld is None)
        return bool(rows.unsettled_rounds(state.job)) or any(undecided)

    async def _meet(self, job: JobId) -> None:
        """Say that we take part, and find the others who do, ever less often."""
        key = self.job_key(job)
        pause_s = MEET_MIN_S
        while True:
            try:
                await self.channel.provide(key)
                await self.channel.find_providers(key)
            except DflError as failure:
                log.debug("looking for members failed", job=job, why=str(failure))
            await trio.sleep(pause_s)
            pause_s = min(MEET_MAX_S, pause_s * 2)

    def job_key(self, job: JobId) -> bytes:
        """The Kademlia key under which a job's members provide."""
        place = f"dfl/{self.deployment.chain_id}/{self.deployment.jobs}/{job}"
        return hashlib.sha256(place.encode()).digest()

    # -- peers ----------------------------------------------------------------------------------------
    async def dial_registry(self) -> None:
        """Dial a few of the boot nodes that the chain's registry lists.

        A few, drawn anew each time: anybody may list an address, and the channel keeps to what it dialled.
        """
        pause_s, draw = MEET_MIN_S, secrets.SystemRandom()
        dialled: set[str] = set(self.channel.multiaddrs)
        while len(dialled) < MAX_REGISTRY_DIALS:
            try:
                listed = set(await trio.to_thread.run_sync(self.ledger.boot_addrs)) - dialled
                chosen = draw.sample(sorted(listed), min(len(listed), REGISTRY_DIALS))
                dialled.update(chosen)
                for addr in chosen:
                    self.nursery.start_soon(self._dial, addr)
            except ChainUnreachable as gone:
                log.debug("registry unreachable", why=str(gone))
            await trio.sleep(pause_s)
            pause_s = min(MEET_MAX_S, pause_s * 2)

    async def _dial(self, addr: str) -> None:
        try:
            await self.channel.connect(addr, FoundBy.REGISTRY)
        except DflError as failure:
            log.debug("boot node unreachable", addr=addr, why=str(failure))

    async def hear_news(self) -> None:
        """An announcement only says that the chain is worth a look: nothing in it is believed."""
        async with self.channel.subscribe(NEWS_TOPIC) as news:
            async for _peer, _body in news:
                self._poke.set()

    async def tell_news(self) -> None:
        """After a job was submitted: others need not wait for their next look at the chain."""
        await self.channel.publish(NEWS_TOPIC, b"job")

    def bytes_sent(self) -> int:
        """By this node to its peers since it started."""
        streams = self.channel.traffic().items()
        talk = sum(t.sent for protocol, t in streams if not protocol.startswith("/ipfs/bitswap"))
        return talk + self.parts.store.traffic().sent  # bitswap is the store's


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
