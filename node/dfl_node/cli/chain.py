"""`dfl-node chain`: a development chain, the contracts, and money to try them with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dfl_ledger.errors import ChainUnreachable, UsageError
from dfl_ledger.records import Address
from dfl_node.cli.common import datadir_option, password_option, unlock, wallet_option
from dfl_node.cli.output import Result, command_output, emit, fields, note, output_options, vnx
from dfl_node.datadir import default_datadir

if TYPE_CHECKING:
    from dfl_ledger.deploy import Deployment
    from dfl_ledger.devchain import DevChain

_GIFT_VNX = 10_000
_GIFT_ETH = 10


@click.group()
@output_options
def chain() -> None:
    """Run a development chain, deploy contracts, fund wallets."""


@chain.command()
@click.option("--datadir", type=click.Path(path_type=Path, file_okay=False), help="Where its files lie.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0: any free one.")
@click.option(
    "--fund", "funded", multiple=True, metavar="ADDRESS_OR_WALLET", help="Give it VNX and coin. Repeatable."
)
@click.option(
    "--block-time", type=click.IntRange(1, 600), help="Seconds between blocks.  [default: mine at once]"
)
@command_output
def dev(datadir: Path | None, port: int, funded: tuple[str, ...], block_time: int | None) -> None:
    """Run a development chain with the contracts until Ctrl-C.

    A `dfl-node start` beside it finds it by itself. Its money is worth nothing: the keys are public.
    """
    addresses = [_address_of(who) for who in funded]
    from dfl_ledger import devchain

    def ready(running: DevChain) -> None:
        for address in addresses:
            devchain.fund(running, address, native_wei=_GIFT_ETH * 10**18, vnx_wei=_GIFT_VNX * 10**18)
        if block_time is not None:
            _mine_every(running.rpc_url, block_time)
        emit(_described(running, addresses))
        note("Ctrl-C ends it.")

    folder = (datadir or default_datadir().parent / "chain").absolute()
    devchain.serve(folder, port=port, on_ready=ready)


@chain.command()
@click.option("--rpc-url", required=True, help="The chain's JSON-RPC endpoint.")
@wallet_option
@password_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("deployments"),
    show_default=True,
    help="Folder for <chainId>.json.",
)
@click.option(
    "--unbond-delay",
    type=click.IntRange(1, 2**31),
    default=7 * 24 * 3600,
    show_default=True,
    help="Seconds a stake stays locked after its node asked for it.",
)
@click.option("--force", is_flag=True, help="Deploy anew where a deployment is recorded, and overwrite it.")
@command_output
def deploy(
    rpc_url: str, wallet: Path, password_file: Path | None, out: Path, unbond_delay: int, force: bool
) -> Result:
    """Deploy the contracts. The wallet becomes the treasury that holds all VNX."""
    from dfl_node.config import parse_rpc_url

    url = parse_rpc_url(rpc_url)
    path = out / f"{_chain_id(url)}.json"
    if path.exists() and not force:
        raise UsageError(
            f"{path} exists already",
            why="the contracts are deployed on this chain, as that file records",
            help_command="add --force to deploy others",
        )
    account = unlock(wallet, password_file)
    from dfl_ledger.deploy import deploy as deploy_contracts

    note("Deploying six contracts …")
    deployment = deploy_contracts(url, account, unbond_delay_s=unbond_delay)
    deployment.write(path)
    data = {"chain_id": deployment.chain_id, "contracts": deployment.addresses, "path": str(path.absolute())}
    return Result(data, _addresses(deployment) + f"\nrecorded in {path}")


@chain.command()
@click.argument("who", metavar="ADDRESS_OR_WALLET")
@click.option("--vnx", "amount_vnx", default=str(_GIFT_VNX), show_default=True, help="VNX to give.")
@click.option("--eth", "amount_eth", default=str(_GIFT_ETH), show_default=True, help="Coin for gas to give.")
@datadir_option
@command_output
def fund(who: str, amount_vnx: str, amount_eth: str, datadir: Path) -> Result:
    """Give an address VNX and coin for gas, on the development chain."""
    from dfl_node.config import parse_vnx

    address = _address_of(who)
    vnx_wei, native_wei = parse_vnx("--vnx", amount_vnx), parse_vnx("--eth", amount_eth)
    from dfl_ledger.devchain import find_dev_chain
    from dfl_ledger.devchain import fund as give

    running = find_dev_chain(datadir)
    if running is None:
        raise ChainUnreachable(
            "no development chain runs", why="none has left its address", help_command="dfl-node chain dev"
        )
    give(running, address, native_wei=native_wei, vnx_wei=vnx_wei)
    data = {"address": address, "vnx_wei": str(vnx_wei), "native_wei": str(native_wei)}
    return Result(data, f"{address} was given {vnx(vnx_wei)} and {amount_eth} of the chain's coin")


def _mine_every(rpc_url: str, seconds: int) -> None:
    from dfl_ledger.rpc import Rpc

    rpc = Rpc(rpc_url)
    try:
        rpc.call("evm_setAutomine", False)
        rpc.call("evm_setIntervalMining", seconds)
    finally:
        rpc.close()


def _described(running: DevChain, funded: Sequence[Address]) -> Result:
    deployment = running.deployment()
    data = {
        "rpc_url": running.rpc_url,
        "chain_id": running.chain_id,
        "pid": running.pid,
        "deployment": str(running.deployment_path),
        "contracts": deployment.addresses,
        "funded": list(funded),
    }
    shown = {"rpc url": running.rpc_url, "chain id": running.chain_id, "deployment": running.deployment_path}
    text = fields(shown) + "\n" + _addresses(deployment)
    return Result(data, "\n".join([text, *(f"funded  {address}" for address in funded)]))


def _addresses(deployment: Deployment) -> str:
    return fields(dict(deployment.addresses))


def _address_of(who: str) -> Address:
    """An address, or that of a wallet file. Raises UsageError, WalletError."""
    from dfl_node.identity import checksum_address, read_keystore

    path = Path(who)
    if not who.startswith("0x") and path.is_file():
        address = read_keystore(path).address
        if address is None:
            raise UsageError(f"{who} does not tell its address", why="give the address itself")
        return address
    return checksum_address(who)


def _chain_id(rpc_url: str) -> int:
    from dfl_ledger.rpc import Rpc

    rpc = Rpc(rpc_url)
    try:
        return rpc.quantity("eth_chainId")
    finally:
        rpc.close()
