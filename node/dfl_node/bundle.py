"""What a job made, ready to take away: the model, how to build it, a model card, and the ledger's word."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from dfl_ledger.errors import UsageError
from dfl_ledger.records import JobId, JobState
from dfl_node import jobspec
from dfl_node.api.service import DownloadBundle
from dfl_node.bases import keep_base
from dfl_node.jobspec import JobSpec
from dfl_node.modes.mode import aggregation
from dfl_node.specrules import model_config
from dfl_node.train import strategies

if TYPE_CHECKING:
    from dfl_node.node import Node


async def bundle(node: Node, job: JobId) -> DownloadBundle:
    """The newest accepted model of a job as files. Raises UsageError for an unknown job."""
    parts, in_thread = node.parts, trio.to_thread.run_sync
    state = await in_thread(parts.ledger.job, job)
    if state is None:
        raise UsageError(f"there is no job {job}", why="the chain has none", help_command="dfl-node job list")
    spec = jobspec.decode(await parts.store.get(state.terms.spec, max_bytes=jobspec.MAX_SPEC_BYTES))
    shared = await parts.store.get(state.model, max_bytes=spec.training.max_update_bytes)
    model = shared
    if _travels_in_part(spec):  # else it is what it is, and may be larger than our trainer's memory
        await keep_base(parts, spec)
        model = await parts.trainer.export(model_config(spec), shared, aggregation(spec))
    rows = await in_thread(partial(parts.rows.contributions, job=job, limit=None))
    contributions = [row.to_json() for row in rows]
    settlements = await in_thread(parts.rows.settlements, job)
    config = {
        "architecture": spec.model.name,
        "args": spec.model.args,
        "app": spec.app,
        "weights": "model.safetensors",
        "weights_cid": str(
            state.model
        ),  # as it travelled: without what a base gives, with a strategy's state
        "base_cid": spec.model.base,
    }
    proof = {
        "schema_version": "1",
        "chain_id": node.deployment.chain_id,
        "contracts": node.deployment.addresses,
        "job": job,
        "requester": state.requester,
        "spec_cid": str(state.terms.spec),
        "first_model_cid": str(state.terms.model),
        "model_cid": str(state.model),
        "rounds_completed": state.completed,
        "settlements": settlements,
        "contributions": contributions,
    }
    return DownloadBundle(
        {
            "model.safetensors": model,
            "config.json": _json(config),
            "README.md": _model_card(spec, state, contributions).encode(),
            "ledger-proof.json": _json(proof),
        }
    )


def _travels_in_part(spec: JobSpec) -> bool:
    """Whether a model file of the job is not a plain, whole model."""
    model = spec.model
    state = strategies.find(spec.training.strategy).server
    return bool(model.freeze or model.personal or model.lora or state)


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


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
