"""`dfl-node ledger`: who contributed what, what it was worth, what was paid."""

from __future__ import annotations

from pathlib import Path

import click

from dfl_ledger.errors import UsageError
from dfl_node.cli.common import datadir_option, timeout_option
from dfl_node.cli.output import Result, command_output, fields, output_options, table, vnx
from dfl_node.datadir import ledger_path


@click.group()
@output_options
def ledger() -> None:
    """See what was contributed and paid, and claim rewards."""


@ledger.command()
@click.option("--node", "who", metavar="ADDRESS", help="Only this node's.")
@click.option("--job", "job_id", type=click.IntRange(min=0), help="Only this job's.")
@click.option("--round", "round_", type=click.IntRange(min=0), help="Only this round's.")
@click.option("--kind", type=click.Choice(["update", "hop", "stage"]), help="Only of this kind.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="The newest so many."
)
@datadir_option
@command_output
def query(
    who: str | None, job_id: int | None, round_: int | None, kind: str | None, limit: int, datadir: Path
) -> Result:
    """List contributions in chain order. Needs no running node."""
    from dfl_ledger.query import open_ledger
    from dfl_node.identity import checksum_address

    node = None if who is None else checksum_address(who)
    with open_ledger(ledger_path(datadir)) as rows:
        found = rows.contributions(node=node, job=job_id, round_=round_, kind=kind, limit=limit)
    lines = [
        (
            c.id,
            c.node,
            c.kind,
            c.samples,
            _score(c.score),
            None if c.reward_wei is None else vnx(c.reward_wei),
            c.cid,
        )
        for c in found
    ]
    headers = ("ID", "NODE", "KIND", "SAMPLES", "SCORE", "REWARD", "CID")
    return Result({"contributions": [c.to_json() for c in found]}, table(headers, lines))


@ledger.command()
@click.argument("contribution_id", metavar="ID")
@datadir_option
@command_output
def show(contribution_id: str, datadir: Path) -> Result:
    """Show one contribution, named JOB.ROUND.INDEX, and the settlement that paid it."""
    from dfl_ledger.query import open_ledger

    with open_ledger(ledger_path(datadir)) as rows:
        found = rows.contribution(contribution_id)
        if found is None:
            raise UsageError(
                f"no contribution {contribution_id[:60]}",
                why="the ledger of this node does not know it",
                help_command="dfl-node ledger query",
            )
        paid = [s for s in rows.settlements(found.job) if s.get("round") == found.round]
    settlement = paid[0] if paid else None
    shown = {
        "contribution": found.id,
        "node": found.node,
        "job": found.job,
        "round": found.round,
        "kind": found.kind,
        "cid": found.cid,
        "parent": found.parent,
        "samples": found.samples,
        "score": _score(found.score),
        "reward": _paid(found.reward_wei),
        "accepted": {None: "not settled yet", True: "yes", False: f"no: {found.why}"}[found.accepted],
        "transaction": found.tx,
        "settled in": settlement["tx"] if settlement else None,
        "evidence": settlement["evidence"] if settlement else None,
    }
    return Result({**found.to_json(), "settlement": settlement}, fields(shown))


@ledger.command()
@click.option("--job", "job_id", type=click.IntRange(min=0), help="Only what this job pays.")
@datadir_option
@timeout_option(120.0)
@command_output
def claim(job_id: int | None, datadir: Path, timeout_s: float) -> Result:
    """Claim what the running node's wallet has earned."""
    from dfl_node.api.client import NodeClient

    with NodeClient(datadir, timeout_s=timeout_s) as node:
        paid = node.claim(job_id)
    total = str(paid.get("total_wei", "0"))
    claims = paid.get("claims")
    count = len(claims) if isinstance(claims, list) else 0
    claimed = f"{vnx(total)} claimed in {count} transaction{'s' * (count > 1)}"
    return Result(paid, claimed if count else "nothing to claim now")


def _paid(wei: int | None) -> str | None:
    return None if wei is None else vnx(wei)


def _score(score: float | None) -> str | None:
    return None if score is None else f"{score:+.6f}"
