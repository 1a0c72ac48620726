"""The node's IPFS trustless gateway: its own blocks over HTTP, raw or as a CAR stream.

https://specs.ipfs.tech/http-gateways/trustless-gateway/

Nothing is fetched on a caller's behalf: what is not here is 404. The client, not the gateway, checks hashes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from dfl_ledger.records import DAG_PB, Cid
from dfl_node.store.car import car_header, car_section
from dfl_node.store.dag_pb import decode_links
from dfl_node.store.exchange import BlockSource
from dfl_node.store.unixfs import MAX_NODES

RAW_TYPE = "application/vnd.ipld.raw"
CAR_TYPE = "application/vnd.ipld.car"
MAX_STREAMS = 32  # CAR streams at a time; one more is told to come back


def routes(source: BlockSource) -> list[BaseRoute]:
    """The gateway's routes, to be mounted in the node's HTTP application at its root."""
    return [Route("/ipfs/{cid}", _Gateway(source).serve, methods=["GET", "HEAD"])]


class _Gateway:
    def __init__(self, source: BlockSource) -> None:
        self._source = source
        self._streams = 0

    async def serve(self, request: Request) -> Response:
        try:
            cid = Cid.parse(request.path_params["cid"])
        except ValueError as bad:
            return _refusal(400, str(bad))
        kind = _response_type(request)
        if kind is None:
            return _refusal(400, f"say Accept: {RAW_TYPE} or {CAR_TYPE}, or ?format=raw or car")
        etag = f'"{cid}.raw"' if kind == RAW_TYPE else f'W/"{cid}.car"'
        if kind == CAR_TYPE:
            if why := _unsupported(request):
                return _refusal(400, why)
            if request.query_params.get("dag-scope") == "block":
                etag = f'W/"{cid}.block.car"'
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers={"ETag": etag})
        if not await self._source.has_block(cid):
            cached_only = "only-if-cached" in request.headers.get("cache-control", "")
            return _refusal(412 if cached_only else 404, f"{cid} is not here")
        if kind == RAW_TYPE:
            return await self._raw(request, cid, etag)
        return self._car(request, cid, etag)

    async def _raw(self, request: Request, cid: Cid, etag: str) -> Response:
        block = await self._source.block(cid)
        if block is None:
            return _refusal(404, f"{cid} is not here")
        if request.method == "GET":
            self._source.meter.sent += len(block)
        return Response(block, headers=_headers(cid, RAW_TYPE, "bin", etag))

    def _car(self, request: Request, cid: Cid, etag: str) -> Response:
        headers = _headers(cid, f"{CAR_TYPE}; version=1; order=dfs; dups=n", "car", etag)
        deep = request.query_params.get("dag-scope") != "block"
        if request.method == "GET" and self._streams >= MAX_STREAMS:
            return _refusal(429, "too many streams", {"Retry-After": "1"})

        async def stream(send: Send) -> None:
            self._streams += 1
            try:
                await self._send_car(cid, deep, send)
            finally:
                self._streams -= 1

        return _StreamResponse(stream if request.method == "GET" else None, headers)

    async def _send_car(self, root: Cid, deep: bool, send: Send) -> None:
        """Depth first, each block once. A block that is missing cuts the stream short, as the spec has it."""
        head = car_header(root)
        todo, seen = [root], {root}
        while todo:
            cid = todo.pop()
            block = await self._source.block(cid)
            if block is None:
                return
            head += car_section(cid, len(block))
            await send({"type": "http.response.body", "body": head + block, "more_body": True})
            self._source.meter.sent += len(head) + len(block)
            head = b""
            if deep and cid.codec == DAG_PB and len(seen) < MAX_NODES:
                fresh = [link for link in dict.fromkeys(_links(block)) if link not in seen]
                seen.update(fresh)
                todo += reversed(fresh)


class _StreamResponse(Response):
    """A body that a function sends, until it returns or the client hangs up.

    Starlette's own takes an async generator, which trio cannot close when the client leaves early.
    """

    def __init__(self, stream: Callable[[Send], Awaitable[None]] | None, headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self._stream = stream
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if self._stream is not None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_hang_up, receive, nursery.cancel_scope)
                await self._stream(send)
                nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_hang_up(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _response_type(request: Request) -> str | None:
    """What the caller wants; the query wins over the header."""
    match request.query_params.get("format"):
        case "raw":
            return RAW_TYPE
        case "car":
            return CAR_TYPE
        case None:
            accepted = [part.split(";")[0].strip() for part in request.headers.get("accept", "").split(",")]
            return next((kind for kind in accepted if kind in (RAW_TYPE, CAR_TYPE)), None)
        case _:
            return None


def _unsupported(request: Request) -> str:
    query = request.query_params
    if query.get("dag-scope", "all") not in ("block", "entity", "all"):
        return "dag-scope is one of block, entity, all"
    if query.get("car-version", "1") != "1":
        return "only CAR version 1"
    return "entity-bytes is not supported" if "entity-bytes" in query else ""


def _links(block: bytes) -> tuple[Cid, ...]:
    try:
        return decode_links(block)
    except ValueError:
        return ()


def _headers(cid: Cid, content_type: str, suffix: str, etag: str) -> dict[str, str]:
    return {
        "Content-Type": content_type,
        "Content-Disposition": f'attachment; filename="{cid}.{suffix}"',
        "ETag": etag,
        "Cache-Control": "public, max-age=29030400, immutable",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
        "X-Ipfs-Path": f"/ipfs/{cid}",
        "X-Ipfs-Roots": str(cid),
    }


def _refusal(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{why}\n", status, {"X-Content-Type-Options": "nosniff", **(headers or {})})
