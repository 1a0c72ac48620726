"""Options of a node, and its data directory."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dfl_ledger.errors import DatadirLocked, NodeNotRunning, UsageError
from dfl_node import config
from dfl_node.config import LOOPBACK, NodeConfig, Role
from dfl_node.datadir import (
    NodeFile,
    default_datadir,
    find_node,
    hold,
    last_peers,
    node_file_path,
    write_node_file,
    write_peers,
)

PEER = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
BOOT = f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}"


# -- options -----------------------------------------------------------------------------------------------
def test_roles() -> None:
    assert config.parse_roles("train, relay") == {Role.TRAIN, Role.RELAY}
    for bad in ("", "mine", "train,,boot", "Train"):
        with pytest.raises(UsageError, match="--roles"):
            config.parse_roles(bad)


def test_data_sets() -> None:
    train = frozenset({Role.TRAIN})
    assert config.check_datasets((3, 1, 3), train) == (3, 1)
    assert config.check_datasets((), frozenset({Role.REQUEST})) == ()
    assert config.check_datasets(range(8), train) == tuple(range(8))
    for assets, roles in ((range(9), train), ((1,), frozenset({Role.REQUEST}))):
        with pytest.raises(UsageError, match="--dataset"):
            config.check_datasets(assets, roles)


def test_listen_addresses() -> None:
    assert config.parse_listen(()) == (LOOPBACK,)
    both = ("/ip4/0.0.0.0/tcp/4001", "/ip6/::1/tcp/0")
    assert config.parse_listen([",".join(both), both[0]]) == both
    for bad in (
        "4001",
        "/ip4/1.2.3/tcp/1",
        "/ip4/1.2.3.4/tcp/70000",
        "/dns4/a.example/tcp/1",
        "/ip4/1.2.3.4",
        BOOT,
    ):
        with pytest.raises(UsageError, match="--listen"):
            config.parse_listen([bad])


def test_bootnodes() -> None:
    dns = f"/dns4/boot.example/tcp/4001/p2p/{PEER}"
    assert config.parse_bootnodes([f"{BOOT},{dns}", BOOT]) == (BOOT, dns)
    assert config.parse_bootnodes([]) == ()
    for bad in ("/ip4/192.0.2.1/tcp/4001", "boot.example", BOOT + "x/0", "/" * 300, f"{BOOT}/p2p/"):
        with pytest.raises(UsageError, match="--bootnodes"):
            config.parse_bootnodes([bad])
    with pytest.raises(UsageError, match="--bootnodes"):
        config.parse_bootnodes(f"/ip4/192.0.2.1/tcp/{n}/p2p/{PEER}" for n in range(1, 100))


def test_shards_and_splits() -> None:
    assert config.parse_shard("1:4/12") == (1, 4, 12)
    assert config.parse_shard("2/3") == (2, 2, 3)
    for bad in ("0:4/12", "5:4/12", "1:13/12", "0/12", "4", "a:b/c", "1:1/0", "1:4/12/3", "-1:4/12"):
        with pytest.raises(UsageError, match="--shard"):
            config.parse_shard(bad)
    assert config.parse_split("iid") is None
    assert config.parse_split("dirichlet:0.5") == 0.5
    for bad in ("", "dirichlet", "dirichlet:0", "dirichlet:nan", "dirichlet:inf", "dirichlet:-1", "iid:1"):
        with pytest.raises(UsageError, match="--split"):
            config.parse_split(bad)


def test_amounts() -> None:
    assert config.parse_vnx("--stake", "0.000000000000000001") == 1
    assert config.parse_vnx("--stake", "100") == 100 * 10**18
    for bad in ("", "-1", "1e-19", "nan", "inf", "ten", "1e40"):
        with pytest.raises(UsageError, match="--stake"):
            config.parse_vnx("--stake", bad)


def test_urls_may_hold_a_key_and_are_not_shown() -> None:
    assert config.parse_rpc_url("https://rpc.example/v3/secret-key").endswith("secret-key")
    for bad in (
        "ftp://rpc.example/secret-key",
        "secret-key",
        "http://",
        "http://[secret-key",
        "http://a:99999/secret-key",
    ):
        with pytest.raises(UsageError) as refused:
            config.parse_rpc_url(bad)
        assert "secret-key" not in str(refused.value)
    assert "secret-key" not in repr(NodeConfig(Path(), "https://rpc.example/v3/secret-key"))


def test_ipfs() -> None:
    assert config.parse_ipfs("/ip4/127.0.0.1/tcp/5001") == "/ip4/127.0.0.1/tcp/5001"
    for bad in ("http://127.0.0.1:5001", "/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/5001", BOOT):
        with pytest.raises(UsageError, match="--ipfs"):
            config.parse_ipfs(bad)


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def __init__(self, name: str) -> None:
            self.name = name

    monkeypatch.setattr(config, "entry_points", lambda group: [Point("digits"), Point("housing")])
    every = config.parse_data([], "1:4/12", "dirichlet:0.5")
    assert sorted(every) == ["digits", "housing"]
    assert every["digits"].shard == (1, 4, 12)
    assert every["digits"].dirichlet_alpha == 0.5
    assert every["digits"].path is None
    chosen = config.parse_data([f"digits={tmp_path}"], "1:1/1", "iid")
    assert list(chosen) == ["digits"]
    assert chosen["digits"].path == str(tmp_path)
    for bad in (["speech"], [f"digits={tmp_path}/no"], ["digits", "digits"], [""]):
        with pytest.raises(UsageError, match="--data"):
            config.parse_data(bad, "1:1/1", "iid")


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ((LOOPBACK,), "127.0.0.1"),
        (("/ip4/0.0.0.0/tcp/4001",), "0.0.0.0"),  # noqa: S104
        (("/ip6/::1/tcp/1", LOOPBACK), "::1"),
    ],
)
def test_http_listens_where_peers_are_listened_for(listen: tuple[str, ...], host: str) -> None:
    assert NodeConfig(Path(), "http://127.0.0.1:1", listen=listen).http_host == host


# -- data directory ----------------------------------------------------------------------------------------
def test_the_default_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DFL_HOME", str(tmp_path))
    assert default_datadir() == tmp_path / "node"
    monkeypatch.delenv("DFL_HOME")
    assert default_datadir() == Path.home() / ".dfl" / "node"


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    with hold(tmp_path / "a" / "node"):
        assert stat.S_IMODE((tmp_path / "a" / "node").stat().st_mode) == 0o700
    empty = tmp_path / "b"
    empty.mkdir(mode=0o755)
    with hold(empty):
        assert stat.S_IMODE(empty.stat().st_mode) == 0o700


def test_a_directory_with_other_things_in_it_keeps_its_mode(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "photo.jpg").touch()
    with hold(shared):
        assert stat.S_IMODE(shared.stat().st_mode) == 0o755


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    with pytest.raises(UsageError, match="data directory"), hold(tmp_path / "node"):
        pass


_HOLDER = """
import sys, time
from pathlib import Path
from dfl_node.datadir import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_node_is_refused_and_told_the_pid_and_a_killed_one_does_not_block(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DatadirLocked, match=str(holder.pid)), hold(tmp_path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    with hold(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_stale_node_file_goes_when_the_next_node_starts(tmp_path: Path) -> None:
    write_node_file(tmp_path, NodeFile("http://127.0.0.1:1", os.getpid(), "t"))
    with hold(tmp_path), pytest.raises(NodeNotRunning):
        find_node(tmp_path)


def test_the_node_file_is_private_and_its_token_does_not_show(tmp_path: Path) -> None:
    node = NodeFile("http://127.0.0.1:1", os.getpid(), "the-token")
    write_node_file(tmp_path, node)
    write_node_file(tmp_path, node)
    assert stat.S_IMODE(node_file_path(tmp_path).stat().st_mode) == 0o600
    assert find_node(tmp_path) == node
    assert "the-token" not in repr(node)


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"url": 1, "pid": "x"}', '{"url":"a","token":"t","pid":-1}', "[" * 9999]
)
def test_without_a_usable_node_file_no_node_runs(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        node_file_path(tmp_path).write_text(text)
    with pytest.raises(NodeNotRunning) as refused:
        find_node(tmp_path)
    assert "dfl-node start" in refused.value.help_command


def test_a_node_that_was_killed_does_not_run(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_node_file(tmp_path, NodeFile("http://127.0.0.1:1", ended.pid, "t"))
    with pytest.raises(NodeNotRunning, match=str(ended.pid)):
        find_node(tmp_path)


def test_peers_are_remembered(tmp_path: Path) -> None:
    assert last_peers(tmp_path) == []
    write_peers(tmp_path, [{"peer_id": "a"}])
    assert last_peers(tmp_path) == [{"peer_id": "a"}]
    (tmp_path / "peers.json").write_text("damaged")
    assert last_peers(tmp_path) == []
