"""The trustless gateway as its specification has it, and the client against gateways that misbehave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import trio

from dfl_ledger.errors import BlobNotFound, CidMismatch, DflError, UpdateRefused
from dfl_ledger.records import RAW, Cid
from dfl_node.store import gateway_client
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.car import CarReader, car_header, car_section
from dfl_node.store.dag_pb import varint
from dfl_node.store.gateway import CAR_TYPE, RAW_TYPE
from dfl_node.store.gateway_client import GatewayFetcher
from dfl_node.store.local import LocalStore
from dfl_node.store.unixfs import MAX_BLOCK_BYTES, build
from tests.conformance.blob_store import UNKNOWN, content
from tests.node.store.support import WITHIN_S, gateway, hostile_gateway, over_gateway, peer

MIB = 1 << 20
Answer = Callable[[trio.SocketStream], Awaitable[None]]


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(WITHIN_S):
            await story()

    trio.run(bounded)


def ask(
    tmp_path: Path, data: bytes, path: str, method: str = "GET", **headers: str
) -> tuple[Cid, httpx.Response]:
    """Ask the gateway of a store that holds `data`; `{cid}` in the path is its CID."""
    answers: list[tuple[Cid, httpx.Response]] = []

    async def story() -> None:
        files = BlockFiles(tmp_path)
        cid = await LocalStore(files).put(data)
        async with gateway(files) as url, httpx.AsyncClient(trust_env=False) as client:
            response = await client.request(method, url + path.format(cid=cid), headers=headers)
            answers.append((cid, response))

    run(story)
    return answers[0]


@pytest.mark.parametrize("how", ["query", "header", "query wins"])
def test_raw_block(tmp_path: Path, how: str) -> None:
    query = "" if how == "header" else "?format=raw"
    accept = {"query": "*/*", "header": RAW_TYPE, "query wins": CAR_TYPE}[how]
    cid, response = ask(tmp_path, content(100), "/ipfs/{cid}" + query, Accept=accept)
    assert response.status_code == 200
    assert Cid.of(response.content, cid.codec) == cid
    assert response.headers["content-type"] == RAW_TYPE
    assert response.headers["etag"] == f'"{cid}.raw"'
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in response.headers["cache-control"]
    assert response.headers["content-disposition"] == f'attachment; filename="{cid}.bin"'


def test_car_stream_is_depth_first_and_has_each_block_once(tmp_path: Path) -> None:
    data = bytes(2 * MIB) + content(MIB)
    cid, response = ask(tmp_path, data, "/ipfs/{cid}", Accept=CAR_TYPE)
    assert response.headers["content-type"] == "application/vnd.ipld.car; version=1; order=dfs; dups=n"
    blocks = list(CarReader().feed(response.content))
    built = dict(build(data).blocks)
    assert [at for at, _ in blocks] == [cid, Cid.of(bytes(MIB)), Cid.of(content(MIB))]
    assert all(bytes(built[at]) == block for at, block in blocks)


def test_car_of_the_root_alone(tmp_path: Path) -> None:
    cid, response = ask(tmp_path, content(3 * MIB), "/ipfs/{cid}?format=car&dag-scope=block")
    assert [at for at, _ in CarReader().feed(response.content)] == [cid]


def test_head(tmp_path: Path) -> None:
    _, response = ask(tmp_path, content(100), "/ipfs/{cid}?format=raw", "HEAD")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == len(build(content(100)).blocks[-1][1])
    assert ask(tmp_path, content(100), "/ipfs/{cid}?format=car", "HEAD")[1].status_code == 200


def test_a_cached_block_is_not_sent_again(tmp_path: Path) -> None:
    cid = build(content(100)).root
    _, response = ask(tmp_path, content(100), "/ipfs/{cid}?format=raw", **{"If-None-Match": f'"{cid}.raw"'})
    assert (response.status_code, response.content) == (304, b"")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/ipfs/{UNKNOWN}?format=raw", 404),
        (f"/ipfs/{UNKNOWN}?format=car", 404),
        ("/ipfs/{cid}", 400),  # a browser's request: nothing here is deserialized
        ("/ipfs/{cid}?format=tar", 400),
        ("/ipfs/{cid}?format=car&dag-scope=some", 400),
        ("/ipfs/{cid}?format=car&car-version=2", 400),
        ("/ipfs/{cid}?format=car&entity-bytes=0:9", 400),
        ("/ipfs/not-a-cid?format=raw", 400),
        ("/ipfs/{cid}/path?format=raw", 404),
    ],
)
def test_refusals(tmp_path: Path, path: str, status: int) -> None:
    assert ask(tmp_path, content(100), path)[1].status_code == status


def test_only_if_cached(tmp_path: Path) -> None:
    _, response = ask(tmp_path, b"", f"/ipfs/{UNKNOWN}?format=raw", **{"Cache-Control": "only-if-cached"})
    assert response.status_code == 412


def test_other_methods_are_refused(tmp_path: Path) -> None:
    assert ask(tmp_path, b"", "/ipfs/{cid}?format=raw", "POST")[1].status_code == 405


def test_both_ends_count_what_a_fetch_costs(tmp_path: Path) -> None:
    async def story() -> None:
        here, there = BlockFiles(tmp_path / "here"), BlockFiles(tmp_path / "there")
        async with over_gateway(there) as fetcher:
            store, cid = LocalStore(here, [fetcher]), await LocalStore(there).put(content(3 * MIB))
            await store.get(cid, max_bytes=3 * MIB, providers=["there"])
            sent, received = there.meter.traffic().sent, store.traffic().received
            assert 3 * MIB < sent <= received < 3 * MIB + 5000

    run(story)


def test_gets_of_one_file_share_a_fetch(tmp_path: Path) -> None:
    async def story() -> None:
        here, there = BlockFiles(tmp_path / "here"), BlockFiles(tmp_path / "there")
        async with over_gateway(there) as fetcher:
            store, cid = LocalStore(here, [fetcher]), await LocalStore(there).put(content(2 * MIB))
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(get_equals, store, cid, content(2 * MIB))
            assert there.meter.sent < 2 * MIB + 5000

    run(story)


async def get_equals(store: LocalStore, cid: Cid, data: bytes) -> None:
    assert await store.get(cid, max_bytes=len(data)) == data


# Gateways that misbehave

DATA = content(2 * MIB)
BUILT = build(DATA)
ROOT_BLOCK = dict(BUILT.blocks)[BUILT.root]
OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def says(*parts: bytes) -> Answer:
    async def answer(stream: trio.SocketStream) -> None:
        for part in parts:
            await stream.send_all(part)

    return answer


def repeats(head: bytes, part: bytes) -> Answer:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(head)
        while True:
            await stream.send_all(part)

    return answer


def drips(head: bytes) -> Answer:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(head)
        while True:
            await trio.sleep(0.05)
            await stream.send_all(chunk(b"x"))

    return answer


CAR_ROOT = car_header(BUILT.root) + car_section(BUILT.root, len(ROOT_BLOCK)) + bytes(ROOT_BLOCK)
LEAF = car_section(BUILT.blocks[0][0], MIB)
MISDEEDS = {
    "wrong bytes": says(OK + b"Content-Length: 5\r\n\r\nwrong"),
    "wrong block in a CAR": says(ENDLESS, chunk(CAR_ROOT + LEAF + bytes(MIB)), b"0\r\n\r\n"),
    "endless bytes": repeats(ENDLESS, chunk(bytes(MIB))),
    "endless CAR of the same block": repeats(ENDLESS + chunk(CAR_ROOT), chunk(CAR_ROOT[59:])),
    "huge CAR header": says(ENDLESS, chunk(varint(1 << 40)), chunk(bytes(MIB))),
    "huge CAR section": says(ENDLESS, chunk(CAR_ROOT + varint(1 << 40)), chunk(bytes(MIB))),
    "giant claimed length": says(OK + b"Content-Length: 99999999999\r\n\r\n", bytes(8 * MIB)),
    "cut off": says(OK + b"Content-Length: 1000\r\n\r\nhalf"),
    "slow drip": drips(ENDLESS),
    "silence": drips(b""),
    "redirect": says(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
    "server error": says(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"),
    "not HTTP": says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "hangs up": says(),
}


@pytest.mark.parametrize("hinted", [True, False], ids=["CAR", "blocks"])
@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_bad_gateway_is_dropped_and_the_next_one_delivers(
    tmp_path: Path, misdeed: str, hinted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_client, "STALL_S", 0.3)
    monkeypatch.setattr(gateway_client, "CONNECT_S", 0.3)
    monkeypatch.setattr(gateway_client, "MAX_OVERHEAD_BYTES", 1000)

    async def story() -> None:
        here, there = BlockFiles(tmp_path / "here"), BlockFiles(tmp_path / "there")
        cid = await LocalStore(there).put(DATA)
        async with hostile_gateway(MISDEEDS[misdeed]) as bad, gateway(there) as good:
            peers = [peer("bad", bad), peer("good", good)]
            async with GatewayFetcher(lambda: peers).opened() as fetcher:
                store = LocalStore(here, [fetcher])
                got = await store.get(cid, max_bytes=len(DATA), providers=["bad"] if hinted else [])
                assert got == DATA
                assert (
                    store.traffic().received < 12 * MIB
                )  # the most a CAR of this file may have, and the file

    run(story)


@pytest.mark.parametrize("hinted", [True, False], ids=["CAR", "blocks"])
def test_a_frozen_gateway_holds_nobody_up(
    tmp_path: Path, hinted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is frozen, or whose cable was cut, refuses nothing: one would wait until it has stalled."""
    monkeypatch.setattr(gateway_client, "HEAD_START_S", 0.1)
    monkeypatch.setattr(gateway_client, "STALL_S", WITHIN_S)

    async def freeze(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async def story() -> None:
        here, there = BlockFiles(tmp_path / "here"), BlockFiles(tmp_path / "there")
        cid = await LocalStore(there).put(DATA)
        async with hostile_gateway(freeze) as bad, gateway(there) as good:
            peers = [peer("bad", bad), peer("good", good)]
            async with GatewayFetcher(lambda: peers).opened() as fetcher:
                store = LocalStore(here, [fetcher])
                with trio.fail_after(WITHIN_S / 2):
                    got = await store.get(cid, max_bytes=len(DATA), providers=["bad"] if hinted else [])
                assert got == DATA

    run(story)


@pytest.mark.parametrize(
    ("misdeed", "error"),
    [
        ("wrong bytes", CidMismatch),
        ("endless bytes", BlobNotFound),
        ("slow drip", BlobNotFound),
        ("404", BlobNotFound),
    ],
)
def test_with_nobody_else_the_error_says_why(
    tmp_path: Path, misdeed: str, error: type[DflError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_client, "STALL_S", 0.2)
    answer = MISDEEDS.get(misdeed, says(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"))

    async def story() -> None:
        async with (
            hostile_gateway(answer) as bad,
            GatewayFetcher(lambda: [peer("bad", bad)]).opened() as fetcher,
        ):
            store = LocalStore(BlockFiles(tmp_path), [fetcher])
            with pytest.raises(error, match=r"bad|no peer"):
                await store.get(BUILT.root, max_bytes=len(DATA), timeout_s=1.0)

    run(story)


def test_a_file_that_is_too_large_is_the_files_fault(tmp_path: Path) -> None:
    async def story() -> None:
        here, there = BlockFiles(tmp_path / "here"), BlockFiles(tmp_path / "there")
        async with over_gateway(there) as fetcher:
            cid = await LocalStore(there).put(DATA)
            for hints in ((), ("there",)):
                with pytest.raises(UpdateRefused, match="more than the 100 allowed"):
                    await LocalStore(here, [fetcher]).get(cid, max_bytes=100, providers=hints)

    run(story)


@pytest.mark.parametrize(
    "url",
    [
        None,
        "https://127.0.0.1:1",
        "http://localhost:1",
        "http://127.0.0.1:1/x",
        "http://u:p@127.0.0.1:1",
        "http://[",
    ],
)
def test_only_plain_http_to_an_ip_is_spoken(tmp_path: Path, url: str | None) -> None:
    async def story() -> None:
        async with GatewayFetcher(lambda: [peer("odd", url)]).opened() as fetcher:
            store = LocalStore(BlockFiles(tmp_path), [fetcher])
            with pytest.raises(BlobNotFound):
                await store.get(UNKNOWN, max_bytes=100, timeout_s=0.2)

    run(story)


# The CAR reader


def test_a_car_may_come_byte_by_byte() -> None:
    leaf = content(300)
    stream = car_header(Cid.of(leaf)) + car_section(Cid.of(leaf), 300) + leaf
    reader = CarReader()
    blocks = [block for at in range(len(stream)) for block in reader.feed(stream[at : at + 1])]
    assert blocks == [(Cid.of(leaf, RAW), leaf)]


@pytest.mark.parametrize(
    "stream",
    [
        varint(1 << 20),
        b"\xff" * 10,
        varint(10) + b"\xa1gversion\x02",
        car_header(UNKNOWN) + varint(36 + MAX_BLOCK_BYTES + 1),
        car_header(UNKNOWN) + varint(40) + bytes(40),
        car_header(UNKNOWN) + varint(0),
    ],
)
def test_bad_car(stream: bytes) -> None:
    with pytest.raises(ValueError, match=r"CAR|CID|number"):
        list(CarReader().feed(stream))
