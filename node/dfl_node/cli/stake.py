"""`dfl-node stake`: what a wallet has at stake, how it gets it back, and who may act for it.

Needs the wallet, not a node.
"""

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
    from dfl_ledger.ledger import Ledger
    from dfl_ledger.records import Address


@click.group()
@output_options
def stake() -> None:
    """A wallet's stake: add to it, take it back, let a hot key act for it."""


def _vnx(_: click.Context, __: click.Parameter, value: str) -> int:
    """VNX with at most 18 decimals -> wei, exactly."""
    from dfl_node.config import parse_vnx

    amount_wei = parse_vnx("VNX", value)
    if not amount_wei:
        raise click.BadParameter("0 VNX add nothing")
    return amount_wei


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


@stake.command()
@click.argument("amount", metavar="VNX", callback=_vnx)
@click.option("--node", metavar="ADDRESS", help="Whose stake it becomes.  [default: the wallet's own]")
@_options
@command_output
def add(amount: int, node: str | None, **where: Any) -> Result:
    """Add VNX to the stake of a node, for good: it is that node's from then on."""
    account = None if node is None else _account(node)
    with _ledger(**where) as ledger:
        return _described(ledger, ledger.top_up(account or ledger.address, amount).tx, of=account)


@stake.command()
@click.argument("hot", metavar="ADDRESS|none")
@_options
@command_output
def delegate(hot: str, **where: Any) -> Result:
    """Name the hot key ADDRESS that may act for this wallet, or take the right away with `none`.

    It may do the work of a node and judge, but neither take the stake back nor name another. It has to
    accept, with `dfl-node stake act-for`.
    """
    account = None if hot == "none" else _account(hot)
    with _ledger(**where) as ledger:
        return _described(ledger, ledger.set_delegate(account).tx, named=account)


@stake.command("act-for")
@click.argument("node", metavar="ADDRESS|none")
@_options
@command_output
def act_for(node: str, **where: Any) -> Result:
    """As a hot key that the wallet ADDRESS named: act for it from now on, or for nobody with `none`."""
    account = None if node == "none" else _account(node)
    with _ledger(**where) as ledger:
        return _described(ledger, ledger.act_for(account).tx)


def _account(text: str) -> Address:
    from dfl_node.identity import checksum_address

    return checksum_address(text)


@contextmanager
def _ledger(
    wallet: Path, password_file: Path | None, datadir: Path, rpc_url: str | None, deployment: Path | None
) -> Iterator[Ledger]:
    from dfl_node.cli.start import find_chain

    url, found = find_chain(rpc_url, datadir)
    account = unlock(wallet, password_file)
    from dfl_ledger.chain import open_chain

    ledger = open_chain(url, deployment or found, (datadir, datadir.parent), account)
    try:
        yield ledger
    finally:
        ledger.close()


def _described(
    ledger: Ledger, tx: str | None = None, *, of: Address | None = None, named: Address | None = None
) -> Result:
    """What a wallet, or the one it paid for, has at stake. `named`: a hot key that has not accepted yet."""
    me = of or ledger.address
    record = ledger.node(me)
    staked_wei, free_at = (record.stake_wei, record.unbond_at) if record is not None else (0, 0)
    balance_wei, principal = ledger.balance_wei(ledger.address), ledger.principal_of(me)
    hot, evaluates = ledger.delegate_of(me), ledger.is_evaluator(me)
    data = {
        "address": me,
        "stake_wei": str(staked_wei),
        "unbond_at": free_at,
        "evaluator": evaluates,
        "delegate": hot,
        "named": named,
        "acts_for": principal if principal != me else None,
        "balance_wei": str(balance_wei),
        "tx": tx,
    }
    when = datetime.fromtimestamp(free_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if free_at else "bonded"
    shown = {
        "wallet": me,
        "stake": vnx(staked_wei),
        "free at": when if staked_wei else None,
        "evaluator": "yes, may be drawn to judge" if evaluates else "no",
        "hot key": hot or (f"{named}, once it accepts" if named else None),
        "acts for": data["acts_for"],
        "balance": vnx(balance_wei),
        "transaction": tx,
    }
    return Result(data, fields(dict(shown)))
