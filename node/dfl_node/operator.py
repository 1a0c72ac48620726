"""What a running node does for its operator: the implementation behind the HTTP API."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
import trio

from dfl_ledger.errors import (
    BlobNotFound,
    DflError,
    InsufficientFunds,
    Reverted,
    SpecInvalid,
    UsageError,
)
from dfl_ledger.records import Cid, JobId, JobState, Phase
from dfl_node import __version__, jobspec
from dfl_node.api.service import DownloadBundle, JsonObject
from dfl_node.config import Role
from dfl_node.jobspec import FROM_APP, JobSpec
from dfl_node.net.doctor import diagnose
from dfl_node.train.trainer import ModelConfig

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
        indexed = await _in_thread(self._parts.rows.indexed_block)
        try:
            head: int | None = await _in_thread(self._parts.ledger.head)
        except DflError:
            head = None  # the node lives on while its RPC does not
        return {
            "address": self._parts.ledger.address,
            "peer_id": node.channel.peer_id,
            "multiaddrs": list(node.channel.multiaddrs),
            "http_url": node.http_url,
            "peers": self.peer_list(),
            "chain": {"id": node.deployment.chain_id, "head": head, "indexed": indexed},
            "jobs": await self.jobs(),
            "roles": sorted(role.value for role in node.config.roles),
            "reachability": {"state": node.channel.reach.state.value, "why": node.channel.reach.why},
            "version": __version__,
        }

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
        spec = jobspec.parse(toml)
        if Role.REQUEST not in self._node.config.roles:
            raise UsageError(
                "this node does not submit jobs",
                why="it runs without the role `request`",
                help_command="dfl-node start --roles train,request …",
            )
        me = self._parts.ledger.address
        held_wei = await _in_thread(partial(self._parts.ledger.balance_wei, me))
        if held_wei < spec.budget_wei:
            raise InsufficientFunds(
                f"wallet {me} cannot pay for the job",
                why=f"{spec.training.rounds} rounds cost {spec.budget_wei} wei of VNX, it holds {held_wei}",
                help_command=f"dfl-node chain fund {me}",
            )
        return {"name": spec.name, "budget_wei": str(spec.budget_wei), "held_wei": str(held_wei)}

    async def submit_job(self, toml: str) -> JsonObject:
        """Publish validation rows, first model and spec, then escrow the budget. Money moves last."""
        await self.check_job(toml)
        spec = jobspec.parse(toml)
        model = await self._parts.trainer.init_model(
            ModelConfig(spec.model.name, spec.model.args), spec.training.seed
        )
        if len(model) > spec.training.max_update_bytes:
            raise SpecInvalid("training.max_update_bytes", f"the model itself has {len(model)} bytes")
        if spec.reward.validation == FROM_APP:
            rows = await self._node.trainer.validation_rows(spec.app)
            spec = spec.with_validation(await self._parts.store.put(rows))
        model_cid = await self._parts.store.put(model)
        spec_cid = await self._parts.store.put(spec.encode())
        job = await _in_thread(partial(self._parts.ledger.create_job, spec.terms(spec_cid, model_cid)))
        log.info("job submitted", job=job, name=spec.name, budget_wei=str(spec.budget_wei))
        await self._node.tell_news()
        return {
            "job_id": job,
            "name": spec.name,
            "spec_cid": str(spec_cid),
            "model_cid": str(model_cid),
            "validation_cid": spec.reward.validation,
            "budget_wei": str(spec.budget_wei),
        }

    async def cancel_job(self, job: int) -> JsonObject:
        receipt = await _in_thread(partial(self._parts.ledger.cancel, JobId(job)))
        log.info("cancel asked for", job=job)
        return {"job_id": job, "tx": receipt.tx}

    async def jobs(self) -> list[JsonObject]:
        return [row.to_json() for row in await _in_thread(self._parts.rows.jobs)]

    async def job(self, job: int) -> JsonObject:
        row = await _in_thread(partial(self._parts.rows.job, JobId(job)))
        if row is None:
            raise UsageError(
                f"there is no job {job}", why="the ledger has none", help_command="dfl-node job list"
            )
        found: JsonObject = row.to_json()
        part = self._node.jobs.get(JobId(job))
        found["awaited"] = await _in_thread(partial(self._parts.rows.awaited, JobId(job)))
        if part is not None and part.state.chain is not None:
            state = part.state.chain.job
            found["live"] = _live(state)
            if state.phase is Phase.AGGREGATE:
                revealed = await _in_thread(partial(self._parts.rows.revealed, JobId(job), state.round))
                found["awaited"] = [row.node for row in revealed[state.draw : state.draw + 1]]
        stats = await _in_thread(partial(self._parts.journal.rounds, JobId(job)))
        found["local_rounds"] = [dataclasses.asdict(row) for row in stats]
        return found

    # -- what came of it ------------------------------------------------------------------------------
    async def download(self, job: int) -> DownloadBundle:
        """The newest accepted model, how to build it, a model card, and the ledger's word on it."""
        state = await _in_thread(partial(self._parts.ledger.job, JobId(job)))
        if state is None:
            raise UsageError(
                f"there is no job {job}", why="the chain has none", help_command="dfl-node job list"
            )
        data = await self._parts.store.get(state.terms.spec, max_bytes=jobspec.MAX_SPEC_BYTES)
        spec = jobspec.decode(data)
        model = await self._parts.store.get(state.model, max_bytes=spec.training.max_update_bytes)
        rows = await _in_thread(partial(self._parts.rows.contributions, job=JobId(job), limit=None))
        contributions = [row.to_json() for row in rows]
        settlements = await _in_thread(partial(self._parts.rows.settlements, JobId(job)))
        deployment = self._node.deployment
        config = {
            "architecture": spec.model.name,
            "args": spec.model.args,
            "app": spec.app,
            "weights": "model.safetensors",
            "weights_cid": str(state.model),
        }
        proof = {
            "schema_version": "1",
            "chain_id": deployment.chain_id,
            "contracts": deployment.addresses,
            "job": job,
            "requester": state.requester,
            "spec_cid": str(state.terms.spec),
            "first_model_cid": str(state.terms.model),
            "model_cid": str(state.model),
            "rounds_completed": state.completed,
            "settlements": settlements,
            "contributions": contributions,
        }
        card = _model_card(spec, state, contributions)
        return DownloadBundle(
            {
                "model.safetensors": model,
                "config.json": _json(config),
                "README.md": card.encode(),
                "ledger-proof.json": _json(proof),
            }
        )

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
            claims.append(
                {"job": claim.job, "round": claim.round, "amount_wei": str(amount_wei), "tx": receipt.tx}
            )
        return {"claims": claims, "total_wei": str(total_wei)}


