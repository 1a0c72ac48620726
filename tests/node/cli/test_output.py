"""The output contract: one JSON object whatever happens, and every exit code."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import pytest

from dfl_ledger import errors
from dfl_ledger.errors import (
    ChainUnreachable,
    DflError,
    PeerMisbehaved,
    Reverted,
    SpecInvalid,
    TimedOut,
    UpdateRefused,
    UsageError,
    WalletError,
)
from dfl_node import cli as cli_package
from dfl_node.cli import COMMANDS, cli
from dfl_node.cli.output import Result, command_output, emit, fields, printable, table, vnx

SPECIAL = {
    SpecInvalid: SpecInvalid("model.name", "is missing"),
    PeerMisbehaved: PeerMisbehaved("12D3", "sent garbage"),
    Reverted: Reverted("join", "AlreadyJoined", {"job": 7}),
}
PROMPT = b"New password: "
EVERY_ERROR = [
    SPECIAL.get(kind) or kind("what", why="why", help_command="dfl-node doctor")
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DflError)
]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Put a command of the test's own in the place of `status`."""

    def put(body: Callable[[], Any]) -> None:
        made = click.command("status")(command_output(body))
        monkeypatch.setattr(cli_package._Root, "get_command", lambda *_: made)

    return put


def _raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_every_error_ends_with_its_code_and_three_lines(run: Any, command: Any, error: DflError) -> None:
    command(_raising(error))
    told = run("status", "--json")
    assert told.exit_code == error.exit_code
    helps = error.help_command or "dfl-node doctor"
    assert told.error == {
        "type": type(error).__name__,
        "what": error.what,
        "why": error.why,
        "help": helps,
    }
    human = run("status")
    assert human.exit_code == error.exit_code
    assert human.stdout == ""
    assert "Traceback" not in human.stderr
    assert human.stderr.splitlines() == [f"Error: {error.what}", f"  why:  {error.why}", f"  help: {helps}"]


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (UsageError("what"), "dfl-node status --help"),
        (WalletError("what"), "dfl-node status --help"),
        (UpdateRefused("what"), "dfl-node status --help"),
        (ChainUnreachable("what"), "dfl-node doctor"),
        (TimedOut("what"), "dfl-node doctor"),
        (DflError("what"), "dfl-node doctor"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_that_names_no_command_gets_one(run: Any, command: Any, error: DflError, helps: str) -> None:
    command(_raising(error))
    assert run("status", "--json").error["help"] == helps


def test_the_exit_codes_are_those_of_the_contract() -> None:
    codes = {type(e).__name__: e.exit_code for e in EVERY_ERROR}
    assert codes["DflError"] == codes["Reverted"] == 1
    assert codes["UsageError"] == codes["SpecInvalid"] == codes["WrongChain"] == 2
    assert codes["ChainUnreachable"] == codes["StoreUnavailable"] == codes["NodeNotRunning"] == 3
    assert codes["TimedOut"] == 4
    assert codes["WrongPassword"] == codes["KeyFileExposed"] == codes["InsufficientFunds"] == 5
    assert codes["UpdateRefused"] == codes["CidMismatch"] == codes["BindingInvalid"] == 6


def test_a_bug_is_said_to_be_one(run: Any, command: Any) -> None:
    def broken() -> None:
        raise KeyError("inside")

    command(broken)
    told = run("status", "--json")
    assert told.exit_code == 70
    assert "this is a bug" in told.error["what"]
    assert "Traceback" not in told.stderr
    again = run("status", "--json")
    assert again.error["what"] == told.error["what"]  # the reference is the same for the same place
    assert "Traceback" in run("status", "--debug").stderr


def test_ctrl_c_is_130(run: Any, command: Any) -> None:
    command(_raising(KeyboardInterrupt()))
    told = run("status", "--json")
    assert told.exit_code == 130
    assert told.error["type"] == "Interrupted"


def test_what_a_nursery_collected_is_shown_as_one_error(run: Any, command: Any) -> None:
    gone = ChainUnreachable("the chain is gone")
    command(_raising(ExceptionGroup("nursery", [ExceptionGroup("nursery", [gone]), gone])))
    assert run("status", "--json").exit_code == 3
    command(_raising(ExceptionGroup("nursery", [gone, KeyError("bug")])))
    assert run("status", "--json").exit_code == 70
    command(_raising(BaseExceptionGroup("nursery", [KeyboardInterrupt(), gone])))
    assert run("status", "--json").exit_code == 130


def test_a_result_can_be_a_failure_with_data(run: Any, command: Any) -> None:
    command(lambda: Result({"job_id": 3}, "job 3", DflError("job 3 failed")))
    told = run("status", "--json")
    assert told.exit_code == 1
    assert told.data["job_id"] == 3
    assert told.error["what"] == "job 3 failed"


def test_nothing_but_the_object_gets_to_stdout(run: Any, command: Any) -> None:
    def noisy() -> dict[str, Any]:
        print("a library talks")
        emit(Result({"first": True}))
        return {"second": True}

    command(noisy)
    told = run("status", "--json")
    assert told.data == {"first": True}
    assert "a library talks" in told.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frob",),
        ("status", "--frob"),
        ("status", "extra"),
        ("wallet",),
        ("wallet", "new"),
        ("blob", "get", "bafy"),
        ("job", "status", "one"),
        ("ledger", "query", "--limit", "0"),
        ("start",),
        ("--frob",),
        ("chain", "fund", "0x12"),
        ("eval", "."),
    ],
)
def test_clicks_own_errors_keep_the_contract(run: Any, arguments: tuple[str, ...]) -> None:
    told = run(*arguments, "--json")
    assert told.exit_code == 2
    assert told.error["what"]
    assert told.error["help"].startswith("dfl-node ")
    assert told.stdout == run("--json", *arguments).stdout
    human = run(*arguments)
    assert (human.exit_code, human.stdout) == (2, "")


