"""The API over a real socket: who gets in, what is refused, what an error looks like."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from dfl_ledger.errors import (
    ChainUnreachable,
    CidMismatch,
    DflError,
    InsufficientFunds,
    Reverted,
    SpecInvalid,
    TimedOut,
    UsageError,
)
from dfl_ledger.records import Cid
from dfl_node.api.server import ServerLimits


@pytest.fixture
def http(fake_node: Any) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {fake_node.token}"}
    with httpx.Client(base_url=fake_node.url, headers=headers, trust_env=False, timeout=10) as client:
        yield client


def test_status_has_what_the_contract_names(http: httpx.Client) -> None:
    answer = http.get("/api/v1/status")
    assert answer.status_code == 200
    assert set(answer.json()) >= {
        *("address", "peer_id", "multiaddrs", "http_url", "peers", "chain", "jobs"),
        *("roles", "version", "reachability"),
    }
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", "Basic dGVzdA==", "bearer x"])
@pytest.mark.parametrize("path", ["/api/v1/status", "/api/v1/nothing", "/api/v1/blobs", "/nothing", "/ipfs"])
def test_no_token_no_answer(fake_node: Any, given: str | None, path: str) -> None:
    headers = {} if given is None else {"Authorization": given}
    answer = httpx.get(fake_node.url + path, headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.json()["error"]["exit_code"] == 5
    assert fake_node.token not in answer.text


def test_two_authorization_headers_are_refused(fake_node: Any) -> None:
    right = f"Bearer {fake_node.token}"
    headers = [("Authorization", right), ("Authorization", right)]
    assert httpx.get(fake_node.url + "/api/v1/status", headers=headers, trust_env=False).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "["]
)
def test_a_foreign_host_header_is_refused_even_with_the_token(http: httpx.Client, host: str) -> None:
    answer = http.get("/api/v1/status", headers={"Host": host})
    assert answer.status_code == 403
    assert "Host" in answer.json()["error"]["what"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1", "localhost:99", "LOCALHOST", "[::1]:5"])
def test_own_host_headers_are_accepted(http: httpx.Client, host: str) -> None:
    assert http.get("/api/v1/status", headers={"Host": host}).status_code == 200


def test_public_routes_need_no_token_but_an_address_as_host(fake_node: Any) -> None:
    url = fake_node.url + "/ipfs/bafy"
    assert httpx.get(url, trust_env=False).text == "block bafy"
    assert httpx.get(url, headers={"Host": "203.0.113.7:4001"}, trust_env=False).status_code == 200
    assert httpx.get(url, headers={"Host": "evil.example"}, trust_env=False).status_code == 403


def test_health_says_nothing_but_ok(fake_node: Any) -> None:
    assert httpx.get(fake_node.url + "/healthz", trust_env=False).json() == {"status": "ok"}


def test_no_cross_origin_request_is_allowed(http: httpx.Client) -> None:
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = http.options("/api/v1/jobs", headers=preflight)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_blobs_go_in_and_come_out(http: httpx.Client, fake_node: Any) -> None:
    data = bytes(range(256)) * 1000
    stored = http.post("/api/v1/blobs", content=data)
    assert stored.status_code == 201
    cid = stored.json()["cid"]
    assert stored.json() == {"cid": str(Cid.of(data)), "bytes": len(data)}
    assert http.get(f"/api/v1/blobs/{cid}").content == data
    assert http.get("/api/v1/blobs").json()["blobs"][0]["pinned"] is True
    assert http.delete(f"/api/v1/pins/{cid}").status_code == 200
    assert http.delete(f"/api/v1/pins/{cid}").status_code == 404
    http.post("/api/v1/blobs?pin=0", content=b"loose")
    assert str(Cid.of(b"loose")) not in fake_node.service.pinned


def test_a_body_is_refused_by_its_announced_length(fake_node: Any) -> None:
    """Before a byte of it is sent, so before memory is taken."""
    with socket.create_connection(("127.0.0.1", fake_node.server.port), timeout=10) as sock:
        lines = ("POST /api/v1/blobs HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {fake_node.token}")
        sock.sendall("\r\n".join([*lines, "Content-Length: 99999999999", "", ""]).encode())
        assert b" 413 " in sock.recv(4096)


def test_a_chunked_body_is_counted(http: httpx.Client, fake_node: Any) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 16)

    try:
        status = http.post("/api/v1/blobs", content=endless()).status_code
    except httpx.WriteError:  # the server answered and hung up before the client had said everything
        status = 413
    assert status == 413
    assert not fake_node.service.blobs


@pytest.mark.parametrize("query", ["timeout_s=nan", "timeout_s=-1", "timeout_s=1e9", "max_bytes=x"])
def test_numbers_of_a_query_are_checked(http: httpx.Client, query: str) -> None:
    answer = http.get(f"/api/v1/blobs/{Cid.of(b'')}?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["exit_code"] == 2


@pytest.mark.parametrize("body", ["[]", "{", '{"job": "1"}', '{"job": true}', '{"job": -1}', "[" * 5000])
def test_a_claim_names_a_job_or_none(http: httpx.Client, body: str) -> None:
    assert http.post("/api/v1/claims", content=body).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/assets", "{}"),
        ("/assets", "[]"),
        ("/assets", "{"),
        ("/assets/0/revoke", "{}"),
        (f"/assets/{2**63}/revoke", "{}"),
        ("/assets/1/price", "{}"),
        ("/assets/1/price", '{"price_bps": 10001}'),
        ("/assets/1/price", '{"price_bps": true}'),
        ("/assets/1/allow", '{"user": 5}'),
    ],
)
def test_what_is_asked_of_assets_is_checked(http: httpx.Client, path: str, body: str) -> None:
    refused = http.post(f"/api/v1{path}", content=body)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "UsageError")


def test_a_claim_of_everything(http: httpx.Client) -> None:
    assert http.post("/api/v1/claims").json()["total_wei"] == "5"
    assert http.post("/api/v1/claims", json={"job": 3}).json()["claims"][0]["job"] == 3


@pytest.mark.parametrize(
    ("error", "status", "exit_code"),
    [
        (SpecInvalid("model.name", "is missing"), 422, 2),
        (UsageError("no"), 400, 2),
        (ChainUnreachable("gone"), 503, 3),
        (TimedOut("waited"), 504, 4),
        (InsufficientFunds("poor"), 403, 5),
        (CidMismatch("false"), 422, 6),
        (Reverted("join", "AlreadyJoined", {"job": 1}), 409, 1),
    ],
)
def test_each_error_keeps_its_words_and_exit_code(
    http: httpx.Client, fake_node: Any, error: DflError, status: int, exit_code: int
) -> None:
    fake_node.service.fails["status"] = error
    answer = http.get("/api/v1/status")
    told = answer.json()["error"]
    assert answer.status_code == status
    assert (told["type"], told["what"], told["exit_code"]) == (type(error).__name__, error.what, exit_code)


def test_a_bug_inside_tells_nothing_of_the_inside(http: httpx.Client, fake_node: Any) -> None:
    fake_node.service.fails["status"] = KeyError("secret detail")
    answer = http.get("/api/v1/status")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert http.get("/api/v1/peers").status_code == 200


def test_silent_connections_are_limited_and_do_not_stay(start_fake_node: Any, tmp_path: Any) -> None:
    limits = ServerLimits(max_connections=8, max_connections_per_ip=8, idle_s=0.3)
    with start_fake_node(tmp_path, limits=limits) as node:
        silent = [socket.create_connection(("127.0.0.1", node.server.port), timeout=10) for _ in range(12)]
        try:
            # Those beyond the limit are closed at once, the others after `idle_s`.
            assert [sock.recv(1) for sock in silent] == [b""] * 12
        finally:
            for sock in silent:
                sock.close()
        assert httpx.get(node.url + "/healthz", trust_env=False).status_code == 200


def test_stopping_takes_less_than_half_a_second_whatever_clients_do(
    start_fake_node: Any, tmp_path: Any
) -> None:
    with start_fake_node(tmp_path, max_blob_bytes=1 << 27) as node:
        big = bytes(1 << 26)
        cid = str(Cid.of(big))
        node.service.blobs[cid] = big
        node.service.hangs.add("status")
        head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {node.token}\r\n\r\n"
        clients = [socket.create_connection(("127.0.0.1", node.server.port), timeout=10) for _ in range(3)]
        # One waits for an answer that does not come, one does not read a large one, one says nothing.
        clients[0].sendall(f"GET /api/v1/status HTTP/1.1\r\n{head}".encode())
        clients[1].sendall(f"GET /api/v1/blobs/{cid} HTTP/1.1\r\n{head}".encode())
        assert clients[1].recv(12) == b"HTTP/1.1 200"
        began = time.monotonic()
    took_s = time.monotonic() - began
    for client in clients:
        client.close()
    assert took_s < 0.5


def test_a_reader_that_stalls_is_dropped(start_fake_node: Any, tmp_path: Any) -> None:
    with start_fake_node(tmp_path, limits=ServerLimits(stall_s=0.2), max_blob_bytes=1 << 27) as node:
        big = bytes(1 << 26)
        cid = str(Cid.of(big))
        node.service.blobs[cid] = big
        with socket.create_connection(("127.0.0.1", node.server.port), timeout=10) as sock:
            head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {node.token}\r\n\r\n"
            sock.sendall(f"GET /api/v1/blobs/{cid} HTTP/1.1\r\n{head}".encode())
            assert sock.recv(12) == b"HTTP/1.1 200"
            _until_no_connection_is_open(node.server)


def test_a_client_that_hangs_up_is_forgotten(fake_node: Any) -> None:
    big = bytes(1 << 26)
    cid = str(Cid.of(big))
    fake_node.service.blobs[cid] = big
    with socket.create_connection(("127.0.0.1", fake_node.server.port), timeout=10) as sock:
        head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {fake_node.token}\r\n\r\n"
        sock.sendall(f"GET /api/v1/blobs/{cid} HTTP/1.1\r\n{head}".encode())
        assert sock.recv(12) == b"HTTP/1.1 200"
    _until_no_connection_is_open(fake_node.server)


def _until_no_connection_is_open(server: Any) -> None:
    deadline = time.monotonic() + 10
    while server.open_connections and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.open_connections == 0


def test_garbage_on_the_wire_ends_that_connection_only(fake_node: Any) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"\0" * 70_000,
        b"PRI * HTTP/2.0\r\n\r\nxx\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", fake_node.server.port), timeout=10) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    assert httpx.get(fake_node.url + "/healthz", trust_env=False).status_code == 200
