"""`dfl-node eval`: measure a downloaded model on data of your own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dfl_ledger.errors import TimedOut
from dfl_node.cli.common import file_type, timeout_option
from dfl_node.cli.downloads import MAX_DATA_BYTES, read_bytes, read_download
from dfl_node.cli.output import Result, command_output, fields

if TYPE_CHECKING:
    from dfl_node.train.trainer import Evaluation, ModelConfig


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

    model, weights = read_download(directory)
    data = read_bytes(data_file, "data", MAX_DATA_BYTES)
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
