"""`dfl-node doctor`: what works on this machine and what does not, each with the command that mends it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import click

from dfl_ledger.errors import DflError, NodeNotRunning
from dfl_node.cli.common import datadir_option, file_type, timeout_option
from dfl_node.cli.output import Result, command_output, table

_LEAST_FREE_BYTES = 1 << 30
_FAR_BEHIND = 20  # blocks
_LIBRARIES = ("libp2p", "trio", "web3", "torch", "protobuf")


class Health(Enum):
    OK = "ok"
    NOTE = "note"  # good to know
    WARNING = "warning"  # works, with a restriction
    PROBLEM = "problem"  # something will fail


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    health: Health
    detail: str
    help: str = ""


@click.command()
@datadir_option
@click.option("--rpc-url", help="Check this chain.  [default: the running node's, or the development chain]")
@click.option("--wallet", type=file_type(), help="Check this wallet's file, too.")
@timeout_option(10.0)
@command_output
def doctor(datadir: Path, rpc_url: str | None, wallet: Path | None, timeout_s: float) -> Result:
    """Check this machine and the node, and say what does not work.

    Ends with exit code 1 if something will fail.
    """
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        _machine,
        lambda: _directory(datadir),
        lambda: _wallet(wallet),
        lambda: _chain(rpc_url, datadir),
        lambda: _node(datadir, timeout_s),
        lambda: _network(datadir, timeout_s),
    )
    findings = [finding for part in parts for finding in part()]
    rows = [(f.health.value, f.check, f.detail + (f"  ->  {f.help}" if f.help else "")) for f in findings]
    problems = [f for f in findings if f.health is Health.PROBLEM]
    data = {"findings": [{**asdict(f), "health": f.health.value} for f in findings]}
    error = None
    if problems:
        names = ", ".join(f.check for f in problems)
        error = DflError(
            f"{len(problems)} of {len(findings)} checks failed", why=names, help_command=problems[0].help
        )
    return Result(data, table(("", "CHECK", "FOUND"), rows), error)


def _machine() -> Iterator[Finding]:
    here = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info < (3, 13)
    yield Finding(
        "python", Health.OK if fits else Health.PROBLEM, here, "" if fits else "install Python 3.11"
    )
    for name in _LIBRARIES:
        try:
            yield Finding(name, Health.OK, version(name))
        except PackageNotFoundError:
            yield Finding(name, Health.PROBLEM, "is not installed", "pip install dfl")
    apps = sorted(point.name for point in entry_points(group="dfl.apps"))
    if apps:
        yield Finding("applications", Health.OK, ", ".join(apps))
    else:
        yield Finding(
            "applications", Health.WARNING, "none: this node cannot train", "pip install 'dfl[apps]'"
        )


def _directory(datadir: Path) -> Iterator[Finding]:
    check = "data directory"
    there = next(path for path in (datadir, *datadir.parents) if path.exists())
    if not os.access(there, os.W_OK):
        yield Finding(check, Health.PROBLEM, f"{there} cannot be written to", "use --datadir DIRECTORY")
        return
    if there == datadir and stat.S_IMODE(datadir.stat().st_mode) & 0o077:
        yield Finding(check, Health.WARNING, f"{datadir} is open to other users", f"chmod 700 {datadir}")
    else:
        yield Finding(
            check, Health.OK, str(datadir) + ("" if there == datadir else " (made by the first start)")
        )
    free = shutil.disk_usage(there).free
    enough = free >= _LEAST_FREE_BYTES
    yield Finding("disk", Health.OK if enough else Health.WARNING, f"{free >> 20} MiB free")


def _wallet(wallet: Path | None) -> Iterator[Finding]:
    if wallet is None:
        return
    from dfl_node.identity import read_keystore

    try:
        yield Finding("wallet", Health.OK, read_keystore(wallet).address or "tells no address")
    except DflError as error:
        yield Finding("wallet", Health.PROBLEM, str(error), error.help_command)


def _chain(rpc_url: str | None, datadir: Path) -> Iterator[Finding]:
    from dfl_ledger.devchain import find_anvil, find_dev_chain
    from dfl_ledger.rpc import Rpc
    from dfl_node.config import parse_rpc_url

    try:
        yield Finding("anvil", Health.OK, str(find_anvil()))
    except DflError as error:
        yield Finding(
            "anvil", Health.WARNING, f"no development chain can be run: {error}", error.help_command
        )
    if rpc_url is None:
        chain = find_dev_chain(datadir)
        if chain is None:
            yield Finding("chain", Health.WARNING, "no --rpc-url, no development chain", "dfl-node chain dev")
            return
        rpc_url = chain.rpc_url
    try:
        rpc = Rpc(parse_rpc_url(rpc_url), timeout_s=5.0)
        try:
            found = f"chain {rpc.quantity('eth_chainId')}, head {rpc.quantity('eth_blockNumber')}"
        finally:
            rpc.close()
        yield Finding("chain", Health.OK, found)
    except DflError as error:
        yield Finding("chain", Health.PROBLEM, str(error), error.help_command)


def _node(datadir: Path, timeout_s: float) -> Iterator[Finding]:
    from dfl_node.api.client import NodeClient

    try:
        with NodeClient(datadir, timeout_s=timeout_s) as node:
            found = node.status()
    except NodeNotRunning as stopped:
        yield Finding("node", Health.WARNING, f"not running: {stopped.why}", stopped.help_command)
        return
    except DflError as error:
        yield Finding("node", Health.PROBLEM, str(error), error.help_command)
        return
    yield Finding("node", Health.OK, f"{found.get('address')} at {found.get('http_url')}")
    chain = found.get("chain")
    head, indexed = (chain.get("head"), chain.get("indexed")) if isinstance(chain, dict) else (None, None)
    if isinstance(head, int) and isinstance(indexed, int):
        late = head - indexed
        yield Finding("index", Health.OK if late <= _FAR_BEHIND else Health.WARNING, f"{late} blocks behind")


def _network(datadir: Path, timeout_s: float) -> Iterator[Finding]:
    """What the running node sees of its network; the library's limits alone while none runs."""
    from dfl_node.api.client import NodeClient
    from dfl_node.net.doctor import LIBRARY

    checks: list[dict[str, Any]] = [asdict(check) for check in LIBRARY]
    with suppress(DflError), NodeClient(datadir, timeout_s=timeout_s) as node:  # told by the node's check
        checks = node.network()
    healths = {True: Health.OK, False: Health.WARNING, None: Health.NOTE}
    for check in checks:
        health = healths.get(check.get("ok"), Health.NOTE)
        yield Finding(str(check.get("name")), health, str(check.get("detail")), str(check.get("help") or ""))
