"""A node's data directory: who holds it, and how commands find the node that runs on it.

lock            held by the running node; the kernel frees it when the process ends, however it ends
node.json       url and token of the running node's API (0600)
node.key        the node key (0600)
ledger.sqlite   what the chain said; readable while no node runs
journal.sqlite  what this node must not forget
sent.sqlite     the transactions it sent, for after a kill
peers.json      the peers last seen
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dfl_ledger.errors import DatadirLocked, NodeNotRunning, UsageError
from dfl_node.identity import write_private

_MAX_JSON_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NodeFile:
    """Where a running node's API is. The token is the operator's right to it."""

    url: str  # http://127.0.0.1:PORT
    pid: int
    token: str = field(repr=False)


def default_datadir() -> Path:
    """$DFL_HOME/node, else ~/.dfl/node."""
    home = os.environ.get("DFL_HOME")
    return (Path(home) if home else Path.home() / ".dfl") / "node"


@contextlib.contextmanager
def hold(datadir: Path) -> Iterator[None]:
    """Make the directory (0700) and lock it while the context is open.

    Raises DatadirLocked with the other node's pid, UsageError if the directory cannot be used. POSIX record
    locks (fcntl) are not inherited, so a child that outlives a killed node does not keep the lock.
    """
    _prepare(datadir)
    try:
        fd = os.open(datadir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as bad:
        raise UsageError(f"cannot lock {datadir}", why=bad.strerror or str(bad)) from bad
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as bad:
            pid = os.read(fd, 20).decode(errors="replace").strip()
            raise DatadirLocked(
                f"another node runs on {datadir}",
                why=f"process {pid or 'unknown'} holds its lock",
                help_command=f"dfl-node status --datadir {shlex.quote(str(datadir))}",
            ) from bad
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        # Left behind by a node that was killed; ours appears when we are ready.
        node_file_path(datadir).unlink(missing_ok=True)
        yield
    finally:
        os.close(fd)


def _prepare(datadir: Path) -> None:
    try:
        datadir.parent.mkdir(parents=True, exist_ok=True)
        datadir.mkdir(mode=0o700, exist_ok=True)
        status = datadir.stat()
        # Only a directory that is ours alone is tightened: what else the user keeps is not our business.
        ours = (datadir / "node.key").exists() or not any(datadir.iterdir())
        if status.st_mode & 0o077 and ours:
            datadir.chmod(stat.S_IMODE(status.st_mode) & 0o700)
    except OSError as bad:
        raise UsageError(f"cannot use {datadir} as the data directory", why=bad.strerror or str(bad)) from bad


def node_file_path(datadir: Path) -> Path:
    return datadir / "node.json"


def ledger_path(datadir: Path) -> Path:
    return datadir / "ledger.sqlite"


def write_node_file(datadir: Path, node: NodeFile) -> None:
    """Say that the node is ready and where; replaces atomically, 0600."""
    write_private(node_file_path(datadir), json.dumps(asdict(node)).encode(), replace=True)


def remove_node_file(datadir: Path) -> None:
    node_file_path(datadir).unlink(missing_ok=True)


def find_node(datadir: Path) -> NodeFile:
    """The node that runs on `datadir`. Raises NodeNotRunning."""
    path = node_file_path(datadir)
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(_MAX_JSON_BYTES))
        node = NodeFile(url=str(told["url"]), pid=int(told["pid"]), token=str(told["token"]))
    except FileNotFoundError as bad:
        raise not_running(datadir, "it has no node.json") from bad
    except OSError as bad:
        raise not_running(datadir, f"node.json: {bad.strerror}") from bad
    except (ValueError, KeyError, TypeError, RecursionError) as bad:
        raise not_running(datadir, "its node.json is damaged") from bad
    if node.pid <= 0:  # would name a group of processes
        raise not_running(datadir, "its node.json is damaged")
    try:
        os.kill(node.pid, 0)
    except PermissionError:
        pass  # it lives, as somebody else's
    except (ProcessLookupError, OverflowError) as bad:
        raise not_running(datadir, f"its last process, {node.pid}, has ended") from bad
    return node


def not_running(datadir: Path, why: str) -> NodeNotRunning:
    place = "" if datadir == default_datadir() else f" --datadir {shlex.quote(str(datadir))}"
    return NodeNotRunning(
        f"no node runs on {datadir}", why=why, help_command=f"dfl-node start --wallet key.json{place}"
    )


def write_peers(datadir: Path, peers: list[dict[str, Any]]) -> None:
    """Remember who was seen, for `dfl-node peers` after the node has stopped."""
    write_private(datadir / "peers.json", json.dumps(peers).encode(), replace=True)


def last_peers(datadir: Path) -> list[dict[str, Any]]:
    """The peers the last node on this directory saw; empty if unknown."""
    try:
        with (datadir / "peers.json").open("rb") as file:
            peers = json.loads(file.read(_MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return []
    return [peer for peer in peers if isinstance(peer, dict)] if isinstance(peers, list) else []
