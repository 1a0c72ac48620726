"""From a job spec to a job on chain: everything that can be wrong is found before money moves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from dfl_ledger.errors import InsufficientFunds, SpecInvalid, UsageError
from dfl_node import jobspec
from dfl_node.api.service import JsonObject
from dfl_node.bases import keep_base
from dfl_node.config import Role
from dfl_node.jobspec import JobSpec
from dfl_node.modes import sealed
from dfl_node.modes.mode import aggregation
from dfl_node.specrewards import FROM_APP
from dfl_node.specrules import model_config

if TYPE_CHECKING:
    from dfl_node.node import Node

log = structlog.get_logger(__name__)


async def check(node: Node, toml: str) -> JsonObject:
    """Whether this node could submit the job now. Raises SpecInvalid with the field, InsufficientFunds."""
    spec, held_wei = await _checked(node, toml)
    return {"name": spec.name, "budget_wei": str(spec.budget_wei), "held_wei": str(held_wei)}


async def submit(node: Node, toml: str) -> JsonObject:
    """Publish validation rows, first model and spec, then escrow the budget. Money moves last."""
    spec, _ = await _checked(node, toml)
    parts, trainer = node.parts, node.parts.trainer
    model = await trainer.init_model(model_config(spec), spec.training.seed, aggregation(spec))
    if len(model) > spec.training.max_update_bytes:
        raise SpecInvalid("training.max_update_bytes", f"the model itself has {len(model)} bytes")
    if spec.reward.sealed:
        spec = await sealed.publish(parts, spec)
    elif spec.reward.validation == FROM_APP:
        rows = await trainer.validation_rows(spec.app)
        spec = spec.with_validation(await parts.store.put(rows))
    model_cid = await parts.store.put(model)
    spec_cid = await parts.store.put(spec.encode())
    create = partial(parts.ledger.create_job, spec.terms(spec_cid, model_cid))
    job = await trio.to_thread.run_sync(create)
    log.info("job submitted", job=job, name=spec.name, budget_wei=str(spec.budget_wei))
    await node.tell_news()
    return {
        "job_id": job,
        "name": spec.name,
        "spec_cid": str(spec_cid),
        "model_cid": str(model_cid),
        "validation_cid": spec.reward.validation,
        "budget_wei": str(spec.budget_wei),
    }


async def _checked(node: Node, toml: str) -> tuple[JobSpec, int]:
    """The spec, and what the wallet holds in wei."""
    spec = jobspec.parse(toml)
    if Role.REQUEST not in node.config.roles:
        raise UsageError(
            "this node does not submit jobs",
            why="it runs without the role `request`",
            help_command="dfl-node start --roles train,request …",
        )
    ledger = node.parts.ledger
    held_wei = await trio.to_thread.run_sync(ledger.balance_wei, ledger.address)
    if held_wei < spec.budget_wei:
        raise InsufficientFunds(
            f"wallet {ledger.address} cannot pay for the job",
            why=f"{spec.training.rounds} rounds cost {spec.budget_wei} wei of VNX, it holds {held_wei}",
            help_command=f"dfl-node chain fund {ledger.address}",
        )
    await keep_base(node.parts, spec)
    await node.parts.trainer.check(model_config(spec))
    return spec, held_wei
