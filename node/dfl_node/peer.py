"""The story of a node, read from top to bottom: its parts are opened, and one nursery does the rest.

chain -> peers -> blobs -> trainer -> ledger rows -> HTTP -> jobs, until it is told to stop.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
import trio
from starlette.routing import BaseRoute

from dfl_ledger.chain import ChainLedger
from dfl_ledger.deploy import Deployment, find_deployment
from dfl_ledger.errors import ChainUnreachable, DflError, InsufficientFunds, SpecInvalid
from dfl_ledger.indexer import Indexer
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import Address, Event, JobId
from dfl_ledger.rpc import Rpc
from dfl_node import datadir, jobspec
from dfl_node.api.app import build_app
from dfl_node.api.server import HttpServer
from dfl_node.config import NodeConfig, Role
from dfl_node.holders import Holders
from dfl_node.identity import load_node_key
from dfl_node.journal import Journal
from dfl_node.modes.data_parallel import DataParallelJob
from dfl_node.modes.settlement import read_evidence
from dfl_node.net.binding import Binding, sign_binding
from dfl_node.net.channel import FoundBy
from dfl_node.net.config import NetConfig
from dfl_node.net.libp2p_channel import Libp2pChannel, open_channel
from dfl_node.operator import Operator
from dfl_node.parts import Parts
from dfl_node.store.bitswap import Bitswap
from dfl_node.store.blob_store import BlobStore
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.gateway import routes as gateway_routes
from dfl_node.store.gateway_client import GatewayFetcher
from dfl_node.store.kubo import KuboBlocks, KuboStore
from dfl_node.store.local import LocalStore
from dfl_node.train.process import ProcessTrainer, open_trainer

if TYPE_CHECKING:
    from trio_typing import TaskStatus

    from dfl_ledger.accounts import LocalAccount

log = structlog.get_logger(__name__)

LOCAL_POLL_S = 0.1  # a development chain mines at once: waiting for it would be most of a round
POLL_S = 2.0
MEET_MIN_S, MEET_MAX_S = 1.0, 60.0
SPEC_RETRY_S = 3.0
PEERS_FILE_S = 10.0
NEWS_TOPIC = "dfl/news"

Service = Callable[..., Awaitable[None]]  # runs until cancelled; takes trio's task_status


async def run(config: NodeConfig, account: LocalAccount) -> None:
    """Run a node until cancelled. Raises DflError for what keeps it from starting."""
    async with AsyncExitStack() as stack:
        node = await _open(config, account, stack)
        await node.enter_registry()
        async with trio.open_nursery() as nursery:
            node.nursery = nursery
            for service in node.services:
                await nursery.start(service)
            nursery.start_soon(node.follow_chain)
            nursery.start_soon(node.dial_registry)
            nursery.start_soon(node.hear_news)
            nursery.start_soon(node.remember_peers)
            if node.parts.trains:
                nursery.start_soon(node.trainer.warm)
            nursery.start_soon(read_evidence, node.parts)  # of settlements made while we were away
            await node.resume_jobs()
            datadir.write_node_file(config.datadir, node.file)
            stack.callback(datadir.remove_node_file, config.datadir)
            log.info(
                "node is ready",
                address=node.ledger.address,
                peer_id=node.channel.peer_id,
                multiaddrs=list(node.channel.multiaddrs),
                http_url=node.http.url,
            )


async def _open(config: NodeConfig, account: LocalAccount, stack: AsyncExitStack) -> Node:
    """Every part, in the order in which they need one another."""
    in_thread = trio.to_thread.run_sync
    deployment, ledger = await in_thread(_open_chain, config, account)
    stack.callback(ledger.close)
    http = HttpServer(config.http_host, config.http_port)
    stack.callback(http.close)
    key = load_node_key(config.datadir)
    binding = await in_thread(partial(_bind, account, key.public, deployment))
    channel = await stack.enter_async_context(
        open_channel(
            NetConfig(
                key_seed=key.seed,
                binding=binding,
                chain_id=deployment.chain_id,
                registry=deployment.registry,
                listen=config.listen,
                bootnodes=config.bootnodes,
                gateway_port=http.port,
                enable_mdns=config.mdns,
                offer_relay=Role.RELAY in config.roles,
            )
        )
    )
    store, gateway, services = await _open_store(config, channel, stack)
    trainer = await stack.enter_async_context(
        open_trainer(threads=config.threads, max_memory_bytes=config.trainer_memory_bytes)
    )
    path = config.datadir / "ledger.sqlite"
    index = await in_thread(
        lambda: Indexer(
            path,
            ledger,
            deployment_key=f"{deployment.jobs}/{deployment.distributor}",
            start_block=deployment.deploy_block,
        )
    )
    stack.callback(index.close)
    rows = await in_thread(LedgerRows, path)
    stack.callback(rows.close)
    jobs: dict[JobId, DataParallelJob] = {}

    async def limit_for(job: JobId, node: Address) -> int | None:
        """What members of our jobs may ask us to hold."""
        if job not in jobs or await in_thread(ledger.active_round, job, node) == 0:
            return None
        return jobs[job].spec.training.max_update_bytes

    parts = Parts(
        ledger=ledger,
        index=index,
        rows=rows,
        store=store,
        channel=channel,
        holders=Holders(channel, store, limit_for),
        trainer=trainer,
        journal=await in_thread(Journal, config.datadir / "journal.sqlite"),
        data=config.data,
        trains=Role.TRAIN in config.roles,
    )
    node = Node(config, parts, jobs, trainer, ledger, channel, binding.peer_key, http, gateway, deployment)
    node.services = (*services, node.serve_http)
    return node


def _open_chain(config: NodeConfig, account: LocalAccount) -> tuple[Deployment, ChainLedger]:
    if config.deployment is not None:
        deployment = Deployment.read(config.deployment)
    else:
        rpc = Rpc(config.rpc_url)
        try:
            served = rpc.quantity("eth_chainId")
        finally:
            rpc.close()
        deployment = find_deployment(served, [config.datadir, config.datadir.parent])
    return deployment, ChainLedger(config.rpc_url, deployment, account)


def _bind(account: LocalAccount, peer_key: bytes, deployment: Deployment) -> Binding:
    """The wallet's word that this node key acts for it."""
    return sign_binding(
        account, peer_key=peer_key, chain_id=deployment.chain_id, registry=deployment.registry
    )


