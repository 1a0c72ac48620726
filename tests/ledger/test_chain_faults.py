"""RPC endpoints that are dead, lie, stall or flood: always ChainUnreachable, never anything else."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dfl_ledger.accounts import Account
from dfl_ledger.chain import ChainLedger
from dfl_ledger.deploy import Deployment
from dfl_ledger.errors import ChainUnreachable, DflError, UsageError
from dfl_ledger.records import Address, JobId
from dfl_ledger.rpc import Rpc

TOKEN, REGISTRY, JOBS, CODE = (Address("0x" + digit * 40) for digit in "1234")
ASSETS = Address("0xDc64a140Aa3E981100a9becA4E685f962f0cF6C9")
BOARD = Address("0x5FC8d32690cc91D4c39d9d3abcBD16989F875707")
DEPLOYMENT = Deployment(31337, TOKEN, REGISTRY, ASSETS, JOBS, BOARD, CODE, 1)

Answer = Callable[[BaseHTTPRequestHandler, str], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """An HTTP server that answers each JSON-RPC method as `answer` does."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer(self, json.loads(body)["method"])

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is part of these tests."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def body(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def result(value: object) -> Answer:
    return lambda handler, _: body(handler, json.dumps({"jsonrpc": "2.0", "id": 0, "result": value}).encode())


def raw(content: bytes, status: int = 200, **headers: str) -> Answer:
    return lambda handler, _: body(handler, content, status, **headers)


def test_a_dead_endpoint_is_unreachable_and_says_what_helps() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ChainUnreachable, match="connection refused") as caught:
        ChainLedger(f"http://127.0.0.1:{port}", DEPLOYMENT)
    assert caught.value.help_command == "dfl-node chain dev"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("url", ["", "ftp://x", "127.0.0.1:8545", "http://", "http://x:99999", "http://[::1"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(UsageError):
        ChainLedger(url, DEPLOYMENT)


@pytest.mark.parametrize(
    "answer",
    [
        raw(b""),
        raw(b"<html>busy</html>"),
        raw(b"\xff\xfe\x00"),
        raw(b"[]"),
        raw(b"null"),
        raw(b"7"),
        raw(b"{}"),
        raw(b'{"error": "no"}'),
        raw(b'{"error": {"code": -1, "message": "no"}}'),
        raw(b"[" * 100_000),
        raw(b"{}", status=500),
        raw(b"{}", status=302, Location="http://127.0.0.1:9/"),
        raw(b"\x1f\x8b\x08", Content_Encoding="gzip"),
        result(None),
        result(31337),
        result("0xzz"),
        result("0x" + "f" * 100),
        result([]),
    ],
)
def test_garbage_is_unreachable(answer: Answer) -> None:
    with serving(answer) as url, pytest.raises(ChainUnreachable) as caught:
        ChainLedger(url, DEPLOYMENT)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "value",
    [None, 5, {}, "0x", "0x00", "0x" + "ff" * 32, "0x" + "ff" * 2000, "0x" + "00" * 31 + "20" + "ff" * 500],
)
def test_garbage_from_a_contract_is_unreachable(value: object) -> None:
    account = Account.create()

    def answer(handler: BaseHTTPRequestHandler, method: str) -> None:
        match method:
            case "eth_chainId":
                result("0x7a69")(handler, method)
            case "eth_getCode":
                result("0x60")(handler, method)
            case _:
                result(value)(handler, method)

    with serving(answer) as url:
        ledger = ChainLedger(url, DEPLOYMENT, account)
        job = JobId(1)
        for act in (
            lambda: ledger.job(job),
            lambda: ledger.node(CODE),
            lambda: ledger.boot_addrs(),
            lambda: ledger.now(),
            lambda: ledger.events(0, 10),
            lambda: ledger.join(job),
        ):
            with pytest.raises(ChainUnreachable):
                act()
        ledger.close()


@pytest.mark.parametrize(
    "entry",
    [
        7,
        {},
        {"address": CODE},
        {"address": "0x1", "topics": [], "data": "0x"},
        {"address": CODE, "topics": "0x", "data": "0x"},
        {"address": CODE, "topics": [5], "data": "0x"},
    ],
)
def test_garbage_logs_are_unreachable(entry: object) -> None:
    def answer(handler: BaseHTTPRequestHandler, method: str) -> None:
        values = {"eth_chainId": "0x7a69", "eth_getCode": "0x60", "eth_getLogs": [entry]}
        result(values[method])(handler, method)

    with serving(answer) as url:
        ledger = ChainLedger(url, DEPLOYMENT)
        with pytest.raises(ChainUnreachable):
            ledger.events(0, 10)
        ledger.close()


def test_importing_the_chain_leaves_the_recursion_limit_alone() -> None:
    """Without it, nested JSON of a hostile endpoint ends the process: see dfl_ledger/accounts.py."""
    code = "import sys, dfl_ledger.chain; sys.exit(sys.getrecursionlimit() > 1000)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_flood_is_cut_off() -> None:
    def flood(handler: BaseHTTPRequestHandler, _: str) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            for _chunk in range(1000):
                handler.wfile.write(b"x" * 100_000)
        except OSError:
            pass

    with serving(flood) as url:
        rpc = Rpc(url, max_response_bytes=1_000_000)
        with pytest.raises(ChainUnreachable, match="longer than 1000000 bytes"):
            rpc.call("eth_chainId")
        rpc.close()


def test_a_silent_endpoint_is_given_up() -> None:
    release = threading.Event()

    def silent(_handler: BaseHTTPRequestHandler, _: str) -> None:
        release.wait(10)

    with serving(silent) as url:
        rpc = Rpc(url, timeout_s=0.2)
        with pytest.raises(ChainUnreachable, match=r"no answer within 0.2 s"):
            rpc.call("eth_chainId")
        release.set()
        rpc.close()


def test_a_dripping_endpoint_is_given_up() -> None:
    release = threading.Event()

    def drip(handler: BaseHTTPRequestHandler, _: str) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        try:
            while not release.wait(0.05):
                handler.wfile.write(b" " * 70_000)
        except OSError:
            pass

    with serving(drip) as url:
        rpc = Rpc(url, timeout_s=0.3)
        with pytest.raises(ChainUnreachable, match=r"no answer within 0.3 s"):
            rpc.call("eth_chainId")
        release.set()
        rpc.close()


def test_a_refusal_that_nobody_knows_is_still_ours() -> None:
    def answer(handler: BaseHTTPRequestHandler, method: str) -> None:
        known = {"eth_chainId": "0x7a69", "eth_getCode": "0x60"}
        if method in known:
            return result(known[method])(handler, method)
        return body(
            handler, b'{"jsonrpc":"2.0","id":0,"error":{"code":-32000,"message":"' + b"busy" * 999 + b'"}}'
        )

    with serving(answer) as url:
        ledger = ChainLedger(url, DEPLOYMENT, Account.create())
        with pytest.raises(DflError) as caught:
            ledger.join(JobId(1))
        assert len(str(caught.value)) < 500
        ledger.close()
