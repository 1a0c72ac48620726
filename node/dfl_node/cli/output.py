"""The output contract of every command.

With `--json`: exactly one object on stdout, whatever happens, and everything else on stderr:
`{"schema_version": "1", "status": "ok" | "error", "data": {...}}`. Without it: the result for people on
stdout, notes on stderr.
Exit codes are those of dfl_ledger.errors, 70 for a bug and 130 for Ctrl-C.

A command returns a dict (its `data`) or a `Result`. One that goes on after its result, such as a server,
calls `emit` itself and returns None.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, TextIO, TypeVar

import click

from dfl_ledger.errors import DflError, UsageError, VerificationFailed, WalletError

SCHEMA_VERSION = "1"
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Result:
    """What a command found. `error` makes it a failure that still has data to show."""

    data: dict[str, Any]
    text: str = ""  # for people; made by `table` where it has rows
    error: DflError | None = None


@dataclass(slots=True)
class Output:
    """Where this run's words go."""

    as_json: bool
    debug: bool
    stdout: TextIO  # the real one: with --json, sys.stdout is stderr, so that nothing else can get there
    command: str = "dfl-node"  # as far as the command line was understood
    emitted: bool = field(default=False)


def command_output(command: F) -> F:
    """Give a command `--json` and `--debug`. Stands right above the function, below its options."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Result | None:
        output: Output = click.get_current_context().find_root().obj
        output.command = click.get_current_context().command_path
        _send_logs_to_stderr(output)
        found = command(*args, **kwargs)
        return Result(found) if isinstance(found, dict) else found

    decorated: F = output_options(run)  # type: ignore[assignment]  # a decorated command is one
    return decorated


def _send_logs_to_stderr(output: Output) -> None:
    """Unconfigured, structlog would write every debug line to stdout."""
    from dfl_node import logs

    logs.configure("console", "debug" if output.debug else "warning")


def output_options(command: F) -> F:
    """`--json` and `--debug` alone, for a group: given there or at its commands, they mean the same."""
    decorated = command
    for flag, text in (
        ("--debug", "Show the traceback of an error."),
        ("--json", "Print exactly one JSON object on stdout."),
    ):
        decorated = click.option(flag, is_flag=True, expose_value=False, help=text)(decorated)
    return decorated


# -- one run -----------------------------------------------------------------------------------------------
def run_command(invoke: Callable[[Output], Any], args: Sequence[str]) -> int:
    """Run a command line to its exit code, under the contract. Raises nothing."""
    flags = args[: args.index("--")] if "--" in args else args
    output = Output(as_json="--json" in flags, debug="--debug" in flags, stdout=sys.stdout)
    code = 0
    try:
        with contextlib.redirect_stdout(sys.stderr) if output.as_json else contextlib.nullcontext():
            code = _guarded(invoke, output)
            output.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has had enough
        _silence(output.stdout)
    return code


def _guarded(invoke: Callable[[Output], Any], output: Output) -> int:
    try:
        result = invoke(output)
        if isinstance(result, int):  # click's own exits: --help, --version
            result = Result({}) if result == 0 else Result({}, error=DflError("stopped"))
        if result is None:
            return 0
        _emit(output, result)
        return 0 if result.error is None else result.error.exit_code
    except BrokenPipeError:
        raise
    except BaseException as error:
        return _failed(output, error)


def _failed(output: Output, error: BaseException) -> int:
    match _root_of(error):
        case DflError() as known:
            _emit(output, Result({}, error=known))
            code = known.exit_code
        case click.ClickException() as usage:
            known = _usage_error(usage)
            _emit(output, Result({}, error=known))
            code = known.exit_code
        case KeyboardInterrupt() | click.Abort() | EOFError():
            _emit(output, Result({}, error=_Interrupted("stopped by Ctrl-C")))
            code = EXIT_INTERRUPTED
        case SystemExit() as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
            _emit(output, Result({}, error=DflError("stopped") if code else None))
            return code
        case bug:
            _emit(output, Result({}, error=_bug(bug)))
            code = EXIT_BUG
    if output.debug:
        click.echo("".join(traceback.format_exception(error)), err=True)
    return code


class _Interrupted(DflError):
    exit_code = EXIT_INTERRUPTED


class _Bug(DflError):
    exit_code = EXIT_BUG


def _root_of(error: BaseException) -> BaseException:
    """The one error a user should see out of what a nursery collected: a bug before all else."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_root_of(e) for e in error.exceptions]
    known = (DflError, click.ClickException, KeyboardInterrupt, SystemExit)
    bugs = [leaf for leaf in leaves if not isinstance(leaf, known)]
    stops = [leaf for leaf in leaves if isinstance(leaf, KeyboardInterrupt)]
    return (bugs or stops or leaves)[0]


