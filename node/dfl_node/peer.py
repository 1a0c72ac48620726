"""The story of a node, read from top to bottom: its parts are opened, and one nursery does the rest.

chain -> peers -> blobs -> trainer -> ledger rows -> HTTP -> jobs, until it is told to stop.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio
from starlette.routing import BaseRoute

from dfl_ledger.chain import open_chain
from dfl_ledger.deploy import Deployment
from dfl_ledger.errors import DflError
from dfl_ledger.evidence import MAX_EVIDENCE_BYTES
from dfl_ledger.indexer import Indexer
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import Address, JobId
from dfl_node import datadir, declaring
from dfl_node.api.app import build_app
from dfl_node.api.server import HttpServer
from dfl_node.config import NodeConfig, Role
from dfl_node.holders import Holders
from dfl_node.identity import load_node_key
from dfl_node.journal import Journal
from dfl_node.modes.job import JobPart
from dfl_node.modes.pipeline.lines import Lines
from dfl_node.net.binding import Binding, sign_binding
from dfl_node.net.config import NetConfig
from dfl_node.net.libp2p_channel import Libp2pChannel, open_channel
from dfl_node.node import Node
from dfl_node.operator import Operator
from dfl_node.parts import Parts
from dfl_node.store.bitswap import Bitswap
from dfl_node.store.blob_store import BlobStore
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.gateway import routes as gateway_routes
from dfl_node.store.gateway_client import GatewayFetcher
from dfl_node.store.kubo import KuboBlocks, KuboStore
from dfl_node.store.local import LocalStore
from dfl_node.train.process import open_trainer

if TYPE_CHECKING:
    from dfl_ledger.accounts import LocalAccount

log = structlog.get_logger(__name__)

PEERS_FILE_S = 5.0
CLAIM_S = 15.0

Service = Callable[..., Awaitable[None]]  # runs until cancelled; takes trio's task_status


async def run(config: NodeConfig, account: LocalAccount) -> None:
    """Run a node until cancelled. Raises DflError for what keeps it from starting."""
    async with AsyncExitStack() as stack:
        node, services, http, gateway = await _open(config, account, stack)
        operator = Operator(node)
        lent = await trio.to_thread.run_sync(declaring.check, node.ledger, config.datasets)
        await node.enter_registry()
        async with trio.open_nursery() as nursery:
            node.nursery = nursery
            for service in services:
                await nursery.start(service)
            nursery.start_soon(node.dial_registry)
            nursery.start_soon(node.hear_news)
            parts = node.parts  # known before a job is: it is joined once, with them or without
            parts.datasets.update(await declaring.match(lent, parts.data, parts.store, parts.trainer))
            nursery.start_soon(node.follow_chain)
            nursery.start_soon(_remember_peers, config.datadir, operator)
            if config.auto_claim:
                nursery.start_soon(_claim_forever, operator)
            if node.parts.trains or Role.EVALUATE in config.roles:
                nursery.start_soon(node.trainer.warm)
            nursery.start_soon(node.evidence.run)
            await node.resume_jobs()
            # The operator's API, and the trustless gateway for peers.
            file = datadir.NodeFile(url=http.url, pid=os.getpid(), token=secrets.token_urlsafe(32))
            app = build_app(operator, token=file.token, host=http.host, public_routes=gateway)
            await nursery.start(http.serve, app)
            datadir.write_node_file(config.datadir, file)
            stack.callback(datadir.remove_node_file, config.datadir)
            log.info(
                "node is ready",
                address=node.ledger.address,
                peer_id=node.channel.peer_id,
                multiaddrs=list(node.channel.multiaddrs),
                http_url=http.url,
            )


async def _remember_peers(folder: Path, operator: Operator) -> None:
    """Keep the peers last seen, for `dfl-node peers` after the node has stopped."""
    while True:
        peers = operator.peer_list()
        if peers:
            try:
                await trio.to_thread.run_sync(datadir.write_peers, folder, peers)
            except OSError as full:
                log.debug("peers not remembered", why=str(full))
        await trio.sleep(PEERS_FILE_S)


async def _claim_forever(operator: Operator) -> None:
    """What is claimed cannot be misallocated by a later settlement of the same job."""
    while True:
        try:
            await operator.claim(None)
        except DflError as failure:
            log.warning("claim failed", why=str(failure), retry_in_s=CLAIM_S)
        await trio.sleep(CLAIM_S)


async def _open(
    config: NodeConfig, account: LocalAccount, stack: AsyncExitStack
) -> tuple[Node, Sequence[Service], HttpServer, Sequence[BaseRoute]]:
    """Every part, in the order in which they need one another."""
    in_thread = trio.to_thread.run_sync
    folders = (config.datadir, config.datadir.parent)
    ledger = await in_thread(open_chain, config.rpc_url, config.deployment, folders, account)
    stack.callback(ledger.close)
    await in_thread(ledger.resume, config.datadir / "sent.sqlite")
    deployment = ledger.deployment
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
    genesis = await in_thread(ledger.genesis)
    index = await in_thread(
        lambda: Indexer(
            path,
            ledger,
            # With the genesis: a development chain begun anew has the same id and the same addresses.
            deployment_key=f"{genesis}/{deployment.jobs}/{deployment.distributor}",
            start_block=deployment.deploy_block,
        )
    )
    stack.callback(index.close)
    rows = await in_thread(LedgerRows, path)
    stack.callback(rows.close)
    jobs: dict[JobId, JobPart] = {}

    async def limit_for(job: JobId, node: Address) -> int | None:
        """What members of our jobs, and those who judge them, may ask us to hold."""
        if job not in jobs:
            return None
        if await in_thread(ledger.active_round, job, node) == 0 and not await in_thread(
            rows.seats_of, node, job
        ):
            return None
        part = jobs[job]
        return max(part.spec.training.max_update_bytes, part.max_piece_bytes, MAX_EVIDENCE_BYTES)

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
        share_rows=config.share_rows,
        node_key=key,
        lines=Lines(channel),
        trainer_memory_bytes=config.trainer_memory_bytes,
    )
    node = Node(config, parts, jobs, trainer, ledger, channel, binding.peer_key, http.url, deployment)
    return node, services, http, gateway


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
