"""`dfl-node start`: run a node until it is told to stop."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dfl_ledger.errors import UsageError
from dfl_node.cli.common import ask_password, datadir_option, file_type, password_option, wallet_option
from dfl_node.cli.output import EXIT_INTERRUPTED, Result, command_output, emit, note
from dfl_node.datadir import default_datadir, find_node, hold, node_file_path, remove_node_file

if TYPE_CHECKING:
    from dfl_ledger.accounts import LocalAccount
    from dfl_node.config import NodeConfig

_READY_LOOK_S = 0.1


@click.command()
@wallet_option
@password_option
@datadir_option
@click.option(
    "--bootnodes", multiple=True, metavar="MULTIADDR[,...]", help="Peers to dial first. Repeatable."
)
@click.option(
    "--listen",
    multiple=True,
    metavar="MULTIADDR",
    help="Where to listen. Repeatable.  [default: /ip4/127.0.0.1/tcp/0]",
)
@click.option(
    "--rpc-url", help="The chain's JSON-RPC endpoint.  [default: the development chain running here]"
)
@click.option(
    "--deployment", type=file_type(), help="The contracts' addresses.  [default: deployments/<chainId>.json]"
)
@click.option(
    "--roles",
    default="train,request,evaluate",
    show_default=True,
    help="Of train, request, evaluate, relay, boot.",
)
@click.option(
    "--http-port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0: any free one."
)
@click.option("--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--ipfs", metavar="MULTIADDR", help="Use the Kubo daemon at this RPC address as the store.")
@click.option(
    "--data",
    multiple=True,
    metavar="APP[=PATH]",
    help="Data to train on. Repeatable.  [default: every application's]",
)
@click.option(
    "--shard", default="1:1/1", show_default=True, metavar="FIRST:LAST/PARTS", help="The parts held here."
)
@click.option(
    "--split", default="iid", show_default=True, metavar="iid|dirichlet:ALPHA", help="How parts are cut."
)
@click.option(
    "--dataset",
    "datasets",
    type=click.IntRange(1, 2**63 - 1),
    multiple=True,
    metavar="ASSET",
    help="The data set that the rows of --data are, paid by jobs that pay for data. Repeatable.",
)
@click.option("--stake", metavar="VNX", help="Stake at least this much.  [default: what is staked already]")
@click.option("--no-mdns", is_flag=True, help="Do not look for peers on the local network.")
@click.option(
    "--share-rows",
    is_flag=True,
    help="Take part in pipelines and audited jobs, where rows of yours leave this node.",
)
@click.option("--auto-claim", is_flag=True, help="Claim what was earned as soon as it can be claimed.")
@click.option("--max-store-mb", default=4096, show_default=True, help="Size of the embedded store.")
@click.option(
    "--max-memory", default=2048, show_default=True, help="MiB of private memory for the trainer's process."
)
@click.option(
    "--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads of the trainer."
)
@command_output
def start(
    wallet: Path,
    password_file: Path | None,
    datadir: Path,
    bootnodes: tuple[str, ...],
    listen: tuple[str, ...],
    rpc_url: str | None,
    deployment: Path | None,
    roles: str,
    http_port: int,
    log_format: str,
    log_level: str,
    ipfs: str | None,
    data: tuple[str, ...],
    shard: str,
    split: str,
    datasets: tuple[int, ...],
    stake: str | None,
    no_mdns: bool,
    share_rows: bool,
    auto_claim: bool,
    max_store_mb: int,
    max_memory: int,
    threads: int,
) -> None:
    """Run a node until Ctrl-C. A second Ctrl-C ends it at once."""
    from dfl_node import config, logs
    from dfl_node.identity import read_keystore

    logs.configure(log_format, log_level)
    keystore = read_keystore(wallet)
    checked_roles = config.parse_roles(roles)
    boot, listens = config.parse_bootnodes(bootnodes), config.parse_listen(listen)
    stake_wei = None if stake is None else config.parse_vnx("--stake", stake)
    rows = config.parse_data(data, shard, split)
    lent = config.check_datasets(datasets, checked_roles)
    store_bytes = config.mib("--max-store-mb", max_store_mb)
    trainer_bytes = config.mib("--max-memory", max_memory)
    kubo = None if ipfs is None else config.parse_ipfs(ipfs)
    if deployment is not None and not deployment.is_file():
        raise UsageError("the value of --deployment cannot be used", why=f"{deployment} does not exist")
    with hold(datadir):
        url, found = find_chain(rpc_url, datadir)
        node = config.NodeConfig(
            datadir=datadir,
            rpc_url=url,
            deployment=deployment or found,
            listen=listens,
            bootnodes=boot,
            roles=checked_roles,
            http_port=http_port,
            ipfs=kubo,
            data=rows,
            datasets=lent,
            stake_wei=stake_wei,
            mdns=not no_mdns,
            share_rows=share_rows,
            auto_claim=auto_claim,
            max_store_bytes=store_bytes,
            trainer_memory_bytes=trainer_bytes,
            threads=threads,
        )
        password = ask_password(password_file, question=f"Password of {wallet}")
        note("Unlocking the wallet …")
        _run(node, keystore.unlock(password))


def find_chain(rpc_url: str | None, datadir: Path) -> tuple[str, Path | None]:
    """The endpoint and, of a development chain, its deployment file."""
    from dfl_node.config import parse_rpc_url

    if rpc_url is not None:
        return parse_rpc_url(rpc_url), None
    from dfl_ledger.devchain import find_dev_chain

    chain = find_dev_chain(datadir)
    if chain is None:
        raise UsageError(
            "no chain to work on",
            why="there is no --rpc-url, and no development chain runs here",
            help_command="dfl-node chain dev",
        )
    note(f"On the development chain at {chain.rpc_url}")
    return chain.rpc_url, chain.deployment_path


def _run(config: NodeConfig, account: LocalAccount) -> None:
    """Until a signal. Returns after SIGTERM, raises KeyboardInterrupt after Ctrl-C."""
    # Imports alone take seconds: a SIGTERM that comes before the loop runs ends things in order, too.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    import trio

    from dfl_node import peer

    asked: list[int] = []

    async def wait_for_signal(running: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                if asked:
                    os._exit(EXIT_INTERRUPTED)  # asked twice: at once, whatever hangs
                asked.append(number)
                note("Stopping. Ctrl-C once more stops at once.")
                running.cancel()

    async def main() -> None:
        running = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_signal, running)
            with running:
                async with trio.open_nursery() as node:
                    node.start_soon(_tell_when_ready, config.datadir, str(account.address))
                    await peer.run(config, account)
                    node.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    finally:
        remove_node_file(config.datadir)
        signal.signal(signal.SIGTERM, before)
    if signal.SIGINT in asked:
        raise KeyboardInterrupt


async def _tell_when_ready(datadir: Path, address: str) -> None:
    """Print the command's result once the node has said where it is."""
    import trio

    # Looking at the file is what everybody else does, too: a node is ready when it has said where it is.
    while not node_file_path(datadir).exists():  # noqa: ASYNC110
        await trio.sleep(_READY_LOOK_S)
    node = find_node(datadir)
    data = {"address": address, "http_url": node.url, "pid": node.pid, "datadir": str(datadir)}
    where = "" if datadir == default_datadir() else f" --datadir {shlex.quote(str(datadir))}"
    emit(Result(data, f"The node of {address} runs; look with: dfl-node status{where}"))