def _usage_error(error: click.ClickException) -> DflError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "dfl-node"
    group = context.command if context is not None else None
    message = error.format_message().strip()
    bare = isinstance(error, click.exceptions.NoArgsIsHelpError) or message == "Missing command."
    if bare and context is not None and isinstance(group, click.Group):
        names = group.list_commands(context)
        return UsageError(
            "no command given", why=f"there are {', '.join(names)}", help_command=f"{path} --help"
        )
    what, _, why = message.partition("\n")
    return UsageError(
        what.rstrip("."), why=why.strip() or "the command line is wrong", help_command=f"{path} --help"
    )


def _bug(error: BaseException) -> DflError:
    """The reference is the same for the same place in the same code, so that reports can be matched."""
    frames = traceback.extract_tb(error.__traceback__)
    place = "|".join(f"{os.path.basename(f.filename)}:{f.name}:{f.lineno}" for f in frames)  # noqa: PTH119
    reference = hashlib.sha256(f"{type(error).__name__}|{place}".encode()).hexdigest()[:8]
    return _Bug(
        f"this is a bug in dfl ({type(error).__name__}), reference {reference}",
        why=f"{error}"[:300] or "no message",
        help_command="run the same command with --debug and report what it prints",
    )


# -- words -------------------------------------------------------------------------------------------------
def emit(result: Result) -> None:
    """Print a result now, for a command that goes on after it. At most once a run."""
    context = click.get_current_context()
    output: Output = context.find_root().obj
    try:
        _emit(output, result)
        output.stdout.flush()
    except BrokenPipeError:  # nobody reads any more, which is no reason to stop what goes on
        _silence(output.stdout)


def note(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(printable(text), err=True)


def _emit(output: Output, result: Result) -> None:
    error = result.error
    if error is not None:
        # The user must see why even when stdout is a file.
        lines = [f"Error: {error.what}" if not isinstance(error, _Interrupted) else "Stopped by Ctrl-C"]
        lines += [f"  why:  {error.why}"] if error.why else []
        lines += [f"  help: {helps}"] if (helps := _help(output, error)) else []
        note("\n".join(lines))
    if not output.as_json:
        if result.text:
            click.echo(printable(result.text), file=output.stdout)
        return
    if result.text:
        note(result.text)
    if output.emitted:
        return
    output.emitted = True
    data = result.data if error is None else {**result.data, "error": error_data(output, error)}
    answer = {"schema_version": SCHEMA_VERSION, "status": "ok" if error is None else "error", "data": data}
    output.stdout.write(json.dumps(answer, allow_nan=False, default=str) + "\n")


def known_error(error: BaseException) -> DflError:
    """The DflError in what trio raised, to be shown beside other data. Anything else is raised again."""
    root = _root_of(error)
    if isinstance(root, DflError):
        return root
    raise error


def error_data(output: Output, error: DflError) -> dict[str, str]:
    """The form of an error in JSON."""
    name = type(error).__name__.lstrip("_")
    return {"type": name, "what": error.what, "why": error.why, "help": _help(output, error)}


def _help(output: Output, error: DflError) -> str:
    """The command that helps: the error's own, else what tells more about the kind of error it is."""
    if error.help_command or isinstance(error, _Interrupted):
        return error.help_command
    of_what_was_given = (UsageError, WalletError, VerificationFailed)
    return f"{output.command} --help" if isinstance(error, of_what_was_given) else "dfl-node doctor"


def printable(text: str) -> str:
    """Without control characters: what a peer or a chain says must not steer the terminal."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "�" for c in text
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows in columns: aligned by rich on a terminal, plain otherwise. Empty cells are a dash."""
    cells = [
        [printable(str(cell)).replace("\n", " ") if cell is not None else "-" for cell in row] for row in rows
    ]
    if sys.stdout.isatty():
        return _rich_table(headers, cells)
    widths = [max(len(r[i]) for r in [list(headers), *cells]) for i in range(len(headers))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in [headers, *cells]]
    return "\n".join(line.rstrip() for line in lines)


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        grid.add_column(header, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    # Colours would be taken out again with the other control characters, so lines alone do the work.
    console = Console(file=StringIO(), width=Console().width, color_system=None)
    with console.capture() as captured:
        console.print(grid)
    return captured.get().rstrip()


def fields(pairs: dict[str, object]) -> str:
    """Name and value, a line each."""
    width = max(map(len, pairs), default=0)
    return "\n".join(
        f"{name.ljust(width)}  {'-' if value is None else value}" for name, value in pairs.items()
    )


def vnx(wei: int | str) -> str:
    """Wei as VNX, exact and without trailing zeros."""
    whole, part = divmod(abs(int(wei)), 10**18)
    sign = "-" if int(wei) < 0 else ""
    digits = f"{part:018d}".rstrip("0")
    return f"{sign}{whole}{'.' + digits if digits else ''} VNX"


def _silence(stream: TextIO) -> None:
    """Point a broken stdout at nothing, so that the interpreter's last flush does not complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
