"""`dfl-node eval`: measure a downloaded model on data of your own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dfl_ledger.errors import TimedOut, UpdateRefused, UsageError
from dfl_node.cli.common import file_type, read_text, timeout_option
from dfl_node.cli.output import Result, command_output, fields

if TYPE_CHECKING:
    from dfl_node.train.trainer import Evaluation, ModelConfig

_MAX_CONFIG_BYTES = 64 * 1024
_MAX_MODEL_BYTES = 1 << 30
_MAX_DATA_BYTES = 1 << 31


@click.command("eval")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--data", "data_file", type=file_type(), required=True, help="NPZ with X, rows, and y, labels.")
@timeout_option(600.0)
@command_output
def evaluate(directory: Path, data_file: Path, timeout_s: float) -> Result:
    """Measure the model in DIR, as `job download` wrote it, on an NPZ file.

    For digits: X uint8 (n, 28, 28), y the digits.
    """
    import trio

    model = _model_config(directory / "config.json")
    weights = _read(directory / "model.safetensors", "model", _MAX_MODEL_BYTES)
    data = _read(data_file, "data", _MAX_DATA_BYTES)
    found = trio.run(_measure, model, weights, data, timeout_s)
    # NaN is not JSON: a regression has no accuracy, and a diverged model no loss.
    accuracy = found.accuracy if math.isfinite(found.accuracy) else None
    loss = found.loss if math.isfinite(found.loss) else None
    result = {"accuracy": accuracy, "loss": loss, "samples": found.samples}
    return Result(result, fields(dict(result)))


async def _measure(model: ModelConfig, weights: bytes, data: bytes, timeout_s: float) -> Evaluation:
    import trio

    from dfl_node.train.process import open_trainer

    with trio.move_on_after(timeout_s):
        async with open_trainer() as trainer:
            return await trainer.evaluate(model, weights, data)
    raise TimedOut(
        "gave up waiting for the evaluation",
        why=f"it took longer than {timeout_s:g} s",
        help_command="run it again with a longer --timeout",
    )


def _model_config(path: Path) -> ModelConfig:
    """How to build the model, from a download's config.json. Raises UpdateRefused for anything else."""
    from dfl_node.train.trainer import ModelConfig

    text = read_text(path, what="model's description", max_bytes=_MAX_CONFIG_BYTES)
    try:
        told = json.loads(text)
        name, args = told["architecture"], told["args"]
    except (ValueError, KeyError, TypeError, RecursionError) as bad:
        raise _refused(path, "it has no `architecture` and `args`") from bad
    if not isinstance(name, str) or not isinstance(args, dict):
        raise _refused(path, "`architecture` is not a name, or `args` not a table")
    return ModelConfig(name=name, args=args)


def _refused(path: Path, why: str) -> UpdateRefused:
    return UpdateRefused(
        f"{path} does not describe a model", why=why, help_command="dfl-node job download ID -o DIR"
    )


def _read(path: Path, what: str, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise UsageError(f"cannot read the {what} {path}", why=f"{size} bytes, at most {max_bytes}")
        return path.read_bytes()
    except OSError as bad:
        raise UsageError(f"cannot read the {what} {path}", why=bad.strerror or str(bad)) from bad
