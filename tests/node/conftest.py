"""A node's API with a service that keeps everything in memory, on a real socket."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from dfl_ledger.errors import BlobNotFound, DflError, SpecInvalid
from dfl_ledger.records import Cid
from dfl_node.api.app import build_app
from dfl_node.api.server import HttpServer, ServerLimits
from dfl_node.api.service import BUNDLE_FILES, DownloadBundle
from dfl_node.assets import NewAsset
from dfl_node.datadir import NodeFile, remove_node_file, write_node_file

ADDRESS = "0x00000000000000000000000000000000000000A1"
TOKEN = "the-token-of-this-node"


@dataclass
class FakeService:
    """A NodeService whose calls can be made to fail or to hang."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    fails: dict[str, Exception] = field(default_factory=dict)  # method -> what it raises
    hangs: set[str] = field(default_factory=set)
    submitted: list[str] = field(default_factory=list)
    job_answers: list[dict[str, Any]] = field(default_factory=list)
    assets: list[NewAsset] = field(default_factory=list)

    async def _enter(self, method: str) -> None:
        if method in self.hangs:
            await trio.sleep_forever()
        if method in self.fails:
            raise self.fails[method]

    async def network(self) -> list[dict[str, Any]]:
        await self._enter("network")
        return [{"name": "reachable", "ok": None, "detail": "no peer has tried yet", "help": ""}]

    async def cancel_job(self, job: int) -> dict[str, Any]:
        await self._enter("cancel_job")
        return {"job_id": job, "tx": "0x" + "11" * 32}

    async def status(self) -> dict[str, Any]:
        await self._enter("status")
        return {
            "address": ADDRESS,
            "peer_id": "12D3KooWfake",
            "multiaddrs": ["/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWfake"],
            "http_url": "http://127.0.0.1:1",
            "peers": await self.peers(),
            "chain": {"id": 31337, "head": 12, "indexed": 11},
            "jobs": [],
            "roles": ["train", "request"],
            "version": "0.1.0",
            "reachability": {"state": "unknown", "why": "no peer has tried yet"},
        }

    async def peers(self) -> list[dict[str, Any]]:
        await self._enter("peers")
        return [{"peer_id": "12D3KooWother", "address": ADDRESS, "found_by": "boot", "latency_ms": 1.25}]

    async def put_blob(self, data: bytes, *, pin: bool) -> dict[str, Any]:
        await self._enter("put_blob")
        cid = str(Cid.of(data))
        self.blobs[cid] = data
        if pin:
            self.pinned.add(cid)
        return {"cid": cid, "bytes": len(data)}

    async def get_blob(self, cid: str, *, max_bytes: int, timeout_s: float) -> bytes:
        await self._enter("get_blob")
        if cid not in self.blobs:
            raise BlobNotFound(f"no peer has {cid}", why="asked 0 peers", help_command="dfl-node peers")
        return self.blobs[cid]

    async def list_blobs(self) -> list[dict[str, Any]]:
        await self._enter("list_blobs")
        return [{"cid": c, "bytes": len(b), "pinned": c in self.pinned} for c, b in self.blobs.items()]

    async def pin(self, cid: str, *, timeout_s: float) -> dict[str, Any]:
        await self._enter("pin")
        self.pinned.add(cid)
        return {"cid": cid, "pinned": True}

    async def unpin(self, cid: str) -> dict[str, Any]:
        await self._enter("unpin")
        if cid not in self.pinned:
            raise BlobNotFound(f"{cid} is not pinned")
        self.pinned.discard(cid)
        return {"cid": cid, "pinned": False}

    async def check_job(self, toml: str) -> dict[str, Any]:
        await self._enter("check_job")
        return {"affordable": True}

    async def submit_job(self, toml: str) -> dict[str, Any]:
        await self._enter("submit_job")
        if "refuse" in toml:
            raise SpecInvalid("training.lr", "must be a number")
        self.submitted.append(toml)
        return {"job_id": len(self.submitted)}

    async def jobs(self) -> list[dict[str, Any]]:
        await self._enter("jobs")
        return []

    async def job(self, job: int) -> dict[str, Any]:
        await self._enter("job")
        return self.job_answers.pop(0) if len(self.job_answers) > 1 else self.job_answers[0]

    async def download(self, job: int) -> DownloadBundle:
        await self._enter("download")
        return DownloadBundle({name: f"{name} of job {job}".encode() for name in BUNDLE_FILES})

    async def claim(self, job: int | None) -> dict[str, Any]:
        await self._enter("claim")
        return {"claims": [{"job": job or 1, "paid_wei": "5"}], "total_wei": "5"}

    async def mint_asset(self, asset: NewAsset) -> dict[str, Any]:
        await self._enter("mint_asset")
        self.assets.append(asset)
        return {"asset": str(len(self.assets)), "owner": ADDRESS, **asset.to_json()}

    async def price_asset(self, asset: int, price_bps: int) -> dict[str, Any]:
        await self._enter("price_asset")
        return {"asset": str(asset), "price_bps": price_bps, "tx": "0x" + "22" * 32}

    async def allow_asset(self, asset: int, user: str) -> dict[str, Any]:
        await self._enter("allow_asset")
        return {"asset": str(asset), "user": user, "tx": "0x" + "33" * 32}

    async def revoke_asset(self, asset: int) -> dict[str, Any]:
        await self._enter("revoke_asset")
        return {"asset": str(asset), "tx": "0x" + "44" * 32}


@dataclass
class FakeNode:
    service: FakeService
    server: HttpServer
    datadir: Path
    token: str = TOKEN

    @property
    def url(self) -> str:
        return self.server.url


async def _public(request: Request) -> PlainTextResponse:
    return PlainTextResponse("block " + request.path_params["cid"])


@contextmanager
def run_fake_node(
    datadir: Path, *, limits: ServerLimits | None = None, max_blob_bytes: int = 1 << 20
) -> Iterator[FakeNode]:
    """Serve a FakeService in a trio loop of another thread; its node.json is in `datadir`."""
    service = FakeService()
    server = HttpServer("127.0.0.1", 0, limits)
    app = build_app(
        service,
        token=TOKEN,
        host="127.0.0.1",
        public_routes=[Route("/ipfs/{cid}", _public)],
        max_blob_bytes=max_blob_bytes,
    )
    running = threading.Event()
    control: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []
    failures: list[BaseException] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            control.append((trio.lowlevel.current_trio_token(), scope))
            running.set()
            await server.serve(app)

    def thread() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            failures.append(error)
            running.set()

    worker = threading.Thread(target=thread)
    worker.start()
    assert running.wait(10)
    write_node_file(datadir, NodeFile(server.url, os.getpid(), TOKEN))
    try:
        yield FakeNode(service, server, datadir)
    finally:
        token, scope = control[0]
        token.run_sync_soon(scope.cancel)
        worker.join(10)
        remove_node_file(datadir)
        assert not worker.is_alive()
        assert not failures


@pytest.fixture
def fake_node(tmp_path: Path) -> Iterator[FakeNode]:
    with run_fake_node(tmp_path / "node") as node:
        yield node


@pytest.fixture
def start_fake_node() -> Callable[..., AbstractContextManager[FakeNode]]:
    """`run_fake_node`, for a test that wants other limits."""
    return run_fake_node


@pytest.fixture
def broken() -> DflError:
    return DflError("it broke", why="because", help_command="dfl-node doctor")
