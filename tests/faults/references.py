"""What the models of a job must be, computed once more from its published pieces by a trainer of our own.

Real files of real nodes: data parallel to the last bit; a pipelined round against the whole model in one
piece, trained on the same micro-batches.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Sequence

import trio

from dfl_ledger.records import Cid, JobId, Mode
from dfl_ledger.rows import ContributionRow
from dfl_node import jobspec
from dfl_node.api.client import NodeClient
from dfl_node.config import parse_shard
from dfl_node.jobspec import JobSpec
from dfl_node.localnet import LocalNet
from dfl_node.modes.mode import aggregation, job_seed, training_config
from dfl_node.modes.pipeline.files import Record
from dfl_node.specrules import model_config
from dfl_node.train.process import ProcessTrainer, open_trainer
from dfl_node.train.stage import StageConfig
from dfl_node.train.trainer import DataConfig, WeightedUpdate

TOLERANCE = 1e-5  # of a number of a pipelined model, and of a loss


def check_models(net: LocalNet, job: JobId, spec: str) -> None:
    """Of a job of mode sync, async or pipeline that has completed and is settled."""
    parsed = jobspec.parse(spec)
    files = _Files(net)

    async def run() -> None:
        async with open_trainer() as trainer:
            check = _check_pipeline if parsed.mode is Mode.PIPELINE else _check_data_parallel
            await check(net, job, parsed, files, trainer)

    trio.run(run)


class _Files:
    """By CID, through the first node."""

    def __init__(self, net: LocalNet) -> None:
        self._node, self._path = net.nodes[0].datadir, net.root / "piece"

    def get(self, cid: str | Cid) -> bytes:
        with NodeClient(self._node, timeout_s=60.0) as node:
            node.get_blob(str(cid), self._path, overwrite=True)
        return self._path.read_bytes()


def _rounds(net: LocalNet, job: JobId) -> list[tuple[int, str, str, tuple[ContributionRow, ...]]]:
    """Number, parent, model and pieces of each round that gave one."""
    with net.rows() as ledger:
        found = ledger.job(job)
        assert found is not None
        return [
            (row.round, str(row.parent), row.model, ledger.revealed(job, row.round))
            for row in found.rounds
            if row.model is not None
        ]


async def _check_data_parallel(
    net: LocalNet, job: JobId, spec: JobSpec, files: _Files, trainer: ProcessTrainer
) -> None:
    rounds = _rounds(net, job)
    assert rounds
    models = [rounds[0][1]]  # in the order of publication
    for round_, parent, model, rows in rounds:
        assert parent == models[-1]
        assert all(row.accepted is not None for row in rows), "evidence is missing"
        updates = [
            WeightedUpdate(files.get(row.cid), row.samples, models[::-1].index(row.parent))
            for row in rows
            if row.accepted
        ]
        again = await trainer.aggregate(
            model_config(spec),
            files.get(parent),
            updates,
            rule=aggregation(spec),
            max_update_bytes=spec.training.max_update_bytes,
        )
        assert files.get(model) == again.model, f"round {round_}"
        models.append(model)


async def _check_pipeline(
    net: LocalNet, job: JobId, spec: JobSpec, files: _Files, trainer: ProcessTrainer
) -> None:
    for round_, parent, model, rows in _rounds(net, job):
        (fed,) = (row for row in rows if row.kind == "feed" and row.accepted)
        record = Record.decode(files.get(fed.cid))
        losses, expected = await _in_one_piece(net, job, round_, spec, files.get(parent), record, trainer)
        told = [(ours, theirs) for ours, theirs in zip(losses, record.losses, strict=True) if theirs]
        assert told
        assert max(abs(ours - theirs) for ours, theirs in told) <= TOLERANCE, f"round {round_}: losses"
        found = numbers(files.get(model))
        assert found.keys() == expected.keys()
        for name, wanted in expected.items():
            assert max(map(abs, _differences(found[name], wanted))) <= TOLERANCE, f"round {round_}: {name}"


async def _in_one_piece(
    net: LocalNet,
    job: JobId,
    round_: int,
    spec: JobSpec,
    parent: bytes,
    record: Record,
    trainer: ProcessTrainer,
) -> tuple[list[float], dict[str, array[float]]]:
    """The losses and the model of a run that nothing disturbed: one stage, which is the whole model."""
    assert spec.pipeline is not None
    model, training, micro_batches = model_config(spec), training_config(spec), spec.pipeline.micro_batches
    rows = training.batch_size // micro_batches
    stage = await trainer.open_stage(StageConfig(model, training, (), 0, micro_batches, rows), parent, None)
    steps = record.finish.point.step
    fed_by = [""] * steps
    for turn in record.turns:  # who follows a lost conductor feeds rows of its own from there on
        fed_by[turn.step :] = [turn.conductor] * (steps - turn.step)
    feeds = {}
    for address in set(fed_by):
        (feeder,) = (node for node in net.nodes if node.address == address)
        shard = parse_shard(feeder.options[feeder.options.index("--shard") + 1])
        feeds[address] = await trainer.open_feed(
            DataConfig(spec.app, None, shard, None),
            model,
            training,
            micro_batches=micro_batches,
            seed=(spec.training.seed, job, round_, job_seed(feeder.address, job)),
        )
    losses = []
    for step, address in enumerate(fed_by):
        loss = 0.0
        for micro in range(micro_batches):
            loss += (await stage.last(micro, *await feeds[address].batch(step, micro)))[0]
        losses.append(loss / micro_batches)
        await stage.step()
    whole = await trainer.restack(
        model, (), [await stage.snapshot()], max_update_bytes=spec.training.max_update_bytes
    )
    return losses, numbers(whole)


def _differences(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(ones, others, strict=True)]


def numbers(model: bytes) -> dict[str, array[float]]:
    """The tensors of a safetensors file of float32."""
    (length,) = struct.unpack_from("<Q", model)
    found = {}
    header = json.loads(model[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        found[name] = array("f", model[8 + length + begin : 8 + length + end])
    return found
