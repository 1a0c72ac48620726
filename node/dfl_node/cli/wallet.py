"""`dfl-node wallet`: keystore V3 files. No secret ever stands on the command line or in what is printed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from dfl_ledger.errors import WalletError
from dfl_node.cli.common import MAX_STDIN_BYTES, ask_password, can_prompt, file_type, password_option
from dfl_node.cli.output import Result, command_output, note, output_options

_light = click.option(
    "--light",
    is_flag=True,
    help="Cheap key derivation: weak, for demos and tests with worthless wallets only.",
)


@click.group()
@output_options
def wallet() -> None:
    """Make, show and import wallets (keystore V3)."""


@wallet.command()
@click.argument("file", type=file_type())
@password_option
@_light
@command_output
def new(file: Path, password_file: Path | None, light: bool) -> Result:
    """Make a wallet with a fresh key in FILE, which must not exist."""
    from dfl_node.identity import create_wallet

    _refuse_existing(file)
    password = ask_password(password_file, question="New password", twice=True)
    address = create_wallet(file, password, light=light)
    return _made(file, address)


@wallet.command()
@click.argument("file", type=file_type())
@command_output
def show(file: Path) -> Result:
    """Show the address of the wallet in FILE. Needs no password."""
    from dfl_node.identity import read_keystore

    address = read_keystore(file).address
    if address is None:
        raise WalletError(
            f"{file} does not tell its address",
            why="this keystore leaves it out, and only the key gives it",
            help_command=f"dfl-node wallet import NEW_FILE --from {shlex.quote(str(file))}",
        )
    return Result({"address": address, "path": str(file.absolute())}, address)


@wallet.command("import")
@click.argument("file", type=file_type())
@click.option(
    "--from",
    "source",
    type=file_type(),
    help="File (mode 0600) with the raw key in hex, or another keystore. Else stdin, else a prompt.",
)
@password_option
@_light
@command_output
def import_(file: Path, source: Path | None, password_file: Path | None, light: bool) -> Result:
    """Write an existing key to the new wallet FILE.

    The key is a raw private key in hex or a keystore V3, whose password the new wallet keeps.
    """
    from dfl_node.identity import create_wallet, parse_keystore, parse_private_key, read_private

    _refuse_existing(file)
    if source is not None:
        secret = read_private(source, what="key file")
    elif can_prompt():
        secret = click.prompt("Private key (hex)", hide_input=True, err=True).encode()
    else:
        secret = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
        if len(secret) > MAX_STDIN_BYTES:
            raise WalletError("this is not a private key", why="there is too much on stdin")
    if secret.lstrip().startswith(b"{"):
        keystore = parse_keystore(secret, source or Path("stdin"))
        password = ask_password(password_file, question="Password of the wallet")
        key = bytes(keystore.unlock(password).key)
    else:
        key = parse_private_key(secret.decode(errors="replace"))
        password = ask_password(password_file, question="New password", twice=True)
    return _made(file, create_wallet(file, password, light=light, key=key))


def _refuse_existing(file: Path) -> None:
    """Before anybody is asked for anything."""
    if file.exists() or file.is_symlink():
        raise WalletError(
            f"{file} exists already",
            why="a wallet is never overwritten: it may hold money",
            help_command=f"dfl-node wallet show {shlex.quote(str(file))}",
        )


def _made(file: Path, address: str) -> Result:
    note("Keep a copy of the file and of its password: nobody can restore either.")
    return Result({"address": address, "path": str(file.absolute())}, f"{address}  {file}")
