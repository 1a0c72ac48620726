"""The command line: one file a group, imported only when used, so that `--help` costs no heavy import."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

from dfl_node.cli.output import EXIT_BUG, Output, Result, emit, output_options, run_command

# name -> (module, attribute, what it does); the words stand here so that `--help` imports none of them
COMMANDS: dict[str, tuple[str, str, str]] = {
    "start": ("start", "start", "Run a node."),
    "status": ("node", "status", "Show the running node."),
    "peers": ("node", "peers", "Show who is connected, how found, and how far."),
    "doctor": ("doctor", "doctor", "Check this machine and the node, and say what does not work."),
    "wallet": ("wallet", "wallet", "Make, show and import wallets."),
    "stake": ("stake", "stake", "A wallet's stake: add to it, take it back, let a hot key act for it."),
    "job": ("job", "job", "Submit jobs, watch them, download their models."),
    "ledger": ("ledger", "ledger", "See what was contributed and paid, and claim rewards."),
    "asset": ("asset", "asset", "Own data sets, models and algorithms, and lend them to jobs."),
    "dataset": ("asset", "dataset", "Make assets of rows that stay here."),
    "blob": ("blob", "blob", "Store and fetch files by CID."),
    "eval": ("evaluate", "evaluate", "Measure a downloaded model on data of your own."),
    "personalize": ("personalize", "personalize", "Fit a downloaded model to data that stays here."),
    "chain": ("chain", "chain", "Run a development chain, deploy contracts, fund wallets."),
    "demo": ("demo", "demo", "Train digits on a whole network on this machine."),
}


class _Root(click.Group):
    """Finds commands by name, and puts every run under the output contract."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"dfl_node.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        given = list(sys.argv[1:] if args is None else args)
        extra.update(prog_name="dfl-node", standalone_mode=False)

        def invoke(output: Output) -> Any:
            return super(_Root, self).main(given, **extra, obj=output)

        sys.exit(run_command(invoke, given))


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from dfl_node import __version__

        emit(Result({"version": __version__}, f"dfl-node {__version__}"))
        ctx.exit()


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
@output_options
def cli() -> None:
    """A node of dfl: train a neural network with strangers, and be paid for what your work was worth.

    Every command takes --json. Exit codes: 0 ok, 1 failed or reverted, 2 usage, 3 unreachable, 4 timeout,
    5 wallet or funds, 6 verification failed, 70 bug, 130 Ctrl-C.
    """


def main() -> NoReturn:
    """Entry point of `dfl-node`."""
    code: str | int | None = EXIT_BUG
    # Registered first, it runs last: after the threads, and after the handlers of whatever a command imports.
    atexit.register(lambda: _leave(code))
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
        raise


def _leave(code: str | int | None) -> NoReturn:
    """End the process without taking its modules apart, which lasts a second or more after a node's life."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
