"""Options and questions that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dfl_ledger.errors import UsageError, WalletError
from dfl_node.cli.output import note
from dfl_node.datadir import default_datadir

if TYPE_CHECKING:
    from dfl_ledger.accounts import LocalAccount

PASSWORD_VARIABLE = "DFL_WALLET_PASSWORD"  # noqa: S105  the variable's name
MAX_STDIN_BYTES = 64 * 1024
F = TypeVar("F", bound=Callable[..., Any])


def file_type(*, exists: bool = False) -> click.Path:
    return click.Path(path_type=Path, dir_okay=False, exists=exists)


def datadir_option(command: F) -> F:
    """`--datadir`, absolute, by default $DFL_HOME/node or ~/.dfl/node."""

    def absolute(_: click.Context, __: click.Parameter, value: Path | None) -> Path:
        return (value or default_datadir()).absolute()

    return click.option(
        "--datadir",
        type=click.Path(path_type=Path, file_okay=False),
        callback=absolute,
        help="The node's data directory.  [default: $DFL_HOME/node or ~/.dfl/node]",
    )(command)


def timeout_option(default_s: float) -> Callable[[F], F]:
    """`--timeout` in seconds, as `timeout_s`."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(0.01, 1e8),
        default=default_s,
        show_default=True,
        help="Seconds to wait before giving up.",
    )


def password_option(command: F) -> F:
    return click.option(
        "--password-file",
        type=file_type(),
        help=f"File with the wallet's password (mode 0600). Else ${PASSWORD_VARIABLE}, else a prompt.",
    )(command)


def wallet_option(command: F) -> F:
    return click.option("--wallet", type=file_type(), required=True, help="Keystore V3 of the wallet.")(
        command
    )


# -- passwords ---------------------------------------------------------------------------------------------
def can_prompt() -> bool:
    """True when a person can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def ask_password(password_file: Path | None, *, question: str = "Password", twice: bool = False) -> str:
    """From the file, the environment or a prompt, in this order.

    Raises WalletError when there is nobody to ask, or when a new password is empty.
    """
    from dfl_node.identity import read_password_file

    if password_file is not None:
        password = read_password_file(password_file)
    elif PASSWORD_VARIABLE in os.environ:
        password = os.environ[PASSWORD_VARIABLE]
    elif can_prompt():
        password = click.prompt(
            question, hide_input=True, confirmation_prompt=twice, err=True, default="", show_default=False
        )
    else:
        raise WalletError(
            "the wallet needs a password",
            why=f"there is no --password-file, no ${PASSWORD_VARIABLE}, and no terminal to ask on",
            help_command="run it again with --password-file FILE",
        )
    if twice and not password:
        raise WalletError("a wallet needs a password", why="it is empty")
    return password


def unlock(wallet: Path, password_file: Path | None) -> LocalAccount:
    """The wallet's account. Raises WrongPassword, KeyFileExposed, WalletError."""
    from dfl_node.identity import read_keystore

    keystore = read_keystore(wallet)  # what is wrong with the file is said before a password is asked for
    password = ask_password(password_file, question=f"Password of {wallet}")
    note("Unlocking the wallet …")
    return keystore.unlock(password)


def read_text(path: Path, *, what: str, max_bytes: int) -> str:
    """A small UTF-8 file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise UsageError(f"cannot read the {what} {path}", why=f"it is larger than {max_bytes} bytes")
        return data.decode()
    except OSError as bad:
        raise UsageError(f"cannot read the {what} {path}", why=bad.strerror or str(bad)) from bad
    except UnicodeDecodeError as bad:
        raise UsageError(f"cannot read the {what} {path}", why="it is not UTF-8 text") from bad
