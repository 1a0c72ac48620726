"""How a node runs, as checked values. Every mistake is a UsageError that names the option."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import Enum
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from dfl_ledger.errors import UsageError
from dfl_node.train.trainer import DataConfig

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
MAX_BOOTNODES = 64
MAX_LISTEN = 8
MAX_PARTS = 100_000
MAX_THREADS = 256
MAX_DATASETS = 8
_MIB = 1024 * 1024
_WEI = 10**18
_PORT = re.compile(r"/(?:tcp|udp)/(\d{1,5})(?:/|$)")


class Role(Enum):
    """What a node does for the network."""

    TRAIN = "train"  # joins jobs it has data for
    REQUEST = "request"  # submits jobs
    EVALUATE = "evaluate"  # judges rounds, with its stake behind what it says
    RELAY = "relay"  # carries connections of nodes behind a NAT
    BOOT = "boot"  # is listed in the registry as a way in


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything `peer.run` needs to know beside the wallet."""

    datadir: Path
    rpc_url: str = field(repr=False)  # may carry an API key
    deployment: Path | None = None  # None: the one shipped or written for the chain id
    listen: tuple[str, ...] = (LOOPBACK,)
    bootnodes: tuple[str, ...] = ()  # multiaddrs, each ending in /p2p/<peer id>
    roles: frozenset[Role] = frozenset((Role.TRAIN, Role.REQUEST, Role.EVALUATE))
    http_port: int = 0  # 0: any free one
    ipfs: str | None = None  # multiaddr of a Kubo RPC; None: the embedded store
    data: Mapping[str, DataConfig] = field(default_factory=dict)  # application -> the rows held here
    datasets: tuple[int, ...] = ()  # assets that these rows are, declared in jobs that pay for data
    stake_wei: int | None = None  # None: whatever is staked already
    mdns: bool = True
    auto_claim: bool = False
    share_rows: bool = False  # pipelines and audits show rows to other nodes
    max_store_bytes: int = 4096 * _MIB
    trainer_memory_bytes: int = 2048 * _MIB
    threads: int = 1  # of the trainer

    @property
    def http_host(self) -> str:
        """The IP the HTTP side binds: that of the first listen address, so that peers reach the gateway."""
        return next((host for host in map(_ip_of, self.listen) if host is not None), "127.0.0.1")


# -- from the command line ---------------------------------------------------------------------------------
def parse_roles(text: str) -> frozenset[Role]:
    names = [name.strip() for name in text.split(",")]
    known = [role.value for role in Role]
    for name in names:
        if name not in known:
            raise _wrong("--roles", f"{name[:40]!r} is not a role; there are {', '.join(known)}")
    return frozenset(Role(name) for name in names)


def parse_listen(values: Iterable[str]) -> tuple[str, ...]:
    """Listen multiaddrs such as /ip4/0.0.0.0/tcp/4001."""
    addresses = _split(values)
    if len(addresses) > MAX_LISTEN:
        raise _wrong("--listen", f"there are more than {MAX_LISTEN} addresses")
    for address in addresses:
        _check_multiaddr("--listen", address)
        if _ip_of(address) is None:
            raise _wrong(
                "--listen", f"{address[:80]!r} is not /ip4/ADDRESS/tcp/PORT or /ip6/ADDRESS/tcp/PORT"
            )
    return addresses or (LOOPBACK,)


def parse_bootnodes(values: Iterable[str]) -> tuple[str, ...]:
    """Multiaddrs to dial first; each must say whom it leads to."""
    addresses = _split(values)
    if len(addresses) > MAX_BOOTNODES:
        raise _wrong("--bootnodes", f"there are more than {MAX_BOOTNODES} addresses")
    for address in addresses:
        _check_multiaddr("--bootnodes", address)
        if not re.search(r"/p2p/[1-9A-HJ-NP-Za-km-z]+$", address):
            raise _wrong("--bootnodes", f"{address[:80]!r} does not end in /p2p/PEER_ID")
    return addresses


def parse_ipfs(text: str) -> str:
    _check_multiaddr("--ipfs", text)
    if not re.match(r"/(ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/\d+(/https?)?$", text):
        raise _wrong("--ipfs", f"{text[:80]!r} is not like /ip4/127.0.0.1/tcp/5001")
    return text


def parse_rpc_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise _wrong("--rpc-url", "it is not an http:// or https:// URL")  # not shown: it may carry a key
    return text


