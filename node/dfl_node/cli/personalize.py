"""`dfl-node personalize`: fit a finished model to data that stays on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dfl_ledger.errors import TimedOut
from dfl_node.cli.common import file_type, timeout_option
from dfl_node.cli.downloads import MAX_DATA_BYTES, check_target, read_bytes, read_download, write_download
from dfl_node.cli.output import Result, command_output, fields

if TYPE_CHECKING:
    from dfl_node.train.trainer import ModelConfig, Personalized


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--data", "data_file", type=file_type(), required=True, help="NPZ with X, rows, and y, labels.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--steps", default=100, show_default=True, type=click.IntRange(1, 1_000_000))
@click.option("--lr", default=0.002, show_default=True, type=click.FloatRange(0, 100, min_open=True))
@click.option(
    "--train",
    "patterns",
    multiple=True,
    default=("*",),
    show_default="all",
    help="Only parameters whose names match, such as 'fc2.*'; may be given again.",
)
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0, 2**31 - 1))
@click.option("--force", is_flag=True, help="Overwrite the model's files.")
@timeout_option(3600.0)
@command_output
def personalize(
    directory: Path,
    data_file: Path,
    output: Path,
    steps: int,
    lr: float,
    patterns: tuple[str, ...],
    seed: int,
    force: bool,
    timeout_s: float,
) -> Result:
    """Fit the model in DIR, as `job download` wrote it, to the rows of an NPZ file of yours.

    A fifth of the rows is kept out of it, to measure the model before and after. Nothing leaves this machine.
    """
    import trio

    check_target(output, force=force)
    model, weights = read_download(directory)
    data = read_bytes(data_file, "data", MAX_DATA_BYTES)

    async def run() -> Personalized:
        return await _fit(model, weights, data, steps, lr, patterns, seed, timeout_s)

    found = trio.run(run)
    before, after = found.before, found.after
    config = {
        "architecture": model.name,
        "args": model.args,
        "weights": "model.safetensors",
        "personalized": {"steps": steps, "lr": lr, "train": list(patterns), "seed": seed},
    }
    files = {
        "model.safetensors": found.parameters,
        "config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }
    write_download(output, files)
    result = {
        "output_dir": str(output.absolute()),
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "loss_before": before.loss,
        "loss_after": after.loss,
        "samples": after.samples,
    }
    return Result(result, fields(dict(result)))


async def _fit(
    model: ModelConfig,
    weights: bytes,
    data: bytes,
    steps: int,
    lr: float,
    patterns: tuple[str, ...],
    seed: int,
    timeout_s: float,
) -> Personalized:
    import trio

    from dfl_node.train.process import open_trainer

    with trio.move_on_after(timeout_s):
        async with open_trainer() as trainer:
            return await trainer.personalize(
                model, weights, data, steps=steps, lr=lr, patterns=patterns, seed=seed
            )
    raise TimedOut(
        "gave up waiting for the fit",
        why=f"it took longer than {timeout_s:g} s",
        help_command="run it again with fewer --steps or a longer --timeout",
    )
