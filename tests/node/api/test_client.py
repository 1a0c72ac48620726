"""The command line's client: the node's errors as they are, and sense made of everything else."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger import errors
from dfl_ledger.errors import (
    BlobNotFound,
    DflError,
    NodeNotRunning,
    PeerMisbehaved,
    Reverted,
    SpecInvalid,
    TimedOut,
    Unreachable,
    UsageError,
    WalletError,
)
from dfl_ledger.records import Cid
from dfl_node.api.client import NodeClient
from dfl_node.api.errors import from_json, to_json
from dfl_node.api.service import BUNDLE_FILES
from dfl_node.datadir import NodeFile, write_node_file


@pytest.mark.parametrize(
    "error",
    [
        SpecInvalid("training.lr", "must be a number"),
        PeerMisbehaved("12D3", "sent garbage"),
        Reverted("join", "AlreadyJoined", {"job": 7}),
        *(
            kind("what", why="why", help_command="help")
            for kind in vars(errors).values()
            if isinstance(kind, type)
            and issubclass(kind, DflError)
            and kind not in (SpecInvalid, PeerMisbehaved, Reverted)
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_crosses_whole(error: DflError) -> None:
    back = from_json(json.loads(json.dumps(to_json(error))))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.help_command == error.help_command
    if isinstance(back, SpecInvalid) and isinstance(error, SpecInvalid):
        assert back.field == error.field


@pytest.mark.parametrize("body", [None, [], {}, {"error": "x"}, {"error": {"what": 1}}])
def test_what_is_no_error_is_none(body: Any) -> None:
    assert from_json(body) is None


def test_an_unknown_kind_of_error_is_a_plain_failure() -> None:
    assert type(from_json({"error": {"type": "Nonsense", "what": "x", "why": None}})) is DflError


def test_calls_go_through(fake_node: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    data = os.urandom(300_000)
    source.write_bytes(data)
    with NodeClient(fake_node.datadir) as node:
        assert node.status()["chain"]["id"] == 31337
        assert node.peers()[0]["found_by"] == "boot"
        stored = node.put_blob(source, pin=True)
        assert stored == {"cid": str(Cid.of(data)), "bytes": len(data)}
        assert node.get_blob(stored["cid"], target) == len(data)
        assert target.read_bytes() == data
        assert len(node.list_blobs()) == 1
        assert node.pin(stored["cid"])["pinned"] is True
        assert node.unpin(stored["cid"])["pinned"] is False
        assert sorted(node.download(3)) == sorted(BUNDLE_FILES)
        assert node.claim(None)["total_wei"] == "5"
        with pytest.raises(SpecInvalid) as refused:
            node.submit_job("refuse me")
        assert refused.value.field == "training.lr"


def test_an_existing_file_is_kept_and_a_failed_fetch_leaves_nothing(fake_node: Any, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with NodeClient(fake_node.datadir) as node:
        with pytest.raises(BlobNotFound):
            node.get_blob(str(Cid.of(b"unknown")), target)
        assert list(tmp_path.glob("*out*")) == []
        target.write_text("mine")
        with pytest.raises(UsageError, match="exists already"):
            node.get_blob(str(Cid.of(b"unknown")), target)
        with pytest.raises(BlobNotFound):
            node.get_blob(str(Cid.of(b"unknown")), target, overwrite=True)
        assert target.read_text() == "mine"


@pytest.mark.parametrize("cid", ["", "../status", "Qm", "bafy/../../jobs"])
def test_what_is_no_cid_is_not_sent(fake_node: Any, tmp_path: Path, cid: str) -> None:
    with NodeClient(fake_node.datadir) as node, pytest.raises(UsageError, match="not a CID"):
        node.get_blob(cid, tmp_path / "out")


def test_a_wait_has_an_end(fake_node: Any) -> None:
    fake_node.service.hangs.add("status")
    with NodeClient(fake_node.datadir, timeout_s=0.2) as node, pytest.raises(TimedOut, match="status"):
        node.status()


def test_the_token_of_another_node_is_an_auth_error(fake_node: Any) -> None:
    write_node_file(fake_node.datadir, NodeFile(fake_node.url, os.getpid(), "stale"))
    with NodeClient(fake_node.datadir) as node, pytest.raises(WalletError):
        node.status()


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        write_node_file(tmp_path, NodeFile(f"http://127.0.0.1:{closed.getsockname()[1]}", os.getpid(), "t"))
        with NodeClient(tmp_path) as node, pytest.raises(NodeNotRunning):
            node.status()


@pytest.mark.parametrize("url", ["", "nonsense", "http://[", "file:///etc/passwd"])
def test_a_damaged_url_means_no_node(tmp_path: Path, url: str) -> None:
    write_node_file(tmp_path, NodeFile(url, os.getpid(), "t"))
    with pytest.raises(Unreachable), NodeClient(tmp_path) as node:
        node.status()


def test_a_proxy_of_the_environment_never_sees_the_token(
    fake_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with NodeClient(fake_node.datadir) as node:
        assert node.status()


@contextmanager
def _server_that_says(answer: bytes, datadir: Path) -> Iterator[None]:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    write_node_file(datadir, NodeFile(f"http://127.0.0.1:{listener.getsockname()[1]}", os.getpid(), "t"))
    try:
        yield
    finally:
        thread.join(10)
        listener.close()


_OK = b"HTTP/1.1 200 OK\r\nContent-Length: "


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}",
        _OK + b"4\r\n\r\nnull",
        _OK + b"9\r\n\r\n<html>hi>",
        _OK + b"5000\r\n\r\n" + b"[" * 5000,
        b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_garbage_is_an_error_that_says_so(tmp_path: Path, answer: bytes) -> None:
    with _server_that_says(answer, tmp_path), NodeClient(tmp_path, timeout_s=5) as node:
        with pytest.raises(Unreachable) as refused:
            node.status()
        assert not isinstance(refused.value, NodeNotRunning)
        assert refused.value.help_command


@pytest.mark.parametrize("body", [b"", b"PK\x05\x06" + bytes(18), b"not a zip at all"])
def test_a_download_that_is_no_model_is_refused(tmp_path: Path, body: bytes) -> None:
    head = _OK + str(len(body)).encode() + b"\r\n\r\n"
    with (
        _server_that_says(head + body, tmp_path),
        NodeClient(tmp_path, timeout_s=5) as node,
        pytest.raises(Unreachable, match="does not answer as a node"),
    ):
        node.download(1)
