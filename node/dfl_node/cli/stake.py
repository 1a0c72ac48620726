"""`dfl-node stake`: what a wallet has at stake, and how it gets it back. Needs the wallet, not a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfl_node.cli.common import datadir_option, file_type, password_option, unlock, wallet_option
from dfl_node.cli.output import Result, command_output, fields, output_options, vnx

if TYPE_CHECKING:
    from dfl_ledger.chain import ChainLedger


@click.group()
@output_options
def stake() -> None:
    """Show a wallet's stake, and take it back."""


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--deployment", type=file_type(), help="The contracts' addresses."),
        click.option("--rpc-url", help="The chain's JSON-RPC endpoint.  [default: the development chain]"),
        datadir_option,
        password_option,
        wallet_option,
    ):
        command = option(command)
    return command


@stake.command()
@_options
@command_output
def show(**where: Any) -> Result:
    """Show what is staked, and when it is free."""
    with _ledger(**where) as ledger:
        return _described(ledger)


@stake.command()
@_options
@command_output
def unbond(**where: Any) -> Result:
    """Leave the network: the stake counts no longer at once, and is free after a delay."""
    with _ledger(**where) as ledger:
        return _described(ledger, ledger.unbond().tx)


@stake.command()
@_options
@command_output
def withdraw(**where: Any) -> Result:
    """Take the stake back, once its delay is over."""
    with _ledger(**where) as ledger:
        return _described(ledger, ledger.withdraw().tx)


@contextmanager
def _ledger(
    wallet: Path, password_file: Path | None, datadir: Path, rpc_url: str | None, deployment: Path | None
) -> Iterator[ChainLedger]:
    from dfl_node.cli.start import find_chain

    url, found = find_chain(rpc_url, datadir)
    account = unlock(wallet, password_file)
    from dfl_ledger.chain import open_chain

    ledger = open_chain(url, deployment or found, (datadir, datadir.parent), account)
    try:
        yield ledger
    finally:
        ledger.close()


def _described(ledger: ChainLedger, tx: str | None = None) -> Result:
    record = ledger.node(ledger.address)
    staked_wei, free_at = (record.stake_wei, record.unbond_at) if record is not None else (0, 0)
    balance_wei = ledger.balance_wei(ledger.address)
    data = {
        "address": ledger.address,
        "stake_wei": str(staked_wei),
        "unbond_at": free_at,
        "balance_wei": str(balance_wei),
        "tx": tx,
    }
    when = datetime.fromtimestamp(free_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if free_at else "bonded"
    text = fields(
        {
            "wallet": ledger.address,
            "stake": vnx(staked_wei),
            "free at": when if staked_wei else None,
            "balance": vnx(balance_wei),
            "transaction": tx,
        }
    )
    return Result(data, text)
