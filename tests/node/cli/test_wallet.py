"""`dfl-node wallet`: what it writes, what it refuses, and that no secret shows."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfl_node.cli import common
from dfl_node.identity import read_keystore, write_private

KEY = bytes(range(1, 33)).hex()
ADDRESS = "0x6370eF2f4Db3611D657b90667De398a2Cc2a370C"
PASSWORD = "a good password"


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    write_private(path, PASSWORD.encode() + b"\n")
    return path


@pytest.fixture
def new(run: Any, tmp_path: Path, password_file: Path) -> Callable[[], Path]:
    def make() -> Path:
        path = tmp_path / "key.json"
        assert run("wallet", "new", path, "--light", "--password-file", password_file).exit_code == 0
        return path

    return make


def test_new_and_show(run: Any, tmp_path: Path, password_file: Path) -> None:
    path = tmp_path / "deep" / "key.json"
    made = run("wallet", "new", path, "--light", "--password-file", password_file, "--json")
    assert made.exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shown = run("wallet", "show", path, "--json")
    assert shown.data == made.data == {"address": made.data["address"], "path": str(path)}
    assert run("wallet", "show", path).stdout.strip() == made.data["address"]
    assert PASSWORD not in made.stdout + made.stderr


def test_an_existing_wallet_is_never_overwritten(run: Any, new: Any, password_file: Path) -> None:
    path = new()
    before = path.read_bytes()
    for command in (("new",), ("import",)):
        again = run(
            "wallet", *command, path, "--light", "--password-file", password_file, "--json", stdin=KEY
        )
        assert again.exit_code == 5
        assert "exists already" in again.error["what"]
    assert path.read_bytes() == before


def test_the_environment_may_hold_the_password(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFL_WALLET_PASSWORD", PASSWORD)
    path = tmp_path / "key.json"
    assert run("wallet", "new", path, "--light").exit_code == 0
    assert read_keystore(path).unlock(PASSWORD)


def test_without_anybody_to_ask_there_is_no_wallet(run: Any, tmp_path: Path) -> None:
    told = run("wallet", "new", tmp_path / "key.json", "--json")
    assert told.exit_code == 5
    assert "--password-file" in told.error["why"]
    assert not (tmp_path / "key.json").exists()


def test_a_prompt_asks_twice(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "can_prompt", lambda: True)
    path = tmp_path / "key.json"
    made = run(
        "wallet", "new", path, "--light", "--json", stdin=f"{PASSWORD}\nother\n{PASSWORD}\n{PASSWORD}\n"
    )
    assert made.data["address"]
    assert PASSWORD not in made.stdout + made.stderr
    assert read_keystore(path).unlock(PASSWORD)


def test_an_empty_password_is_refused(run: Any, tmp_path: Path) -> None:
    empty = tmp_path / "password"
    write_private(empty, b"\n")
    assert run("wallet", "new", tmp_path / "key.json", "--password-file", empty, "--json").exit_code == 5


def test_exposed_files_are_refused_with_the_mending_command(
    run: Any, new: Any, tmp_path: Path, password_file: Path
) -> None:
    path = new()
    path.chmod(0o644)
    shown = run("wallet", "show", path, "--json")
    assert (shown.exit_code, shown.error["type"]) == (5, "KeyFileExposed")
    assert shown.error["help"] == f"chmod 600 {path}"
    password_file.chmod(0o640)
    made = run("wallet", "new", tmp_path / "other.json", "--password-file", password_file, "--json")
    assert (made.exit_code, made.error["type"]) == (5, "KeyFileExposed")


@pytest.mark.parametrize("text", ["", "{", '{"version": 3}', "plain text"])
def test_what_is_not_a_wallet_is_said_to_be_none(run: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "key.json"
    write_private(path, text.encode())
    told = run("wallet", "show", path, "--json")
    assert told.exit_code == 5
    assert "is not a wallet" in told.error["what"]


def test_a_raw_key_comes_from_stdin_or_a_private_file(run: Any, tmp_path: Path, password_file: Path) -> None:
    options = ("--light", "--password-file", password_file, "--json")
    piped = run("wallet", "import", tmp_path / "a.json", *options, stdin=f"0x{KEY}\n")
    source = tmp_path / "raw"
    write_private(source, KEY.encode())
    read = run("wallet", "import", tmp_path / "b.json", "--from", source, *options)
    assert piped.data["address"] == read.data["address"] == ADDRESS
    assert read_keystore(tmp_path / "b.json").unlock(PASSWORD).key.hex() == KEY
    source.chmod(0o644)
    exposed = run("wallet", "import", tmp_path / "c.json", "--from", source, *options)
    assert exposed.error["type"] == "KeyFileExposed"


def test_a_keystore_is_imported_by_its_password(
    run: Any, new: Any, tmp_path: Path, password_file: Path
) -> None:
    old = new()
    options = ("--light", "--password-file", password_file, "--json")
    done = run("wallet", "import", tmp_path / "copy.json", "--from", old, *options)
    assert done.data["address"] == run("wallet", "show", old, "--json").data["address"]
    wrong = tmp_path / "wrong"
    write_private(wrong, b"wrong")
    told = run("wallet", "import", tmp_path / "x.json", "--from", old, "--password-file", wrong, "--json")
    assert (told.exit_code, told.error["type"]) == (5, "WrongPassword")
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("secret", ["", "12", "z" * 64, "0" * 64, "f" * 64, "1" * 70_000])
def test_a_bad_key_is_refused_and_not_repeated(
    run: Any, tmp_path: Path, password_file: Path, secret: str
) -> None:
    options = ("--light", "--password-file", password_file, "--json")
    told = run("wallet", "import", tmp_path / "key.json", *options, stdin=secret)
    assert told.exit_code == 5
    assert len(secret) < 8 or secret not in told.stdout + told.stderr
    assert not (tmp_path / "key.json").exists()


def test_no_command_takes_a_secret_as_an_argument() -> None:
    import click

    from dfl_node.cli import cli

    context = click.Context(cli)
    group = cli.get_command(context, "wallet")
    assert isinstance(group, click.Group)
    for command in group.commands.values():
        names = {name for parameter in command.params for name in (*parameter.opts, parameter.name or "")}
        assert not names & {"--password", "--key", "--private-key", "password", "key"}
