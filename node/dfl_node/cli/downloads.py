"""A downloaded model on disk: what `job download` writes, and `eval` and `personalize` read."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dfl_ledger.errors import UpdateRefused, UsageError
from dfl_node.cli.common import read_text

if TYPE_CHECKING:
    from dfl_node.train.trainer import ModelConfig

MAX_CONFIG_BYTES = 64 * 1024
MAX_MODEL_BYTES = 1 << 30
MAX_DATA_BYTES = 1 << 31


def read_download(directory: Path) -> tuple[ModelConfig, bytes]:
    """How to build the model, and its weights. Raises UpdateRefused, UsageError."""
    model = _model_config(directory / "config.json")
    return model, read_bytes(directory / "model.safetensors", "model", MAX_MODEL_BYTES)


def _model_config(path: Path) -> ModelConfig:
    """How to build the model, from a download's config.json. Raises UpdateRefused for anything else."""
    from dfl_node.train.trainer import ModelConfig

    text = read_text(path, what="model's description", max_bytes=MAX_CONFIG_BYTES)
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


def read_bytes(path: Path, what: str, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise UsageError(f"cannot read the {what} {path}", why=f"{size} bytes, at most {max_bytes}")
        return path.read_bytes()
    except OSError as bad:
        raise UsageError(f"cannot read the {what} {path}", why=bad.strerror or str(bad)) from bad


def check_target(target: Path, *, force: bool) -> None:
    """Raises UsageError for a directory that holds something, unless `force`."""
    if target.exists() and any(target.iterdir()) and not force:
        raise UsageError(
            f"{target} is not empty", why="nothing is overwritten unasked", help_command="add --force"
        )


def write_download(target: Path, files: Mapping[str, bytes]) -> None:
    """The directory with these files: a new one appears whole or not at all. Raises UsageError."""
    try:
        _write_files(target, files)
    except OSError as bad:
        raise UsageError(f"cannot write {target}", why=bad.strerror or str(bad)) from bad


def _write_files(target: Path, files: Mapping[str, bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    scratch.mkdir()
    try:
        for name, data in files.items():
            (scratch / name).write_bytes(data)
        if target.exists() and any(target.iterdir()):  # --force: what else lies there stays
            for name in files:
                (scratch / name).replace(target / name)
        else:
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
