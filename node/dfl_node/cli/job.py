"""`dfl-node job`: submit jobs, see how they go, download what they made.

What is only read comes from the ledger in the data directory, whether or not the node runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfl_ledger.errors import DflError, NodeNotRunning, TimedOut, UsageError
from dfl_node.cli.common import datadir_option, file_type, read_text, timeout_option
from dfl_node.cli.downloads import check_target, write_download
from dfl_node.cli.output import Result, command_output, fields, note, output_options, table, vnx
from dfl_node.datadir import find_node, ledger_path

if TYPE_CHECKING:
    from dfl_ledger.query import LedgerRows
    from dfl_ledger.rows import JobRow, RoundRow
    from dfl_node.jobspec import JobSpec

_LOOK_S = 0.25
_ALIVE_LOOK_S = 5.0
_APPEAR_S = 15.0  # a job just submitted may take this long to reach the ledger
_DAY_S = 24 * 3600.0
_SHORT = 10  # characters of an address in a line of `watch`
_ENDED = ("completed", "failed", "cancelled")
_AT_DEADLINE = {
    "open": "then it starts with {quorum} or fails",
    "commit": "then the round goes on with {quorum} or is void",
    "reveal": "then the round goes on with {quorum} or is void",
    "aggregate": "then the round is void",
}

_job_argument = click.argument("job_id", metavar="ID", type=click.IntRange(min=0))


@click.group()
@output_options
def job() -> None:
    """Submit jobs, watch them, download their models."""


@job.command()
@_job_argument
@datadir_option
@timeout_option(60.0)
@command_output
def cancel(job_id: int, datadir: Path, timeout_s: float) -> Result:
    """End your job ID: at once before its first round, else with the current round. The rest is refunded."""
    from dfl_node.api.client import NodeClient

    with NodeClient(datadir, timeout_s=timeout_s) as node:
        data = node.cancel_job(job_id)
    return Result(data, f"job {job_id} ends with its current round; what no round earned is refunded")


# -- submitting --------------------------------------------------------------------------------------------
def _checked(file: Path) -> tuple[str, JobSpec]:
    from dfl_node import jobspec

    toml = read_text(file, what="job spec", max_bytes=jobspec.MAX_SPEC_BYTES)
    return toml, jobspec.parse(toml)


@job.command()
@click.argument("file", type=file_type())
@datadir_option
@timeout_option(30.0)
@command_output
def check(file: Path, datadir: Path, timeout_s: float) -> Result:
    """Check the job spec FILE, and by the running node whether it could be submitted."""
    from dfl_node.api.client import NodeClient

    toml, spec = _checked(file)
    data: dict[str, Any] = {
        "name": spec.name,
        "app": spec.app,
        "rounds": spec.training.rounds,
        "budget_wei": str(spec.budget_wei),
        "checked_by_node": True,
    }
    try:
        with NodeClient(datadir, timeout_s=timeout_s) as node:
            data |= node.check_job(toml)
    except NodeNotRunning:
        data["checked_by_node"] = False
        note("No node runs: the form was checked, not whether the wallet can pay.")
    text = f"{file} is a job spec: {spec.name}, {spec.training.rounds} rounds for {vnx(spec.budget_wei)}"
    return Result(data, text)


@job.command()
@click.argument("file", type=file_type())
@datadir_option
@timeout_option(120.0)
@command_output
def submit(file: Path, datadir: Path, timeout_s: float) -> Result:
    """Submit the job spec FILE through the running node, whose wallet pays."""
    from dfl_node.api.client import NodeClient

    toml, spec = _checked(file)
    with NodeClient(datadir, timeout_s=timeout_s) as node:
        made = node.submit_job(toml)
    text = f"job {made.get('job_id')}: {spec.name}, {vnx(spec.budget_wei)} in escrow"
    return Result(made, text)


# -- reading -----------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _ledger(datadir: Path) -> Iterator[LedgerRows]:
    from dfl_ledger.query import open_ledger

    with open_ledger(ledger_path(datadir)) as rows:
        yield rows


def _unknown(job_id: int) -> UsageError:
    return UsageError(
        f"no job {job_id}", why="the ledger of this node does not know it", help_command="dfl-node job list"
    )


@job.command("list")
@datadir_option
@command_output
def list_(datadir: Path) -> Result:
    """List every job on the chain."""
    with _ledger(datadir) as rows:
        jobs = rows.jobs()
    lines = [
        (
            j.job,
            j.phase,
            f"{j.completed}/{j.target_rounds}",
            j.contributions,
            j.mode,
            vnx(_budget(j)),
            j.requester,
        )
        for j in jobs
    ]
    headers = ("JOB", "PHASE", "ROUNDS", "CONTRIBUTIONS", "MODE", "BUDGET", "REQUESTER")
    return Result({"jobs": [_json(j) for j in jobs]}, table(headers, lines))


@job.command()
@_job_argument
@datadir_option
@command_output
def status(job_id: int, datadir: Path) -> Result:
    """Show one job and its rounds."""
    with _ledger(datadir) as rows:
        found = rows.job(job_id)
    if found is None:
        raise _unknown(job_id)
    declined = _live(datadir, job_id).get("declined", "")
    shown = _described(found) + (f"\n\ndeclined by this node: {declined}" if declined else "")
    return Result({**_json(found), "declined": declined}, shown)


@job.command()
@_job_argument
@click.option("--format", "form", type=click.Choice(("text", "dot")), default="text", show_default=True)
@datadir_option
@command_output
def draw(job_id: int, form: str, datadir: Path) -> Result:
    """Draw a job's graph: which model came from whose work on which model.

    `--format dot` is for Graphviz: dfl-node job draw 1 --format dot | dot -Tsvg > job.svg
    """
    from dfl_node import drawing

    with _ledger(datadir) as rows:
        found = rows.job(job_id)
        pieces = rows.contributions(job=job_id, limit=None)
    if found is None:
        raise _unknown(job_id)
    edges = [dataclasses.asdict(edge) for edge in drawing.graph(found, pieces)]
    shown = drawing.text(found, pieces) if form == "text" else drawing.dot(found, pieces)
    return Result({"job_id": job_id, "edges": edges}, shown)


def _json(row: JobRow) -> dict[str, Any]:
    return {"job_id": row.job, **row.to_json()}


def _budget(row: JobRow) -> int:
    return row.round_budget_wei * row.target_rounds


def _described(row: JobRow) -> str:
    rounds = [
        (r.round, r.state, f"{r.contributions}/{r.expected}", r.aggregator, _paid(r.paid_wei))
        for r in row.rounds
    ]
    shown = {
        "job": row.job,
        "phase": row.phase,
        "rounds": f"{row.completed} of {row.target_rounds}",
        "model": row.model,
        "requester": row.requester,
        "budget": f"{vnx(_budget(row))}, {vnx(row.settled_wei)} settled, {vnx(row.refunded_wei)} refunded",
        "spec": row.spec,
    }
    rounds_table = table(("ROUND", "STATE", "CONTRIBUTIONS", "AGGREGATOR", "PAID"), rounds)
    return f"{fields(shown)}\n\n{rounds_table}"


def _paid(wei: int | None) -> str | None:
    return None if wei is None else vnx(wei)


# -- watching ----------------------------------------------------------------------------------------------
@job.command()
@_job_argument
@datadir_option
@timeout_option(_DAY_S)
@command_output
def watch(job_id: int, datadir: Path, timeout_s: float) -> Result:
    """Follow a job until it ends: a line for each change, on stderr.

    Ends with 0 when the job completed and 1 when it failed or was cancelled.
    """
    began = time.monotonic()
    alive_at = -_ALIVE_LOOK_S
    seen: tuple[object, ...] = ()
    while True:
        row = _row(datadir, job_id)
        waited_s = time.monotonic() - began
        if row is not None and row.phase in _ENDED:
            return _ended(row)
        if waited_s - alive_at >= _ALIVE_LOOK_S:
            find_node(datadir)  # without a node nothing here would ever change
            alive_at = waited_s
        if row is None and waited_s > min(_APPEAR_S, timeout_s):
            raise _unknown(job_id)
        if row is not None:
            now = _standing(row)
            if now != seen:
                seen = now
                note(_line(row, _live(datadir, job_id)))
            if waited_s > timeout_s:
                gave_up = TimedOut(
                    f"job {job_id} has not ended",
                    why=f"in round {row.round}, {row.phase}, after {timeout_s:g} s; the job itself goes on",
                    help_command=f"dfl-node job watch {job_id}",
                )
                return Result(_json(row), error=gave_up)
        time.sleep(min(_LOOK_S, timeout_s))


def _row(datadir: Path, job_id: int) -> JobRow | None:
    try:
        with _ledger(datadir) as rows:
            return rows.job(job_id)
    except NodeNotRunning:  # a node that has just started has no ledger yet
        find_node(datadir)
        return None


def _standing(row: JobRow) -> tuple[object, ...]:
    current = row.rounds[-1] if row.rounds else None
    counts = (current.expected, current.commits, current.contributions) if current is not None else ()
    return row.round, row.phase, row.completed, row.deadline, *counts


def _live(datadir: Path, job_id: int) -> dict[str, Any]:
    """What only the running node knows: who is awaited, loss, speed, what the mode is busy with."""
    from dfl_node.api.client import NodeClient

    try:
        with NodeClient(datadir, timeout_s=2.0) as node:
            return node.job(job_id)
    except DflError:
        return {}


def _line(row: JobRow, view: dict[str, Any]) -> str:
    """`12:00:01  round 2 (1 of 6 done)  commit  1 of 3 committed  waits for 0xab… until 12:00:31, then …`"""
    live = view.get("live", {})
    awaited = [str(who) for who in view.get("awaited", [])]
    current = row.rounds[-1] if row.rounds else None
    now = datetime.now(UTC).strftime("%H:%M:%S")
    parts = [now, f"round {row.round} ({row.completed} of {row.target_rounds} done)", row.phase]
    if current is not None:
        match row.phase:
            case "open":
                parts.append(f"{current.expected} of {row.min_nodes} joined")
            case "commit":
                parts.append(_committed(row, current, live))
            case "reveal":
                parts.append(f"{current.contributions} of {current.commits} contributions")
            case _:
                parts.append(f"{current.contributions} contributions")
    who = ", ".join(a[:_SHORT] + "…" for a in awaited[:4]) + (
        f" and {len(awaited) - 4} more" if awaited[4:] else ""
    )
    until = datetime.fromtimestamp(row.deadline, UTC).strftime("%H:%M:%S UTC")
    then = _AT_DEADLINE.get(row.phase, "").format(quorum=row.quorum)
    parts.append(f"waits{' for ' + who if who else ''} until {until}, {then}".rstrip(", "))
    return "  ".join(parts + _pace(row, live))


def _committed(row: JobRow, current: RoundRow, live: dict[str, Any]) -> str:
    expected = live.get("expected", current.expected)
    if row.mode == "chained":
        return f"{current.contributions} of {expected} hops"
    return f"{current.commits} of {expected} committed"


def _pace(row: JobRow, live: dict[str, Any]) -> list[str]:
    """Loss, speed and spend, as far as they are known."""
    parts, activity = [], live.get("activity", {})
    if "step" in activity:
        parts.append(f"step {activity['step']} of {activity.get('of', '?')}")
    if live.get("loss") is not None:
        parts.append(f"loss {live['loss']:.4f}")
    if live.get("validation_loss") is not None:
        parts.append(f"validation loss {live['validation_loss']:.4f}")
    if live.get("samples_per_s") is not None:
        parts.append(f"{live['samples_per_s']:.0f} samples/s")
    return [*parts, f"spent {vnx(row.settled_wei)} of {vnx(_budget(row))}"]


def _ended(row: JobRow) -> Result:
    if row.phase == "completed":
        note(f"Fetch the model: dfl-node job download {row.job} -o DIR")
        return Result(_json(row), _described(row))
    error = DflError(
        f"job {row.job} was cancelled" if row.phase == "cancelled" else f"job {row.job} failed",
        why=f"after {row.completed} of {row.target_rounds} rounds",
        help_command=f"dfl-node job status {row.job}",
    )
    return Result(_json(row), _described(row), error)


# -- downloading -------------------------------------------------------------------------------------------
@job.command()
@_job_argument
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="[default: job-ID]")
@click.option("--force", is_flag=True, help="Overwrite the model's files.")
@datadir_option
@timeout_option(300.0)
@command_output
def download(job_id: int, output: Path | None, force: bool, datadir: Path, timeout_s: float) -> Result:
    """Write a job's newest model and what proves it to a directory.

    model.safetensors, config.json, README.md (the model card) and ledger-proof.json.
    """
    from dfl_node.api.client import NodeClient

    target = output or Path(f"job-{job_id}")
    check_target(target, force=force)
    with NodeClient(datadir, timeout_s=timeout_s) as node:
        files = node.download(job_id)
    write_download(target, files)
    sizes = {name: len(data) for name, data in files.items()}
    data = {"job_id": job_id, "path": str(target.absolute()), "files": sizes}
    return Result(data, table(("FILE", "BYTES"), [(target / name, size) for name, size in sizes.items()]))
