"""Hosts of our own on this machine: a network namespace for each node, one bridge, and links that can be bad.

    with Hosts() as hosts:
        host = hosts.add()
        hosts.slow(host, rate="2mbit", loss=0.02)
        hosts.cut(host); hosts.heal(host)

Everything carries a name of this process and is taken away at the end. Needs root, iproute2 and iptables; the
kernels we test on have no netem, so loss comes from iptables and the rate from tbf.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from types import TracebackType
from typing import Self

TOOLS = ("ip", "tc", "iptables")


def why_not() -> str:
    """Why there can be no namespaces here, or ""."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)} (apt-get install iproute2 iptables)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"dfl{os.getpid()}p"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode:
        return f"this machine refuses network namespaces: {made.stderr.decode().strip()}"
    _run("ip", "netns", "del", probe)
    return ""


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace, its address, and our end of its cable."""

    name: str
    address: str
    cable: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Put before a command to run it there."""
        return shutil.which("ip") or "ip", "netns", "exec", self.name


class Hosts:
    """A bridge with the first address of a /24, and the hosts on it."""

    def __init__(self) -> None:
        self._tag = f"d{os.getpid() % 100_000}"
        self._net = f"10.{64 + os.getpid() % 128}.{os.getpid() // 128 % 256}"
        self._hosts: list[Host] = []

    @property
    def bridge(self) -> str:
        return f"{self._tag}br"

    @property
    def address(self) -> str:
        """Of this side of the bridge, where the chain listens."""
        return f"{self._net}.1"

    def __enter__(self) -> Self:
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.address}/24", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self._hosts:
            _run("ip", "netns", "del", host.name, check=False)
            _run("ip", "link", "del", host.cable, check=False)
        _run("ip", "link", "del", self.bridge, check=False)

    def add(self) -> Host:
        number = len(self._hosts) + 1
        host = Host(f"{self._tag}h{number}", f"{self._net}.{number + 1}", f"{self._tag}v{number}")
        self._hosts.append(host)
        _run("ip", "netns", "add", host.name)
        _run("ip", "link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        _run("ip", "link", "set", host.cable, "master", self.bridge, "up")
        _run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run("ip", "-n", host.name, "link", "set", device, "up")
        return host

    def slow(self, host: Host, *, rate: str, loss: float) -> None:
        """What the host sends is held to `rate`, and of what it gets a share of `loss` packets is lost."""
        shape = ("root", "tbf", "rate", rate, "burst", "64kbit", "latency", "400ms")
        _run(*host.prefix, "tc", "qdisc", "add", "dev", "eth0", *shape)
        lose = ("-m", "statistic", "--mode", "random", "--probability", str(loss), "-j", "DROP")
        _run(*host.prefix, "iptables", "-A", "INPUT", "-i", "eth0", *lose)

    def cut(self, host: Host) -> None:
        """Pull the cable: packets vanish, connections hang."""
        _run("ip", "link", "set", host.cable, "down")

    def heal(self, host: Host) -> None:
        _run("ip", "link", "set", host.cable, "up")


def _run(*command: str, check: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode().strip()}")
