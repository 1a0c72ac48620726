"""A chain for development: anvil on loopback with our contracts, found again by the nodes beside it.

Everything of value here is public: anvil's accounts come from a mnemonic that everybody knows.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import structlog

from dfl_ledger.accounts import Account, LocalAccount
from dfl_ledger.contracts import load
from dfl_ledger.deploy import Deployment, code_missing, deploy
from dfl_ledger.errors import ChainUnreachable, DflError, TimedOut, UsageError
from dfl_ledger.records import Address
from dfl_ledger.rpc import Rpc, RpcError
from dfl_ledger.transactions import FeePolicy, Writer

log = structlog.get_logger(__name__)

CHAIN_ID = 31337
UNBOND_DELAY_S = 30 * 24 * 3600  # no job's windows together may be longer
_START_DEADLINE_S = 15.0
_STOP_DEADLINE_S = 5.0
_PORT_ATTEMPTS = 5
_PROBE_TIMEOUT_S = 2.0
_MAX_FILE_BYTES = 64 << 10
_FILE = "dev-chain.json"
_HELP = "npm install @foundry-rs/anvil"

# The first account of "test test test test test test test test test test test junk": it holds all VNX here.
_TREASURY_KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"

# The kernel ends anvil when the thread that started it dies, even by SIGKILL (Linux's PR_SET_PDEATHSIG;
# elsewhere anvil outlives a killed parent). It must be asked for inside the new process, between fork and
# exec, where Python code is not safe in a program with threads: hence this launcher, which becomes anvil.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class DevChain:
    """A running development chain."""

    rpc_url: str
    chain_id: int
    pid: int
    deployment_path: Path

    def deployment(self) -> Deployment:
        """The contracts' addresses. Raises UsageError when the file is not valid."""
        return Deployment.read(self.deployment_path)

    def write(self, path: Path) -> None:
        """For `find_dev_chain`."""
        fields = {
            "rpc_url": self.rpc_url,
            "chain_id": self.chain_id,
            "pid": self.pid,
            "deployment": str(self.deployment_path),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> DevChain | None:
        """None when there is no such file or it is not ours."""
        try:
            with path.open("rb") as file:
                fields = json.loads(file.read(_MAX_FILE_BYTES))
            url, chain_id, pid = fields["rpc_url"], fields["chain_id"], fields["pid"]
            deployment = fields["deployment"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        kinds = ((url, str), (chain_id, int), (pid, int), (deployment, str))
        if not all(isinstance(value, kind) for value, kind in kinds) or pid <= 0:
            return None
        return cls(url, chain_id, pid, Path(deployment))

    def alive(self) -> bool:
        """True when the process lives and serves this chain with these contracts."""
        try:
            os.kill(self.pid, 0)
            deployment = self.deployment()
            rpc = Rpc(self.rpc_url, timeout_s=_PROBE_TIMEOUT_S)
            try:
                served = rpc.quantity("eth_chainId") == self.chain_id == deployment.chain_id
                return served and not code_missing(rpc, deployment)
            finally:
                rpc.close()
        except (OSError, OverflowError, DflError, RpcError):
            return False


def find_dev_chain(datadir: Path) -> DevChain | None:
    """The living development chain of this data directory, of the one above it, or of this user."""
    for folder in (datadir, datadir.absolute().parent, _home()):
        chain = DevChain.read(folder / _FILE)
        if chain is not None and chain.alive():
            return chain
    return None


def treasury() -> LocalAccount:
    """The well-known account that holds the whole VNX supply of a development chain."""
    account: LocalAccount = Account.from_key(_TREASURY_KEY)
    return account


def fund(chain: DevChain, address: Address, native_wei: int, vnx_wei: int) -> None:
    """Give an address coin for gas and VNX, from the treasury. Raises ChainUnreachable, InsufficientFunds."""
    rpc = Rpc(chain.rpc_url)
    try:
        writer = Writer(rpc, chain.chain_id, treasury(), FeePolicy())
        if native_wei:
            writer.send("fund", address, b"", value_wei=native_wei)
        if vnx_wei:
            token = chain.deployment().token
            writer.send("transfer", token, load("VnxToken").encode("transfer", address, vnx_wei))
    finally:
        rpc.close()


@contextmanager
def dev_chain(datadir: Path, *, port: int = 0, state_file: Path | None = None) -> Iterator[DevChain]:
    """A development chain for as long as the block runs; port 0 takes a free one.

    With `state_file` the chain is written there at the end and continued from there the next time.
    Raises UsageError without an anvil, TimedOut when it does not start, ChainUnreachable when it dies.
    """
    binary = find_anvil()
    datadir = datadir.absolute()
    datadir.mkdir(parents=True, exist_ok=True)
    anvil = _start(binary, port, state_file)
    records = (datadir / _FILE, _home() / _FILE)
    try:
        path = datadir / "deployments" / f"{CHAIN_ID}.json"
        deployment = _kept_deployment(path, anvil.url) if state_file else None
        if deployment is None:
            deployment = deploy(anvil.url, treasury(), unbond_delay_s=UNBOND_DELAY_S)
            deployment.write(path)
        chain = DevChain(anvil.url, CHAIN_ID, anvil.pid, path)
        for record in records:
            chain.write(record)
        log.info("development chain runs", rpc_url=chain.rpc_url, pid=chain.pid)
        yield chain
    finally:
        anvil.stop()
        for record in records:
            ours = DevChain.read(record)
            if ours is not None and ours.pid == anvil.pid:
                record.unlink(missing_ok=True)


def serve(
    datadir: Path,
    *,
    port: int = 0,
    state_file: Path | None = None,
    on_ready: Callable[[DevChain], None] | None = None,
) -> None:
    """Run a development chain until SIGINT or SIGTERM. Main thread only.

    Raises ChainUnreachable when anvil dies on its own, and what `dev_chain` raises.
    """
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with dev_chain(datadir, port=port, state_file=state_file) as chain:
            if on_ready is not None:
                on_ready(chain)
            while not stop.wait(0.5):
                if not _running(chain.pid):
                    raise ChainUnreachable("the development chain ended", why=f"anvil ({chain.pid}) died")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def find_anvil() -> Path:
    """anvil's own binary: DFL_ANVIL, then node_modules above here and above this package, then PATH.

    Never npm's shim, which leaves the real anvil running when it is ended. Raises UsageError.
    """
    if chosen := os.environ.get("DFL_ANVIL"):
        if not os.access(chosen, os.X_OK):
            raise UsageError("DFL_ANVIL is not a program", why=chosen, help_command=_HELP)
        return Path(chosen).absolute()
    system = {"linux": "linux", "darwin": "darwin"}.get(sys.platform, sys.platform)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    inside = Path("node_modules", "@foundry-rs", f"anvil-{system}-{machine}", "bin", "anvil")
    here, package = Path.cwd(), Path(__file__).resolve().parent
    for folder in (here, *here.parents, *package.parents):
        if os.access(folder / inside, os.X_OK):
            return folder / inside
    found = shutil.which("anvil")
    if found is not None and not _is_script(Path(found)):
        return Path(found)
    raise UsageError(
        "no anvil to run a development chain",
        why=f"neither DFL_ANVIL nor {inside} nor PATH has one",
        help_command=_HELP,
    )


def tied_to_us(command: Sequence[str]) -> list[str]:
    """The command line that runs `command`, an absolute path first, and ends it (SIGTERM) when we die."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _home() -> Path:
    chosen = os.environ.get("DFL_HOME")
    return Path(chosen).absolute() if chosen else Path.home() / ".dfl"


def _running(pid: int) -> bool:
    """True unless the process is gone. The keeper thread reaps it, so a dead one does not linger."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class _Anvil:
    """An anvil process, and the thread it hangs on.

    "Parent" means the starting thread to the kernel, and a pool's worker thread may end at any time:
    so each anvil has a thread of its own that lives as long as it does.
    """

    def __init__(self, binary: Path, port: int, state_file: Path | None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.pid = 0
        options = ["--host", "127.0.0.1", "--port", str(port), "--chain-id", str(CHAIN_ID), "--silent"]
        if state_file is not None:
            state_file.absolute().parent.mkdir(parents=True, exist_ok=True)
            options += ["--state", str(state_file.absolute())]
        self._command = tied_to_us([str(binary), *options])
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._started = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="anvil keeper", daemon=True)
        self._keeper.start()
        self._started.wait()
        if self._failure is not None or self._process is None:
            raise UsageError("anvil cannot be started", why=str(self._failure)) from self._failure
        self.pid = self._process.pid

    def _keep(self) -> None:
        try:
            # A session of its own: Ctrl-C in the terminal reaches us first, and we end anvil in order.
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self._failure = error
            self._started.set()
            return
        self._process = process
        self._started.set()
        process.wait()

    @property
    def ended(self) -> bool:
        return not self._keeper.is_alive()

    def answers(self) -> bool:
        rpc = Rpc(self.url, timeout_s=_PROBE_TIMEOUT_S)
        try:
            return rpc.quantity("eth_chainId") == CHAIN_ID
        except (ChainUnreachable, RpcError):
            return False
        finally:
            rpc.close()

    def stop(self) -> None:
        """SIGINT lets anvil write its state; SIGKILL follows if it takes too long."""
        for number in (signal.SIGINT, signal.SIGKILL):
            if self.ended or self._process is None:
                return
            self._process.send_signal(number)
            self._keeper.join(_STOP_DEADLINE_S)


def _start(binary: Path, port: int, state_file: Path | None) -> _Anvil:
    for _ in range(1 if port else _PORT_ATTEMPTS):
        # Looked at first even when given: another chain there would answer in place of ours.
        anvil = _Anvil(binary, _free_port(port), state_file)
        deadline = time.monotonic() + _START_DEADLINE_S
        while not anvil.ended:
            if anvil.answers() and not anvil.ended:
                return anvil
            if time.monotonic() > deadline:
                anvil.stop()
                raise TimedOut("the development chain did not start", why=f"waited {_START_DEADLINE_S:g} s")
            time.sleep(0.02)
        # It ended at once: most likely somebody took the port between our look and its bind.
    raise UsageError("anvil does not start", why=f"{binary} ends at once", help_command=_HELP)


def _free_port(wanted: int) -> int:
    """The wanted port, or any for 0. Raises UsageError when it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise UsageError(
                f"port {wanted} on 127.0.0.1 cannot be used",
                why=error.strerror or str(error),
                help_command="dfl-node chain dev",
            ) from error
        port: int = probe.getsockname()[1]
        return port


def _kept_deployment(path: Path, url: str) -> Deployment | None:
    """The deployment that a continued chain already carries."""
    if not path.exists():
        return None
    deployment = Deployment.read(path)
    rpc = Rpc(url)
    try:
        return None if code_missing(rpc, deployment) else deployment
    finally:
        rpc.close()
