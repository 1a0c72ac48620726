"""Every model in every mode, and transfer learning in every mode: real nodes, real files."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from dfl_ledger.records import JobId
from dfl_node import jobspec
from dfl_node.localnet import LocalNet
from dfl_node.modes.mode import aggregation
from dfl_node.specrules import model_config
from dfl_node.train import models
from dfl_node.train.process import ProcessTrainer, open_trainer
from dfl_node.train.trainer import ModelConfig
from tests.faults.references import numbers
from tests.faults.test_processes import DONE_S, assert_paid_once, ended

T = TypeVar("T")
NODES, ROUNDS = 4, 2
BUDGET_WEI = 30 * 10**18
SPEC = """
name = "every model"
app = "digits"
mode = "{mode}"
[model]
name = "{model}"
args = {args}
{of_model}
[training]
rounds = {rounds}
local_steps = 16
batch_size = 32
optimizer = "adamw"
lr = {lr}
[round]
min_nodes = 4
quorum = {quorum}
open_s = 60
commit_s = 30
reveal_s = 10
aggregate_s = 20
settle_s = 60
challenge_s = 1
{of_mode}
[reward]
round_budget = "30"
"""
OF_MODE = {"async": "[async]\nsize = 3", "pipeline": "[pipeline]\nstages = 2\nsnapshot_steps = 8"}
MODES = ("sync", "async", "pipeline", "chained")
# Small ones: what is tried is the way of their files, not how well they learn.
ARGS = {
    "cnn": "{ width = 4, hidden = 16 }",
    "cnn_lstm": "{ width = 4, hidden = 16 }",
    "lstm": "{ hidden = 16 }",
    "mlp": "{ hidden = 16, layers = 2 }",
    "resnet18": "{ width = 4 }",
    "transformer": "{ depth = 2, heads = 2, head_width = 8 }",
}
LR = {"resnet18": 0.0005}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNet]:
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFL_HOME", str(root / "home"))
        with LocalNet(root / "net") as network:
            for number in range(1, NODES + 1):
                network.add_node("--shard", f"{number}:{number}/{NODES}")
                if number == 1:
                    network.wait_ready()
            network.wait_ready()
            yield network


@dataclass(frozen=True)
class Trained:
    """A job that has come to its end."""

    job: JobId
    spec: str
    first: bytes  # model files as they travel
    last: bytes
    before: float  # their losses on the application's validation rows
    after: float
    pieces: tuple[bytes, ...]


def with_trainer(call: Callable[[ProcessTrainer], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_trainer() as trainer:
            return await call(trainer)

    return trio.run(run)


def blob(net: LocalNet, cid: str) -> bytes:
    path = net.root / "file"
    net.cli("blob", "get", cid, "-o", str(path), "--force", "--datadir", str(net.nodes[0].datadir))
    return path.read_bytes()


def train(net: LocalNet, mode: str, model: str, of_model: str = "", base: bytes | None = None) -> Trained:
    spec = SPEC.format(
        mode=mode,
        model=model,
        args=ARGS[model],
        of_model=of_model,
        rounds=ROUNDS,
        lr=LR.get(model, 0.005),
        quorum=2,
        of_mode=OF_MODE.get(mode, ""),
    )
    job = net.submit(spec)
    final = net.watch(job, ended, timeout_s=DONE_S)
    assert final["completed"] == ROUNDS
    assert_paid_once(net, job, ROUNDS * BUDGET_WEI)
    first, last = blob(net, final["rounds"][0]["parent"]), blob(net, final["model"])
    with net.rows() as ledger:
        pieces = tuple(blob(net, row.cid) for row in ledger.contributions(job=job) if row.kind != "feed")
    parsed = jobspec.parse(spec)

    async def losses(trainer: ProcessTrainer) -> list[float]:
        if base is not None:
            await trainer.keep_base(str(parsed.model.base), base)
        rows = await trainer.validation_rows(parsed.app)
        config, rule = model_config(parsed), aggregation(parsed)
        return [await trainer.loss(config, file, rows, rule) for file in (first, last)]

    before, after = with_trainer(losses)
    return Trained(job, spec, first, last, before, after, pieces)


def downloaded(net: LocalNet, job: JobId, directory: Path) -> bytes:
    net.cli("job", "download", str(job), "-o", str(directory), "--datadir", str(net.nodes[0].datadir))
    return (directory / "model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("model", models.names())
@pytest.mark.parametrize("mode", MODES)
def test_every_model_is_trained_in_every_mode(net: LocalNet, mode: str, model: str, tmp_path: Path) -> None:
    trained = train(net, mode, model)
    assert trained.after < trained.before - 0.02
    whole = downloaded(net, trained.job, tmp_path / "model")
    tensors = {tensor.name for tensor in models.full_schema(config(model)).tensors}
    assert numbers(whole).keys() == tensors
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architecture"] == model


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_adapters_on_a_frozen_base_are_trained_in_every_mode(
    net: LocalNet, mode: str, tmp_path: Path
) -> None:
    base = with_trainer(lambda trainer: trainer.init_model(config("cnn"), 7))
    (tmp_path / "base").write_bytes(base)
    added = net.cli("blob", "add", str(tmp_path / "base"), "--datadir", str(net.nodes[0].datadir))
    adapters = "[model.lora]\nrank = 4\nalpha = 8.0\ntargets = ['fc*']"
    of_model = f"base = '{added['cid']}'\nfreeze = ['conv*']\n{adapters}"
    trained = train(net, mode, "cnn", of_model, base)
    assert trained.after < trained.before - 0.02
    assert all("lora_" in name for name in numbers(trained.last))
    if mode != "pipeline":  # whose files hold the optimizer's state too
        assert max(map(len, trained.pieces)) < len(base) / 2
    before, after = numbers(base), numbers(downloaded(net, trained.job, tmp_path / "model"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"fc1.weight", "fc2.weight"}


@pytest.mark.long
@pytest.mark.parametrize("mode", ["sync", "async", "chained"])  # in a pipeline no node has the whole model
def test_a_personal_head_never_leaves_its_node(net: LocalNet, mode: str) -> None:
    trained = train(net, mode, "cnn", "personal = ['fc2.*']")
    assert trained.after < trained.before - 0.02
    for file in (trained.first, trained.last, *trained.pieces):
        assert not [name for name in numbers(file) if name.startswith("fc2")]


def config(model: str) -> ModelConfig:
    return model_config(
        jobspec.parse(
            SPEC.format(
                mode="sync",
                model=model,
                args=ARGS[model],
                of_model="",
                rounds=1,
                lr=0.1,
                quorum=2,
                of_mode="",
            )
        )
    )