def parse_shard(text: str) -> tuple[int, int, int]:
    """`1:4/12` -> (1, 4, 12): parts 1 to 4 of 12, counted from 1; `2/3` is `2:2/3`."""
    found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?/(\d{1,6})", text)
    if found is None:
        raise _wrong("--shard", f"{text[:40]!r} is not FIRST:LAST/PARTS, such as 1:4/12")
    first, last, of = int(found[1]), int(found[2] or found[1]), int(found[3])
    if not 1 <= first <= last <= of <= MAX_PARTS:
        raise _wrong("--shard", f"{text}: 1 <= FIRST <= LAST <= PARTS <= {MAX_PARTS} does not hold")
    return first, last, of


def parse_split(text: str) -> float | None:
    """`iid` -> None, `dirichlet:0.5` -> 0.5."""
    if text == "iid":
        return None
    kind, _, number = text.partition(":")
    try:
        alpha = float(number)
    except ValueError:
        alpha = math.nan
    if kind != "dirichlet" or not 0.001 <= alpha <= 1e6:
        raise _wrong("--split", f"{text[:40]!r} is neither iid nor dirichlet:ALPHA, ALPHA from 0.001 to 1e6")
    return alpha


def parse_vnx(option: str, text: str) -> int:
    """An amount of VNX as decimal text -> wei."""
    try:
        wei = Decimal(text[:60]) * _WEI
    except InvalidOperation:
        wei = Decimal("NaN")
    if not wei.is_finite() or wei != wei.to_integral_value() or not 0 <= wei < 2**128:
        raise _wrong(option, f"{text[:40]!r} is not an amount of VNX of at most 18 decimals")
    return int(wei)


def parse_data(values: Iterable[str], shard: str, split: str) -> dict[str, DataConfig]:
    """`APP` or `APP=PATH` for each; every installed application when none is given."""
    installed = sorted(point.name for point in entry_points(group="dfl.apps"))
    cut, alpha = parse_shard(shard), parse_split(split)
    chosen: dict[str, str | None] = {}
    for value in values:
        app, has_path, path = value.partition("=")
        if app not in installed:
            there = ", ".join(installed) or "none"
            raise _wrong("--data", f"no application {app[:40]!r} is installed; installed: {there}")
        if has_path and not Path(path).exists():
            raise _wrong("--data", f"{path[:200]} does not exist")
        if app in chosen:
            raise _wrong("--data", f"{app} is given twice")
        chosen[app] = str(Path(path).absolute()) if has_path else None
    return {
        app: DataConfig(app=app, path=path, shard=cut, dirichlet_alpha=alpha)
        for app, path in (chosen or dict.fromkeys(installed)).items()
    }


def check_datasets(assets: Iterable[int], roles: frozenset[Role]) -> tuple[int, ...]:
    """The data sets that a node declares, each once."""
    found = tuple(dict.fromkeys(assets))
    if len(found) > MAX_DATASETS:
        raise _wrong("--dataset", f"a node may declare {MAX_DATASETS} data sets, not {len(found)}")
    if found and Role.TRAIN not in roles:
        raise _wrong("--dataset", "a node without the role train uses no data set")
    return found


def mib(option: str, value: int) -> int:
    """MiB -> bytes."""
    if not 1 <= value <= 1024 * 1024:
        raise _wrong(option, f"{value} is not from 1 to 1048576 MB")
    return value * _MIB


def _split(values: Iterable[str]) -> tuple[str, ...]:
    parts = [part.strip() for value in values for part in value.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part))


def _check_multiaddr(option: str, text: str) -> None:
    from multiaddr import Multiaddr

    if len(text) > 256:
        raise _wrong(option, f"{text[:40]!r}… is longer than 256 characters")
    try:
        Multiaddr(text)
    except Exception as bad:  # the library raises many kinds for one cause
        raise _wrong(option, f"{text[:80]!r} is not a multiaddr") from bad
    port = _PORT.search(text)
    if port is not None and int(port[1]) > 65535:
        raise _wrong(option, f"{text[:80]!r} has no port {port[1]}")


def _ip_of(listen: str) -> str | None:
    found = re.fullmatch(r"/ip[46]/([0-9a-fA-F.:]+)/tcp/\d+", listen)
    try:
        return str(ipaddress.ip_address(found[1])) if found else None
    except ValueError:
        return None


def _wrong(option: str, why: str) -> UsageError:
    return UsageError(f"the value of {option} cannot be used", why=why, help_command="dfl-node start --help")