@pytest.mark.parametrize("arguments", [("--help",), ("wallet", "--help"), ("job", "watch", "--help")])
def test_help_is_for_people_and_still_one_object(run: Any, arguments: tuple[str, ...]) -> None:
    assert "Usage: dfl-node" in run(*arguments).stdout
    assert run(*arguments, "--json").answer["status"] == "ok"


def test_the_version(run: Any) -> None:
    assert run("--version").stdout.startswith("dfl-node ")
    assert run("--version", "--json").data["version"]


def test_every_command_takes_json_and_debug() -> None:
    context = click.Context(cli)

    def leaves(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            return [(path, command)]
        found = []
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None, f"{path} {name}"
            found += leaves(child, f"{path} {name}")
        return found

    commands = leaves(cli, "dfl-node")
    assert len(commands) > 20
    for path, command in commands:
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--debug"} <= options, path
        assert command.help, path


def test_no_heavy_module_is_imported_for_help_or_version() -> None:
    """What makes `--help` fast; `benchmarks` measure how fast."""
    script = """
import sys
from dfl_node.cli import main
try:
    main()
except SystemExit as done:
    assert done.code == 0, done.code
heavy = {"torch", "numpy", "libp2p", "web3", "eth_account", "trio", "httpx", "rich", "starlette", "hypercorn",
         "structlog", "multiaddr", "asyncio", "sqlite3", "dfl_ledger.chain", "dfl_ledger.query"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    for arguments in (
        ["--help"],
        ["--version"],
        ["wallet", "--help"],
        ["start", "--help"],
        ["job", "--help"],
    ):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=True)
        assert done.stderr.decode().strip() == "[]", arguments


def test_every_entry_of_the_table_is_a_command() -> None:
    for name, (_, _, words) in COMMANDS.items():
        found = cli.get_command(click.Context(cli), name)
        assert found is not None
        assert found.name == name
        assert words.endswith(".")


# -- a real process ----------------------------------------------------------------------------------------
def _process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "dfl_node", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=30, **options)


def test_the_program_itself_keeps_the_contract(tmp_path: Any) -> None:
    done = _process("status", "--datadir", str(tmp_path), "--json")
    assert done.returncode == 3
    answer = json.loads(done.stdout)
    assert answer["data"]["error"]["type"] == "NodeNotRunning"
    assert b"dfl-node start" in done.stderr
    assert _process("frob").returncode == 2
    assert _process("--version").returncode == 0


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for arguments in (["--help"], ["--version"], ["doctor", "--help"], ["peers", "--json"]):
            command = [sys.executable, "-m", "dfl_node", *arguments]
            done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=30)
            assert b"Traceback" not in done.stderr
            assert b"BrokenPipe" not in done.stderr
    finally:
        os.close(writer)


def test_ctrl_c_of_a_real_process() -> None:
    """At a password prompt: the terminal gets its line back, and the exit code is 130."""
    command = [sys.executable, "-m", "dfl_node", "wallet", "new", "/nonexistent/key.json", "--json"]
    master, slave = pty.openpty()
    try:
        with subprocess.Popen(
            command,
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # Whoever is started in the background of a script has it ignored.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        ) as process:
            try:
                assert process.stderr is not None
                assert process.stderr.read(len(PROMPT)) == PROMPT
                process.send_signal(signal.SIGINT)
                printed, _ = process.communicate(timeout=30)
            finally:
                process.kill()
    finally:
        os.close(master)
        os.close(slave)
    assert process.returncode == 130
    assert json.loads(printed)["data"]["error"]["type"] == "Interrupted"


def test_leaving_runs_exit_handlers_and_takes_no_module_apart() -> None:
    """What a node has imported takes seconds to take apart, and Ctrl-C is to end it in less than two."""
    script = """
import atexit, sys
from dfl_node import cli

class Heavy:
    def __del__(self):
        print("taken apart", flush=True)

def command():
    sys.modules["heavy"] = Heavy()
    atexit.register(print, "handler")
    print("done")
    sys.exit(6)

cli.cli.main = command
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (6, "done\nhandler\n")


# -- words -------------------------------------------------------------------------------------------------
def test_a_peer_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in printable("\x1b[2Jgone\x07 \u202etxt")
    assert "\x1b" not in table(("A",), [("\x1b[31mred",)])
    assert printable("Zürich\n\tok") == "Zürich\n\tok"


def test_tables_are_plain_when_nobody_looks() -> None:
    assert (
        table(("A", "LONGER"), [("x", None), ("long value", 2)])
        == "A           LONGER\nx           -\nlong value  2"
    )
    assert table(("A",), []) == "A"
    assert fields({"a": None, "long": 1}) == "a     -\nlong  1"


def test_tables_on_a_terminal_keep_what_looks_like_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = table(("NAME",), [("[red]x[/red]",), ("[/]",)])
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("wei", "shown"),
    [
        (0, "0 VNX"),
        (10**18, "1 VNX"),
        ("1500000000000000000", "1.5 VNX"),
        (1, "0.000000000000000001 VNX"),
        (-(10**17), "-0.1 VNX"),
    ],
)
def test_money_is_exact(wei: int | str, shown: str) -> None:
    assert vnx(wei) == shown
