"""A whole network on this machine: a development chain and real `dfl-node start` processes.

The demo, the benchmarks and the multi-process tests all stand on it. Everything goes through the same
commands that a user types; nothing reaches into a node's process.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dfl_ledger.devchain import DevChain, dev_chain, fund, tied_to_us
from dfl_ledger.errors import DflError, TimedOut, UsageError
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import Address, JobId
from dfl_node.journal import Journal, RoundStats

MARK = ".dfl-localnet"  # only a directory that carries this file is ever emptied
WEI = 10**18
STAKE_VNX = 100
ROLES = "train,request,evaluate"
GIFT_VNX = 10_000
READY_S = 180.0  # a busy machine takes its time to import; a node that ends is noticed at once
STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node runs: on this host's loopback, or in a network namespace of its own."""

    address: str = "127.0.0.1"  # it listens there
    prefix: tuple[str, ...] = ()  # before its command, such as `ip netns exec NAME`
    rpc_url: str | None = None  # how it reaches the chain; None: as we do


@dataclass(slots=True)
class LocalNode:
    """One `dfl-node start` process and what belongs to it."""

    number: int  # counted from 1
    home: Path
    address: Address
    options: tuple[str, ...]
    knows_another: bool = True  # is told the address of one running node
    place: Place = Place()
    process: subprocess.Popen[bytes] | None = None
    killed: bool = False
    info: dict[str, Any] = field(default_factory=dict)  # `status --json` once ready

    @property
    def datadir(self) -> Path:
        return self.home / "node"

    @property
    def log(self) -> Path:
        return self.home / "node.log"

    @property
    def wallet(self) -> Path:
        return self.home / "key.json"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class LocalNet:
    """A context manager; leaving it ends every process it started, by its id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nodes: list[LocalNode] = []
        self.chain: DevChain
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        _empty(self.root)
        password = self.root / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(18))
        self._stack.callback(self.stop_nodes)
        try:
            self.chain = self._stack.enter_context(dev_chain(self.root / "chain"))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_nodes()
        self._stack.close()

    # -- nodes ----------------------------------------------------------------------------------------
    def add_node(
        self,
        *options: str,
        roles: str = ROLES,
        knows_another: bool = True,
        place: Place = Place(),
    ) -> LocalNode:
        """Make a wallet, fund it, and start a node with it. Does not wait until it is ready."""
        number = len(self.nodes) + 1
        home = self.root / f"node-{number}"
        home.mkdir(mode=0o700)
        made = self.cli("wallet", "new", str(home / "key.json"), "--light", *self._password())
        all_options = ("--roles", roles, *options)
        node = LocalNode(number, home, Address(made["address"]), all_options, knows_another, place)
        fund(self.chain, node.address, native_wei=10 * WEI, vnx_wei=GIFT_VNX * WEI)
        self.nodes.append(node)
        self.start_node(node)
        return node

    def start_node(self, node: LocalNode) -> None:
        """Start (or, after a kill, restart) the node's process on its data directory."""
        boot = [a for n in self.nodes if n is not node for a in n.info.get("multiaddrs", [])[:1]][:1]
        arguments = [
            *("start", "--wallet", str(node.wallet), *self._password(), "--datadir", str(node.datadir)),
            *("--rpc-url", node.place.rpc_url or self.chain.rpc_url),
            *("--deployment", str(self.chain.deployment_path)),
            *("--listen", f"/ip4/{node.place.address}/tcp/0", "--no-mdns", "--stake", str(STAKE_VNX)),
            "--share-rows",  # they are nobody's secret
            *("--log-format", "json"),
            *(("--bootnodes", boot[0]) if boot and node.knows_another else ()),
            *node.options,
        ]
        (node.datadir / "node.json").unlink(missing_ok=True)  # of a process that was killed: it is not ready
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                tied_to_us([*node.place.prefix, *_dfl_node(arguments)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        node.killed = False

    def wait_ready(self, *nodes: LocalNode, timeout_s: float = READY_S) -> None:
        """Until each node answers `status`. Raises DflError with the end of its log if it ends first."""
        deadline = time.monotonic() + timeout_s
        for node in nodes or self.nodes:
            while not (node.datadir / "node.json").exists():
                self._alive(node)
                self._patience(deadline, f"node {node.number} to start")
            node.info = self.cli("status", "--datadir", str(node.datadir))

    def kill(self, node: LocalNode) -> None:
        """SIGKILL: the node's process and its trainer get no chance to say goodbye."""
        if node.process is not None:
            node.process.send_signal(signal.SIGKILL)
            node.process.wait()
            node.killed = True

    def stop_nodes(self) -> None:
        running = [n.process for n in self.nodes if n.process is not None and n.process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # -- jobs -----------------------------------------------------------------------------------------
    def submit(self, spec: str, node: LocalNode | None = None) -> JobId:
        path = self.root / "job.toml"
        path.write_text(spec)
        node = node or self.nodes[0]
        return JobId(int(self.cli("job", "submit", str(path), "--datadir", str(node.datadir))["job_id"]))

    def job(self, job: JobId, node: LocalNode | None = None) -> dict[str, Any] | None:
        """The job with its rounds as a node's ledger has it, None before the node heard of it."""
        with self.rows(node) as rows:
            found = rows.job(job)
            return None if found is None else found.to_json()

    def rows(self, node: LocalNode | None = None) -> LedgerRows:
        """A node's ledger; close it, or use it as a context manager."""
        return LedgerRows((node or self.nodes[0]).datadir / "ledger.sqlite")

    def watch(
        self,
        job: JobId,
        until: Callable[[dict[str, Any]], bool],
        *,
        timeout_s: float,
        node: LocalNode | None = None,
        on_change: Callable[[dict[str, Any]], None] = lambda _: None,
        on_look: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Poll a node's ledger until `until(job)`. Raises TimedOut, or DflError if the node died."""
        deadline = time.monotonic() + timeout_s
        seen: dict[str, Any] | None = None
        while True:
            now = self.job(job, node)
            if now is not None and now != seen:
                seen = now
                on_change(now)
                if until(now):
                    return now
            if now is not None:
                on_look(now)
            self._alive(node or self.nodes[0])
            self._patience(deadline, f"job {job}")

    def round_stats(self, job: JobId) -> dict[int, list[RoundStats]]:
        """Round number -> how each node lived it, killed nodes included."""
        stats: dict[int, list[RoundStats]] = {}
        for node in self.nodes:
            for row in Journal(node.datadir / "journal.sqlite").rounds(job):
                stats.setdefault(row.round, []).append(row)
        return stats

    # -- commands -------------------------------------------------------------------------------------
    def cli(self, *arguments: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Run `dfl-node ... --json` and give its data. Raises DflError with the command's own words."""
        done = subprocess.run(
            _dfl_node([*arguments, "--json"]), capture_output=True, timeout=timeout_s, check=False
        )
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            raise DflError(
                f"dfl-node {' '.join(arguments[:2])} gave no JSON", why=done.stderr.decode()[-2000:]
            ) from None
        data: dict[str, Any] = answer["data"]
        if answer["status"] != "ok":
            raise DflError(data["error"]["what"], why=data["error"].get("why", ""))
        return data

    def _password(self) -> tuple[str, str]:
        return "--password-file", str(self.root / "password")

    def _alive(self, node: LocalNode) -> None:
        if not node.running and not node.killed:
            tail = node.log.read_text(errors="replace")[-2000:] if node.log.exists() else ""
            raise DflError(f"node {node.number} ended", why=tail, help_command=f"less {node.log}")

    @staticmethod
    def _patience(deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            raise TimedOut(f"gave up waiting for {what}")
        time.sleep(0.1)


def _dfl_node(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "dfl_node", *arguments]


def _empty(root: Path) -> None:
    """Make `root` an empty directory of ours; refuses one that holds something else."""
    if root.exists() and any(root.iterdir()):
        if not (root / MARK).exists():
            raise UsageError(
                f"{root} is not empty and was not made by a local network",
                why="it would be emptied",
                help_command="dfl-node demo --datadir NEW_DIRECTORY",
            )
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    (root / MARK).touch()