def _live(state: JobState) -> JsonObject:
    """Where the job stands now, for `job watch`: who is awaited, until when."""
    return {
        "phase": state.phase.name.lower(),
        "round": state.round,
        "completed": state.completed,
        "of": state.terms.rounds,
        "expected": state.expected,
        "commits": state.commits,
        "reveals": state.reveals,
        "deadline": state.deadline,
        "spent_wei": str(state.spent_wei),
    }


def _model_card(spec: JobSpec, state: JobState, contributions: list[dict[str, Any]]) -> str:
    nodes = sorted({row["node"] for row in contributions})
    samples = sum(row["samples"] for row in contributions)
    lines = [
        f"# {spec.name}",
        "",
        f"A `{spec.model.name}` for the application `{spec.app}`, trained by {len(nodes)} nodes of a dfl",
        "network.",
        "",
        f"- weights: `model.safetensors`, CID `{state.model}`",
        f"- mode: {spec.mode.name.lower()}, {state.completed} rounds of {spec.training.local_steps} steps",
        f"- optimizer: {spec.training.optimizer}, learning rate {spec.training.lr}",
        f"- training samples processed: {samples}",
        f"- scored by: {spec.reward.valuation} on the validation rows `{spec.reward.validation}`",
        "",
        "Every contribution, its score and its reward stand in `ledger-proof.json`. Check the model with",
        "`dfl-node eval . --data FILE.npz`.",
        "",
        "Contributors:",
        "",
        *(f"- `{node}`" for node in nodes),
    ]
    return "\n".join(lines) + "\n"


def _no_job(job: int) -> UsageError:
    return UsageError(
        f"there is no job {job}", why="the ledger has none of this number", help_command="dfl-node job list"
    )


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _cid(text: str) -> Cid:
    try:
        return Cid.parse(text)
    except ValueError as bad:
        raise UsageError(f"{text!r:.80} is not a CID", why=str(bad)) from bad


async def _in_thread(call: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(call)
