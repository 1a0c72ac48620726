"""`dfl-node status` and `dfl-node peers`: what the running node sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dfl_ledger.errors import NodeNotRunning
from dfl_node.cli.common import datadir_option, timeout_option
from dfl_node.cli.output import Result, command_output, fields, note, table
from dfl_node.datadir import last_peers


@click.command()
@datadir_option
@timeout_option(15.0)
@command_output
def status(datadir: Path, timeout_s: float) -> Result:
    """Show the node that runs on the data directory."""
    from dfl_node.api.client import NodeClient

    with NodeClient(datadir, timeout_s=timeout_s) as node:
        found = node.status()
    return Result(found, _status_text(found))


def _status_text(found: Mapping[str, Any]) -> str:
    chain = found.get("chain")
    chain = chain if isinstance(chain, dict) else {}
    addresses, peers_, jobs = (_list(found.get(name)) for name in ("multiaddrs", "peers", "jobs"))
    return fields(
        {
            "address": found.get("address"),
            "peer id": found.get("peer_id"),
            "listens on": ("\n" + " " * 14).join(map(str, addresses)) or None,
            "http": found.get("http_url"),
            "roles": ", ".join(map(str, _list(found.get("roles")))) or None,
            "reachability": _reach(found.get("reachability")),
            "peers": len(peers_),
            "chain": f"{chain.get('id')}, head {chain.get('head')}, indexed to {chain.get('indexed')}"
            + _lag(chain),
            "jobs": len(jobs),
            "data sets": _datasets(found.get("datasets")),
            **_declined(jobs),
            "version": found.get("version"),
        }
    )


def _datasets(told: object) -> str | None:
    lines = []
    for entry in _list(told):
        jobs, left_out = ", ".join(map(str, _list(entry.get("jobs")))), entry.get("left_out") or {}
        lines.append(f"{entry.get('asset')}, rows of {entry.get('app')}, declared in jobs: {jobs or 'none'}")
        lines += [f"  not in job {job}: {why}" for job, why in left_out.items()]
    return ("\n" + " " * 14).join(lines) or None


def _declined(jobs: list[Any]) -> dict[str, object]:
    """The jobs that the node does not train in though it could, and why."""
    told = [(job.get("job"), job.get("declined")) for job in jobs if isinstance(job, dict)]
    return {f"declines {job}": why for job, why in told if why}


def _lag(chain: Mapping[str, Any]) -> str:
    blocks = chain.get("behind_blocks")
    return f", {blocks} blocks and {chain.get('behind_s')} s behind" if blocks else ""


def _reach(told: object) -> str | None:
    return f"{told.get('state')}: {told.get('why')}" if isinstance(told, dict) else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


@click.command()
@datadir_option
@timeout_option(15.0)
@command_output
def peers(datadir: Path, timeout_s: float) -> Result:
    """Show the connected peers: who, how found, latency.

    Of a stopped node, the ones it saw last.
    """
    from dfl_node.api.client import NodeClient

    try:
        with NodeClient(datadir, timeout_s=timeout_s) as node:
            found = node.peers()
        running = True
    except NodeNotRunning as stopped:
        note(f"{stopped.what}: these are the peers it saw last")
        found = [{**peer, "last_seen": True} for peer in last_peers(datadir)]
        running = False
    rows = [(p.get("peer_id"), p.get("address"), p.get("found_by"), _ms(p.get("latency_ms"))) for p in found]
    return Result(
        {"running": running, "peers": found}, table(("PEER", "WALLET", "FOUND BY", "LATENCY"), rows)
    )


def _ms(value: object) -> str | None:
    return f"{value:.1f} ms" if isinstance(value, int | float) else None
