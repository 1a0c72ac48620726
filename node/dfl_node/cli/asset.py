"""`dfl-node asset` and `dfl-node dataset`: what is owned and lent to jobs, and earns there.

What changes something goes through the running node, whose wallet owns it; what only looks reads the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dfl_ledger.errors import UsageError
from dfl_node.cli.common import datadir_option, file_type, timeout_option
from dfl_node.cli.output import Result, command_output, fields, output_options, table, vnx
from dfl_node.datadir import ledger_path

if TYPE_CHECKING:
    from dfl_ledger.rows_rewards import AssetRow

KINDS = ("dataset", "model", "algorithm", "application")
USES = ("train", "evaluate", "commercial", "derive")
_MINE_S = 120.0
F = TypeVar("F", bound=Callable[..., Any])


@click.group()
@output_options
def asset() -> None:
    """Own data sets, models and algorithms, and lend them to jobs."""


@click.group()
@output_options
def dataset() -> None:
    """Make assets of rows that stay here."""


# -- what both take ---------------------------------------------------------------------------------------
def _price_bps(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Percent with at most two decimals -> basis points, exactly."""
    if value is None:
        return None
    try:
        bps = Decimal(value) * 100
    except InvalidOperation:
        bps = Decimal(-1)
    if not bps.is_finite() or bps != int(bps) or not 0 <= bps <= 10_000:
        raise click.BadParameter(f"{value!r:.40} is not percent from 0 to 100 with at most two decimals")
    return int(bps)


def _terms(command: F) -> F:
    for option in (
        click.option(
            "--parent", "parents", type=click.IntRange(1, 2**63 - 1), multiple=True, help="Derived from it."
        ),
        click.option(
            "--price",
            "price_bps",
            metavar="PERCENT",
            callback=_price_bps,
            default="0",
            show_default=True,
            help="The least share of a round's budget for which a job may use it.",
        ),
        click.option(
            "--use",
            "uses",
            type=click.Choice(USES),
            multiple=True,
            default=("train",),
            show_default=True,
            help="What it may be used for. Repeatable.",
        ),
        click.option(
            "--licence", metavar="SPDX|CID", required=True, help="Such as CC-BY-4.0, or the CID of a text."
        ),
    ):
        command = option(command)
    return command


# -- minting ----------------------------------------------------------------------------------------------
@dataset.command("add")
@click.argument("path", type=file_type(exists=True))
@click.option("--app", required=True, help="The application whose rows they are.")
@click.option("--name", help="What people call it.  [default: the file's name]")
@_terms
@datadir_option
@timeout_option(_MINE_S)
@command_output
def add(
    path: Path,
    app: str,
    name: str | None,
    licence: str,
    uses: tuple[str, ...],
    price_bps: int,
    parents: tuple[int, ...],
    datadir: Path,
    timeout_s: float,
) -> Result:
    """Make an asset of the rows in PATH, and print its number and the CID of its manifest.

    The manifest has the rows' form, number and digest, and is public. The rows stay in PATH: whoever wants
    to be paid for them trains on them, or lends them to somebody who does.
    """
    from dfl_node import assets
    from dfl_node.api.client import NodeClient

    manifest = assets.dataset_manifest(
        app, path, name=path.stem[:64] if name is None else name, licence=licence
    )
    with NodeClient(datadir, timeout_s=timeout_s) as node:
        stored = node.put_bytes(assets.encode_manifest(manifest), "the manifest")
        minted = node.mint_asset(_new("dataset", str(stored.get("cid")), licence, uses, price_bps, parents))
    found = {**minted, "manifest_cid": minted.get("manifest"), "manifest": manifest}
    shown = {
        "asset": minted.get("asset"),
        "manifest": stored.get("cid"),
        "rows": f"{manifest['rows']} of {app}",
        "digest": manifest["digest"],
    }
    return Result(found, fields(shown))


@asset.command()
@click.argument("manifest", metavar="FILE|CID")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is.")
@_terms
@datadir_option
@timeout_option(_MINE_S)
@command_output
def mint(
    manifest: str,
    kind: str,
    licence: str,
    uses: tuple[str, ...],
    price_bps: int,
    parents: tuple[int, ...],
    datadir: Path,
    timeout_s: float,
) -> Result:
    """Make an asset whose manifest, which says what it is, is FILE, or a file stored before."""
    from dfl_node.api.client import NodeClient

    with NodeClient(datadir, timeout_s=timeout_s) as node:
        cid = manifest if _is_cid(manifest) else str(_store(node, Path(manifest)).get("cid"))
        minted = node.mint_asset(_new(kind, cid, licence, uses, price_bps, parents))
    return Result(minted, fields({"asset": minted.get("asset"), "manifest": minted.get("manifest")}))


def _new(
    kind: str, cid: str, licence: str, uses: tuple[str, ...], price_bps: int, parents: tuple[int, ...]
) -> Any:
    from dfl_ledger.records import AssetKind, Cid
    from dfl_node.assets import NewAsset, read_uses

    return NewAsset(
        AssetKind[kind.upper()], Cid.parse(cid), licence, read_uses(list(uses)), price_bps, parents
    )


def _is_cid(text: str) -> bool:
    from dfl_ledger.records import Cid

    try:
        Cid.parse(text)
    except ValueError:
        return False
    return True


