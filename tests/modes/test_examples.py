"""Every example, submitted as the documentation says, run to its end on real nodes, and paid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dfl_node.localnet import LocalNet
from tests.faults.test_processes import DONE_S, assert_paid_once, ended

EXAMPLES = Path(__file__).parents[2] / "examples"
NODES = 3
LONG = pytest.mark.long
BUDGET_WEI = 100 * 10**18  # of a round, in every example


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNet]:
    """Nodes with different digits, as many as each example asks for."""
    root = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFL_HOME", str(root / "home"))
        with LocalNet(root / "net") as network:
            for number in range(1, NODES + 1):
                network.add_node("--shard", f"{number}:{number}/{NODES}", "--data", "digits")
                if number == 1:
                    network.wait_ready()
            network.wait_ready()
            yield network


def accuracy(net: LocalNet, directory: Path) -> float:
    """Of a downloaded model, on images that nobody trained on."""
    return float(net.cli("eval", str(directory), "--data", str(holdout(net)))["accuracy"])


def holdout(net: LocalNet) -> Path:
    from dfl_apps.digits import APP
    from dfl_node.train import rows

    path = net.root / "holdout.npz"
    if not path.exists():
        path.write_bytes(rows.write_npz(APP.holdout()))
    return path


def run(net: LocalNet, spec: str, directory: Path) -> int:
    job = net.submit(spec)
    final = net.watch(job, ended, timeout_s=DONE_S)
    assert final["completed"] == final["target_rounds"]
    net.cli("job", "download", str(job), "-o", str(directory), "--datadir", str(net.nodes[0].datadir))
    assert_paid_once(net, job, final["completed"] * BUDGET_WEI)
    return job


@pytest.fixture(scope="module")
def sync(net: LocalNet, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Job and model of the first example."""
    directory = tmp_path_factory.mktemp("sync") / "model"
    return run(net, (EXAMPLES / "sync.toml").read_text(), directory), directory


# A sync job is what most other tests of real nodes run.
@pytest.mark.parametrize("mode", [pytest.param("sync", marks=LONG), "async", "pipeline", "chained"])
def test_an_example_of_each_mode_trains_a_model_that_reads_digits(
    net: LocalNet, mode: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if mode == "sync":
        job, model = request.getfixturevalue("sync")
    else:
        model = tmp_path / "model"
        job = run(net, (EXAMPLES / f"{mode}.toml").read_text(), model)
    assert accuracy(net, model) >= 0.92
    drawn = net.cli("job", "draw", str(job), "--datadir", str(net.nodes[0].datadir))["edges"]
    with net.rows() as ledger:
        pieces = {row.cid for row in ledger.contributions(job=job, limit=None)}
    assert pieces <= {edge["target"] for edge in drawn}
    kinds = {"chained": {"hop"}, "pipeline": {"stage", "feed"}}
    with net.rows() as ledger:
        assert {row.kind for row in ledger.contributions(job=job)} == kinds.get(mode, {"update"})


@LONG
def test_the_transfer_example_adapts_a_base_and_sends_only_adapters(net: LocalNet, tmp_path: Path) -> None:
    short = (EXAMPLES / "sync.toml").read_text().replace("rounds = 4", "rounds = 1")
    run(net, short.replace("local_steps = 60", "local_steps = 25"), tmp_path / "base")
    before = accuracy(net, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    datadir = ("--datadir", str(net.nodes[0].datadir))
    base = net.cli("blob", "add", str(weights), *datadir)
    spec = (EXAMPLES / "transfer.toml").read_text().replace('"BASE"', f'"{base["cid"]}"')
    job = run(net, spec, tmp_path / "model")
    assert accuracy(net, tmp_path / "model") > before
    with net.rows() as ledger:
        update = ledger.contributions(job=job)[0].cid
    net.cli("blob", "get", update, "-o", str(tmp_path / "update"), *datadir)
    assert (tmp_path / "update").stat().st_size < weights.stat().st_size / 4
    assert (tmp_path / "model" / "model.safetensors").stat().st_size == weights.stat().st_size


@LONG
def test_a_finished_model_is_fitted_to_data_that_stays_here(
    net: LocalNet, sync: tuple[int, Path], tmp_path: Path
) -> None:
    """Rows of a node's own: digits with their colours inverted."""
    import numpy as np

    from dfl_apps.digits import APP
    from dfl_node.train import rows

    _, model = sync
    own = APP.load(None, (1, 1, 3), None)
    odd = rows.Rows(np.asarray(255 - own.X, np.uint8), own.y)
    (tmp_path / "own.npz").write_bytes(rows.write_npz(odd))
    fitted = net.cli(
        *("personalize", str(model), "--data", str(tmp_path / "own.npz")),
        *("-o", str(tmp_path / "personal"), "--steps", "60"),
    )
    assert fitted["accuracy_after"] > fitted["accuracy_before"] + 0.2
    assert accuracy(net, tmp_path / "personal") < accuracy(net, model)  # it is another task
