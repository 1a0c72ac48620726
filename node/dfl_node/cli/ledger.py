"""`dfl-node ledger`: who contributed what, what it was worth, what was paid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dfl_ledger.errors import DflError, TimedOut, UsageError, VerificationFailed
from dfl_node.cli.common import datadir_option, timeout_option
from dfl_node.cli.output import Result, command_output, fields, known_error, note, output_options, table, vnx
from dfl_node.datadir import ledger_path

if TYPE_CHECKING:
    from dfl_ledger.audit import Place
    from dfl_ledger.query import LedgerRows
    from dfl_ledger.rows import IndexState
    from dfl_node.csv_export import Line
    from dfl_node.verifying import Check

MOST_EXPLAINED = 20  # of an address's contributions, unless more are asked for
KINDS = ("update", "hop", "stage", "feed")  # of contributions
ASSET_KINDS = ("dataset", "model", "algorithm")
F = TypeVar("F", bound=Callable[..., Any])


@click.group()
@output_options
def ledger() -> None:
    """See what was contributed and paid, and claim rewards."""


def _kind_option(*kinds: str) -> Callable[[F], F]:
    return click.option("--kind", type=click.Choice(kinds), help="Only of this kind.")


def _filters(command: F) -> F:
    for option in (
        click.option("--round", "round_", type=click.IntRange(min=0), help="Only this round's."),
        click.option("--job", "job_id", type=click.IntRange(min=0), help="Only this job's."),
        click.option("--node", "who", metavar="ADDRESS", help="Only this node's."),
    ):
        command = option(command)
    return command


@ledger.command()
@_filters
@_kind_option(*KINDS)
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
        index = rows.index_state()
    note(_lag(index))
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
    data = {"contributions": [c.to_json() for c in found], "index": index.to_json()}
    return Result(data, table(headers, lines))


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
            raise _unknown(contribution_id)
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
        "accepted": {None: "not settled yet", True: "yes", False: f"no: {found.why or 'by its evaluators'}"}[
            found.accepted
        ],
        "transaction": found.tx,
        "settled in": settlement["tx"] if settlement else None,
        "evidence": settlement["evidence"] if settlement else None,
    }
    return Result({**found.to_json(), "settlement": settlement}, fields(shown))


@ledger.command()
@click.argument("target", metavar="ADDRESS|CONTRIBUTION")
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=MOST_EXPLAINED,
    show_default=True,
    help="Of an address: the newest so many of each.",
)
@datadir_option
@command_output
def explain(target: str, limit: int, datadir: Path) -> Result:
    """Explain what a contribution (JOB.ROUND.INDEX), or all of an address, was paid, or why not.

    Of an address: its contributions, the rounds that it judged, and its assets. Needs no running node.
    """
    from dfl_ledger.explain import Explainer
    from dfl_ledger.query import open_ledger
    from dfl_node.cli import explaining
    from dfl_node.identity import checksum_address

    with open_ledger(ledger_path(datadir)) as rows:
        explainer = Explainer(rows, time.time())
        if target.startswith("0x"):
            return explaining.of_account(rows, explainer, checksum_address(target), limit)
        found = rows.contribution(target)
        if found is None:
            raise _unknown(target)
        return explaining.of_contribution(explainer.contribution(found))


@ledger.command()
@click.argument("target", metavar="JOB|ROUND|CONTRIBUTION|TX")
@datadir_option
@timeout_option(600.0)
@command_output
def verify(target: str, datadir: Path, timeout_s: float) -> Result:
    """Recompute what was paid, and compare: medians, both trees, rewards, the model, every score, payouts.

    TARGET is a job (1), a round (1.3), a contribution (1.3.0) or the transaction of a settlement, claim or
    contribution. Files come through the running node, or from its disk when none runs. Exits 6 with the first
    thing that does not hold.
    """
    import trio

    from dfl_ledger import audit
    from dfl_ledger.query import open_ledger

    checks: list[Check] = []

    def said(check: Check) -> None:
        checks.append(check)
        note(f"round {check.round}: {check.what}: {check.detail}")

    error: DflError | None = None
    with open_ledger(ledger_path(datadir)) as rows:
        place = audit.find(rows, target)
        wanted, skipped = _rounds(rows, place)
        try:
            trio.run(_verify, rows, place, wanted, datadir, timeout_s, said)
        except (DflError, ExceptionGroup) as wrong:
            error = known_error(wrong)
    data = {
        "job": place.job,
        "rounds": wanted,
        "skipped": skipped,
        "checks": [{"round": c.round, "check": c.what, "detail": c.detail} for c in checks],
    }
    lines = [f"round {number}: {why}" for number, why in skipped.items()]
    if error is None:
        rounds = f"{len(wanted)} round{'s' * (len(wanted) != 1)}"
        lines.append(f"job {place.job}: {rounds} verified, {len(checks)} checks hold")
    return Result(data, "\n".join(lines), error=error)


def _rounds(rows: LedgerRows, place: Place) -> tuple[list[int], dict[int, str]]:
    """The settled rounds that are asked for, and why the others have nothing to verify."""
    job = rows.job(place.job)
    found = [r for r in job.rounds if place.round in (None, r.round)] if job is not None else []
    why = {"void": "void, pays nothing", "open": "still open", "published": "not settled"}
    skipped = {r.round: why[r.state] for r in found if r.state != "settled"}
    settled = [r.round for r in found if r.state == "settled"]
    if not settled:
        raise VerificationFailed(
            f"there is nothing to verify in job {place.job}",
            why="; ".join(f"round {n} is {said}" for n, said in skipped.items()) or "it has no round",
            help_command=f"dfl-node job status {place.job}",
        )
    return settled, skipped


async def _verify(
    rows: LedgerRows,
    place: Place,
    wanted: list[int],
    datadir: Path,
    timeout_s: float,
    said: Callable[[Check], None],
) -> None:
    import trio

    from dfl_node.shelf import open_shelf
    from dfl_node.train.process import open_trainer
    from dfl_node.verifying import open_verifier

    with open_shelf(datadir, timeout_s=timeout_s) as files, trio.move_on_after(timeout_s):
        async with open_trainer() as trainer:
            verifier = await open_verifier(place.job, rows, files, trainer, said)
            for round_ in wanted:
                await verifier.verify_round(round_)
        return
    raise TimedOut(
        "gave up verifying",
        why=f"it took longer than {timeout_s:g} s",
        help_command="run it again with a longer --timeout",
    )


@ledger.command()
@click.option(
    "--csv",
    "path",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    required=True,
    help="Write comma-separated values to this file, - for stdout.",
)
@click.option("--force", is_flag=True, help="Overwrite the file.")
@_filters
@_kind_option(*KINDS, "evaluation", *ASSET_KINDS)
@datadir_option
@command_output
def export(
    path: Path,
    force: bool,
    who: str | None,
    job_id: int | None,
    round_: int | None,
    kind: str | None,
    datadir: Path,
) -> Result:
    """Write what was earned to a file for spreadsheets (RFC 4180). Needs no running node.

    One line for each contribution, each seat of a round's panel, and each asset in each round that pays for
    it.
    """
    from dfl_ledger.query import open_ledger
    from dfl_node import csv_export
    from dfl_node.identity import checksum_address

    node = None if who is None else checksum_address(who)
    with open_ledger(ledger_path(datadir)) as rows:
        found = list(_lines(rows, node, job_id, round_, kind))
    if str(path) == "-":
        return Result({"rows": len(found), "csv": csv_export.text(found)}, csv_export.text(found).rstrip())
    csv_export.write(path, found, overwrite=force)
    return Result({"rows": len(found), "file": str(path)}, f"{len(found)} rows in {path}")


def _lines(
    rows: LedgerRows, node: str | None, job: int | None, round_: int | None, kind: str | None
) -> Iterator[Line]:
    """Contributions, then evaluators' seats, then assets, each in the order of their rounds."""
    from dfl_ledger.explain import Explainer
    from dfl_node import csv_export

    if kind in (None, *KINDS):
        for found in rows.contributions(node=node, job=job, round_=round_, kind=kind, limit=None):
            yield csv_export.of_contribution(found)
    explainer = Explainer(rows, time.time())
    if kind in (None, "evaluation"):
        for seat in explainer.evaluations(node, None, job):
            if round_ in (None, seat.round) and seat.panel == 0:  # a juror of an appeal earns nothing
                yield csv_export.of_evaluation(seat)
    if kind in (None, *ASSET_KINDS):
        for asset in explainer.assets(node, None, job):
            if round_ in (None, asset.round) and kind in (None, asset.kind):
                yield csv_export.of_asset(asset)


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


def _unknown(contribution_id: str) -> UsageError:
    return UsageError(
        f"no contribution {contribution_id[:60]}",
        why="the ledger of this node does not know it",
        help_command="dfl-node ledger query",
    )


def _lag(index: IndexState) -> str:
    behind = f"{index.behind_blocks} blocks and {index.behind_s} s" if index.behind_blocks else "not"
    from dfl_node.cli.explaining import time_of

    seen = time_of(index.indexed_time) if index.indexed_time else "never"
    return f"indexed to block {index.indexed_block} of {seen}, {behind} behind the head it saw last"


def _paid(wei: int | None) -> str | None:
    return None if wei is None else vnx(wei)


def _score(score: float | None) -> str | None:
    return None if score is None else f"{score:+.6f}"
