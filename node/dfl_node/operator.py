"""What a running node does for its operator: the implementation behind the HTTP API."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog
import trio

from dfl_ledger.errors import (
    BlobNotFound,
    DflError,
    Reverted,
    UsageError,
)
from dfl_ledger.records import Cid, JobId
from dfl_node import __version__, submission
from dfl_node.api.service import DownloadBundle, JsonObject
from dfl_node.assets import NewAsset
from dfl_node.bundle import bundle
from dfl_node.identity import checksum_address
from dfl_node.net.doctor import diagnose
from dfl_node.watching import job_view

if TYPE_CHECKING:
    from dfl_node.node import Node

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Operator:
    """A `NodeService` on the parts of a running node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._parts = node.parts

    # -- who and where --------------------------------------------------------------------------------
    async def status(self) -> JsonObject:
        node = self._node
        index = await _in_thread(self._parts.rows.index_state)
        chain: JsonObject = {
            "id": node.deployment.chain_id,
            "head": None,
            "indexed": index.indexed_block,
            "behind_blocks": None,
            "behind_s": None,
        }
        try:
            tip = await _in_thread(self._parts.ledger.block)
        except DflError:
            pass  # the node lives on while its RPC does not
        else:
            behind = max(0, tip.number - index.indexed_block)
            behind_s = max(0, tip.timestamp - (index.indexed_time or tip.timestamp)) if behind else 0
            chain |= {"head": tip.number, "behind_blocks": behind, "behind_s": behind_s}
        return {
            "address": self._parts.ledger.address,
            "peer_id": node.channel.peer_id,
            "multiaddrs": list(node.channel.multiaddrs),
            "http_url": node.http_url,
            "peers": self.peer_list(),
            "chain": chain,
            "jobs": await self.jobs(),
            "datasets": await _in_thread(self.dataset_list),
            "roles": sorted(role.value for role in node.config.roles),
            "reachability": {"state": node.channel.reach.state.value, "why": node.channel.reach.why},
            "version": __version__,
        }

    def dataset_list(self) -> list[JsonObject]:
        """What our rows are, where we declared that, and why other jobs did not take it. Blocks."""
        rows, me, found = self._parts.rows, self._parts.ledger.address, list[JsonObject]()
        for app, assets in self._parts.datasets.items():
            declared = {row.job: rows.datasets_by_node(row.job).get(me, ()) for row in rows.jobs()}
            for asset in assets:
                own = [job for job, used in declared.items() if asset in used]
                whys = {job: part.left_out.get(asset) for job, part in tuple(self._node.jobs.items())}
                left_out = {str(job): why for job, why in whys.items() if why is not None}
                found.append({"asset": str(asset), "app": app, "jobs": own, "left_out": left_out})
        return found

    async def peers(self) -> list[JsonObject]:
        return self.peer_list()

    def peer_list(self) -> list[JsonObject]:
        return [
            {
                "peer_id": peer.peer_id,
                "address": peer.address,
                "multiaddrs": list(peer.multiaddrs),
                "found_by": peer.found_by.value,
                "latency_ms": None if peer.latency_s is None else round(peer.latency_s * 1000, 2),
            }
            for peer in self._node.channel.peers()
        ]

    async def network(self) -> list[JsonObject]:
        return [dataclasses.asdict(check) for check in await diagnose(self._node.channel)]

    # -- blobs ----------------------------------------------------------------------------------------
    async def put_blob(self, data: bytes, *, pin: bool) -> JsonObject:
        return {"cid": str(await self._parts.store.put(data, pin=pin)), "bytes": len(data)}

    async def get_blob(self, cid: str, *, max_bytes: int, timeout_s: float) -> bytes:
        return await self._parts.store.get(_cid(cid), max_bytes=max_bytes, timeout_s=timeout_s)

    async def list_blobs(self) -> list[JsonObject]:
        return [
            {"cid": str(blob.cid), "bytes": blob.size, "pinned": blob.pinned}
            async for blob in self._parts.store.ls()
        ]

    async def pin(self, cid: str, *, timeout_s: float) -> JsonObject:
        with trio.move_on_after(timeout_s) as patience:
            await self._parts.store.pin(_cid(cid))
        if patience.cancelled_caught:
            raise BlobNotFound(f"file {cid}", why=f"nobody delivered all of it within {timeout_s:g} s")
        return {"cid": cid, "pinned": True}

    async def unpin(self, cid: str) -> JsonObject:
        await self._parts.store.unpin(_cid(cid))
        return {"cid": cid, "pinned": False}

    # -- jobs -----------------------------------------------------------------------------------------
    async def check_job(self, toml: str) -> JsonObject:
        return await submission.check(self._node, toml)

    async def submit_job(self, toml: str) -> JsonObject:
        return await submission.submit(self._node, toml)

    async def cancel_job(self, job: int) -> JsonObject:
        receipt = await _in_thread(partial(self._parts.ledger.cancel, JobId(job)))
        log.info("cancel asked for", job=job)
        return {"job_id": job, "tx": receipt.tx}

    async def jobs(self) -> list[JsonObject]:
        """Each job, and why this node does not train in it though it could: "" where it does."""
        parts = self._node.jobs
        return [
            row.to_json() | {"declined": parts[row.job].declined if row.job in parts else ""}
            for row in await _in_thread(self._parts.rows.jobs)
        ]

    async def job(self, job: int) -> JsonObject:
        return await job_view(self._parts, JobId(job), self._node.jobs.get(JobId(job)))

    # -- what came of it ------------------------------------------------------------------------------
    async def download(self, job: int) -> DownloadBundle:
        return await bundle(self._node, JobId(job))

    async def claim(self, job: int | None) -> JsonObject:
        """Claim for this wallet, in one job or in all: one transaction a job, whatever the rounds."""
        me = self._parts.ledger.address
        now = await _in_thread(self._parts.ledger.now)
        due = await _in_thread(partial(self._parts.rows.claimable, me, now))
        claims, total_wei = [], 0
        for claim in due:
            if job is not None and claim.job != job:
                continue
            leaf = claim.leaf
            before = await _in_thread(partial(self._parts.ledger.claimed_wei, claim.job, me, leaf.asset))
            amount_wei = leaf.cumulative_wei - before
            if amount_wei <= 0:
                continue
            try:
                receipt = await _in_thread(
                    partial(self._parts.ledger.claim, claim.job, claim.round, leaf, claim.proof)
                )
            except Reverted as no:
                if no.error == "NothingToClaim":  # somebody else sent the same claim meanwhile: it is paid
                    continue
                raise
            log.info("claimed", job=claim.job, round=claim.round, amount_wei=str(amount_wei))
            total_wei += amount_wei
            asset = str(leaf.asset) if leaf.asset else None  # None: for our own work
            paid = {"amount_wei": str(amount_wei), "asset": asset, "tx": receipt.tx}
            claims.append({"job": claim.job, "round": claim.round, **paid})
        return {"claims": claims, "total_wei": str(total_wei)}

    # -- assets ---------------------------------------------------------------------------------------
    async def mint_asset(self, asset: NewAsset) -> JsonObject:
        ledger = self._parts.ledger
        mint = partial(
            ledger.mint_asset,
            asset.kind,
            asset.manifest,
            asset.licence_word,
            asset.uses,
            asset.price_bps,
            asset.parents,
        )
        number = await _in_thread(mint)
        log.info("asset minted", asset=number, kind=asset.kind.name.lower(), manifest=str(asset.manifest))
        return {"asset": str(number), "owner": ledger.address, **asset.to_json()}

    async def price_asset(self, asset: int, price_bps: int) -> JsonObject:
        receipt = await _in_thread(partial(self._parts.ledger.price_asset, asset, price_bps))
        return {"asset": str(asset), "price_bps": price_bps, "tx": receipt.tx}

    async def allow_asset(self, asset: int, user: str) -> JsonObject:
        account = checksum_address(user)
        receipt = await _in_thread(partial(self._parts.ledger.allow_asset, account, asset))
        return {"asset": str(asset), "user": account, "tx": receipt.tx}

    async def revoke_asset(self, asset: int) -> JsonObject:
        receipt = await _in_thread(partial(self._parts.ledger.revoke_asset, asset))
        log.info("asset revoked", asset=asset)
        return {"asset": str(asset), "tx": receipt.tx}


def _cid(text: str) -> Cid:
    try:
        return Cid.parse(text)
    except ValueError as bad:
        raise UsageError(f"{text!r:.80} is not a CID", why=str(bad)) from bad


async def _in_thread(call: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(call)
