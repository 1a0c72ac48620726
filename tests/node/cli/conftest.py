"""Run command lines in this process, under the whole output contract."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from dfl_node.cli import cli


@dataclass
class Ran:
    """What a command line did. With --json, `answer` is the one object on stdout."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> dict[str, Any]:
        lines = self.stdout.splitlines()
        assert len(lines) == 1, f"stdout holds {self.stdout!r}, not one object"
        answer: dict[str, Any] = json.loads(lines[0])
        assert set(answer) == {"schema_version", "status", "data"}
        assert answer["schema_version"] == "1"
        assert (answer["status"] == "ok") == (self.exit_code == 0)
        if answer["status"] == "error":
            assert set(answer["data"]["error"]) == {"type", "what", "why", "help"}
        return answer

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.answer["data"]
        return data

    @property
    def error(self) -> dict[str, str]:
        error: dict[str, str] = self.data["error"]
        return error


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command sets up the logs of its process, which here is that of all tests."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ran]:
    """`run("wallet", "show", path)`: the exit code and what was printed. HOME is empty."""
    monkeypatch.setenv("DFL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DFL_WALLET_PASSWORD", raising=False)

    def run_cli(*arguments: object, stdin: str | bytes | None = None) -> Ran:
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)
        return Ran(done.exit_code, done.stdout, done.stderr)

    return run_cli
