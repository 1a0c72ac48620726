"""`dfl-node blob`: files by CID, through the running node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfl_node.cli.common import datadir_option, file_type, timeout_option
from dfl_node.cli.output import Result, command_output, output_options, table

_FETCH_S = 60.0


@click.group()
@output_options
def blob() -> None:
    """Store and fetch files by CID, through the running node."""


def _client(datadir: Path, timeout_s: float) -> Any:
    from dfl_node.api.client import NodeClient

    return NodeClient(datadir, timeout_s=timeout_s)


@blob.command()
@click.argument("file", type=file_type())
@click.option("--no-pin", is_flag=True, help="Let the store drop it when space runs short.")
@datadir_option
@timeout_option(_FETCH_S)
@command_output
def add(file: Path, no_pin: bool, datadir: Path, timeout_s: float) -> Result:
    """Store FILE and print its CID."""
    with _client(datadir, timeout_s) as node:
        stored = node.put_blob(file, pin=not no_pin)
    return Result(stored, str(stored.get("cid")))


@blob.command()
@click.argument("cid")
@click.option("-o", "--output", type=file_type(), required=True, help="Where to write it.")
@click.option("--force", is_flag=True, help="Overwrite.")
@datadir_option
@timeout_option(_FETCH_S)
@command_output
def get(cid: str, output: Path, force: bool, datadir: Path, timeout_s: float) -> Result:
    """Fetch the file CID, from this node or from its peers."""
    with _client(datadir, timeout_s) as node:
        size = node.get_blob(cid, output, overwrite=force)
    return Result({"cid": cid, "bytes": size, "path": str(output.absolute())}, f"{size} bytes in {output}")


@blob.command()
@datadir_option
@timeout_option(30.0)
@command_output
def ls(datadir: Path, timeout_s: float) -> Result:
    """List the files this node holds."""
    with _client(datadir, timeout_s) as node:
        blobs = node.list_blobs()
    rows = [(b.get("cid"), b.get("bytes"), "pinned" if b.get("pinned") else None) for b in blobs]
    return Result({"blobs": blobs}, table(("CID", "BYTES", "PINNED"), rows))


@blob.command()
@click.argument("cid")
@datadir_option
@timeout_option(_FETCH_S)
@command_output
def pin(cid: str, datadir: Path, timeout_s: float) -> Result:
    """Keep the file CID; fetches it if it is not here."""
    with _client(datadir, timeout_s) as node:
        return Result(node.pin(cid), f"pinned {cid}")


@blob.command()
@click.argument("cid")
@datadir_option
@timeout_option(30.0)
@command_output
def unpin(cid: str, datadir: Path, timeout_s: float) -> Result:
    """Let the store drop the file CID."""
    with _client(datadir, timeout_s) as node:
        return Result(node.unpin(cid), f"unpinned {cid}")