async def _open_store(
    config: NodeConfig, channel: Libp2pChannel, stack: AsyncExitStack
) -> tuple[BlobStore, Sequence[BaseRoute], Sequence[Service]]:
    """The embedded store or a Kubo daemon's. Either is served over bitswap and the gateway, because peers
    know this node and need not know its daemon."""
    blocks: BlockFiles | KuboBlocks
    store: BlobStore
    gateway = await stack.enter_async_context(GatewayFetcher(channel.peers).opened())
    if config.ipfs is not None:
        blocks = KuboBlocks(config.ipfs)
        await blocks.check()
        bitswap = Bitswap(channel.host, blocks)
        store = KuboStore(blocks, (gateway, bitswap))
    else:
        blocks = await trio.to_thread.run_sync(
            lambda: BlockFiles(config.datadir / "store", max_store_bytes=config.max_store_bytes)
        )
        bitswap = Bitswap(channel.host, blocks)
        store = LocalStore(blocks, (gateway, bitswap))
    stack.callback(blocks.close)
    return store, gateway_routes(blocks), (bitswap.run,)


class Node:
    """A running node: its parts, its jobs, and what it does about them."""

    def __init__(
        self,
        config: NodeConfig,
        parts: Parts,
        jobs: dict[JobId, DataParallelJob],
        trainer: ProcessTrainer,
        ledger: ChainLedger,
        channel: Libp2pChannel,
        peer_key: bytes,
        http: HttpServer,
        gateway: Sequence[BaseRoute],
        deployment: Deployment,
    ) -> None:
        self.config = config
        self.parts = parts
        self.trainer = trainer
        self.ledger = ledger
        self.channel = channel
        self.http = http
        self.deployment = deployment
        self._peer_key = peer_key
        self._gateway = gateway
        self.services: Sequence[Service] = ()  # started one after another, before all else
        self.nursery: trio.Nursery  # what the node does lives in here
        self.jobs = jobs
        self.file = datadir.NodeFile(url=http.url, pid=os.getpid(), token=secrets.token_urlsafe(32))
        self._considered: set[JobId] = set()
        self._poke = trio.Event()

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
            return
        if missing > self.ledger.balance_wei(me):
            raise InsufficientFunds(
                f"wallet {me} cannot stake {missing} wei of VNX",
                why=f"it holds {self.ledger.balance_wei(me)} wei",
                help_command=f"dfl-node chain fund {me}",
            )
        self.ledger.register(key, missing, boot)
        log.info("registered", stake_wei=str(staked + missing), boot=bool(boot))

    # -- the chain ------------------------------------------------------------------------------------
    async def follow_chain(self) -> None:
        """Index every block and tell the jobs concerned; a dead RPC only delays it."""
        poll_s = LOCAL_POLL_S if _is_loopback(self.config.rpc_url) else POLL_S
        silent_s = 0.0
        while True:
            try:
                events = await trio.to_thread.run_sync(self.parts.index.step)
                silent_s = 0.0
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
                self.nursery.start_soon(read_evidence, self.parts)
            if JobId(job) in self.jobs:
                self.jobs[JobId(job)].notify()

    # -- jobs -----------------------------------------------------------------------------------------
    async def resume_jobs(self) -> None:
        """Take up every job that had not ended when this node last ran."""
        for job in await trio.to_thread.run_sync(self.parts.rows.open_jobs):
            self.consider(job)

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

    async def _enter(self, job: JobId) -> DataParallelJob | None:
        """Our part in the job, None if it has ended or its spec is not what the chain says."""
        while True:
            try:
                state = await trio.to_thread.run_sync(self.ledger.job, job)
                if state is None or state.phase.terminal:
                    return None
                data = await self.parts.store.get(state.terms.spec, max_bytes=jobspec.MAX_SPEC_BYTES)
                spec = jobspec.decode(data)
                if spec.terms(state.terms.spec, state.terms.model) != state.terms:
                    raise SpecInvalid("round", "the terms on chain are not those of the spec")
                break
            except SpecInvalid as bad:
                log.warning("job refused", job=job, why=str(bad))
                return None
            except DflError as failure:
                log.warning("job spec not here yet", job=job, why=str(failure), retry_in_s=SPEC_RETRY_S)
                await trio.sleep(SPEC_RETRY_S)
        part = DataParallelJob(job, spec, self.parts, bytes_sent=self.bytes_sent, clock=time.time)
        log.info("job found", job=job, name=spec.name, app=spec.app, trains=part.state.trains)
        return part

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
        """Dial the boot nodes that the chain's registry lists, until one answers; then now and again."""
        pause_s = MEET_MIN_S
        while True:
            try:
                for addr in await trio.to_thread.run_sync(self.ledger.boot_addrs):
                    if addr not in self.channel.multiaddrs:
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

    async def remember_peers(self) -> None:
        """Keep the peers last seen, for `dfl-node peers` after we have stopped."""
        while True:
            peers = Operator(self).peer_list()
            if peers:
                await trio.to_thread.run_sync(datadir.write_peers, self.config.datadir, peers)
            await trio.sleep(PEERS_FILE_S)

    # -- HTTP -----------------------------------------------------------------------------------------
    async def serve_http(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The operator's API, and the trustless gateway for peers."""
        app = build_app(
            Operator(self),
            token=self.file.token,
            host=self.http.host,
            public_routes=self._gateway,
        )
        await self.http.serve(app, task_status=task_status)

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