def _store(node: Any, path: Path) -> dict[str, Any]:
    from dfl_node.assets import MAX_MANIFEST_BYTES

    if path.is_file() and path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UsageError(
            f"{path} is too large for a manifest",
            why=f"a manifest says what the asset is, in at most {MAX_MANIFEST_BYTES} bytes",
            help_command="dfl-node asset mint --help",
        )
    stored: dict[str, Any] = node.put_blob(path, pin=True)
    return stored


# -- changing ---------------------------------------------------------------------------------------------
_number = click.argument("number", metavar="ASSET", type=click.IntRange(1, 2**63 - 1))


@asset.command()
@_number
@click.argument("price_bps", metavar="PERCENT", callback=_price_bps)
@datadir_option
@timeout_option(_MINE_S)
@command_output
def price(number: int, price_bps: int, datadir: Path, timeout_s: float) -> Result:
    """Ask PERCENT of a round's budget of jobs that begin from now on."""
    from dfl_node.api.client import NodeClient

    with NodeClient(datadir, timeout_s=timeout_s) as node:
        done = node.price_asset(number, price_bps)
    return Result(done, f"asset {number} costs {_percent(price_bps)}, in {done.get('tx')}")


@asset.command()
@_number
@click.argument("user", metavar="ADDRESS")
@datadir_option
@timeout_option(_MINE_S)
@command_output
def allow(number: int, user: str, datadir: Path, timeout_s: float) -> Result:
    """Let the wallet ADDRESS, and no other than it and yours, use the asset."""
    from dfl_node.api.client import NodeClient
    from dfl_node.identity import checksum_address

    account = checksum_address(user)
    with NodeClient(datadir, timeout_s=timeout_s) as node:
        done = node.allow_asset(number, account)
    return Result(done, f"asset {number} may be used by {account}, in {done.get('tx')}")


@asset.command()
@_number
@datadir_option
@timeout_option(_MINE_S)
@command_output
def revoke(number: int, datadir: Path, timeout_s: float) -> Result:
    """Take the asset from the market for good: jobs that use it go on paying, no other can begin to."""
    from dfl_node.api.client import NodeClient

    with NodeClient(datadir, timeout_s=timeout_s) as node:
        done = node.revoke_asset(number)
    return Result(done, f"asset {number} is revoked, in {done.get('tx')}")


# -- looking ----------------------------------------------------------------------------------------------
@asset.command("list")
@click.option("--owner", metavar="ADDRESS", help="Only this account's.")
@click.option("--kind", type=click.Choice(KINDS), help="Only of this kind.")
@datadir_option
@command_output
def list_(owner: str | None, kind: str | None, datadir: Path) -> Result:
    """List the assets that the ledger knows. Needs no running node."""
    from dfl_ledger.query import open_ledger
    from dfl_node.identity import checksum_address

    account = None if owner is None else checksum_address(owner)
    with open_ledger(ledger_path(datadir)) as rows:
        found = [a for a in rows.assets(account) if kind in (None, a.kind.name.lower())]
    headers = ("ASSET", "KIND", "OWNER", "PRICE", "USES", "STATE", "MANIFEST")
    lines = [
        (a.asset, a.kind.name.lower(), a.owner, _percent(a.price_bps), _uses(a), _state(a), a.manifest)
        for a in found
    ]
    return Result({"assets": [a.to_json() for a in found]}, table(headers, lines))


@asset.command()
@_number
@datadir_option
@command_output
def show(number: int, datadir: Path) -> Result:
    """Show one asset and what it has earned in each job. Needs no running node."""
    from dfl_ledger.explain import Explainer
    from dfl_ledger.query import open_ledger

    with open_ledger(ledger_path(datadir)) as rows:
        found = next((a for a in rows.assets() if a.asset == number), None)
        if found is None:
            raise UsageError(
                f"no asset {number}",
                why="the ledger of this node does not know it",
                help_command="dfl-node asset list",
            )
        earnings = [
            earned
            for earned in Explainer(rows, time.time()).assets(found.owner, None)
            if earned.asset == number
        ]
    jobs: dict[int, int] = {}
    for earned in earnings:
        jobs[earned.job] = jobs.get(earned.job, 0) + (earned.money.reward_wei or 0)
    shown = {
        "asset": found.asset,
        "kind": found.kind.name.lower(),
        "owner": found.owner,
        "price": _percent(found.price_bps),
        "uses": _uses(found),
        "state": _state(found),
        "manifest": found.manifest,
        "licence": "0x" + found.licence.hex(),
        "parents": ", ".join(map(str, found.parents)) or None,
        "earned": vnx(sum(jobs.values())),
    }
    lines = [(job, sum(e.job == job for e in earnings), vnx(wei)) for job, wei in jobs.items()]
    parts = [fields(shown), *([table(("JOB", "ROUNDS", "EARNED"), lines)] if lines else [])]
    data = {
        **found.to_json(),
        "jobs": [{"job": job, "earned_wei": str(wei)} for job, wei in jobs.items()],
    }
    return Result(data, "\n\n".join(parts))


def _percent(bps: int) -> str:
    return f"{bps / 100:g} %"


def _uses(found: AssetRow) -> str:
    from dfl_node.assets import use_names

    return ", ".join(use_names(found.uses)) or "none"


def _state(found: AssetRow) -> str:
    return "revoked" if found.revoked else "offered"
