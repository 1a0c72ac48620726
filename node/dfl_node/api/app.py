"""The node's HTTP side as an ASGI application.

    /api/v1/...   the operator's API: Bearer token, Host header checked, no CORS
    /healthz      says that the node is up, nothing else
    /ipfs/...     public routes handed in: the trustless gateway, for peers

The token stops other users of the machine; the Host check stops a web page that points its own name at this
address (DNS rebinding). Public routes take any IP address as a host, which no such page can send.
"""

from __future__ import annotations

import hmac
import io
import ipaddress
import json
import zipfile
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import structlog
import trio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dfl_ledger.errors import DflError, TimedOut, UsageError, WalletError
from dfl_node.api.errors import http_status, to_json
from dfl_node.api.service import BUNDLE_FILES, DownloadBundle, NodeService
from dfl_node.assets import NewAsset, read_number, read_price

log = structlog.get_logger(__name__)

API = "/api/v1"
MAX_BLOB_BYTES = 1 << 30
MAX_JSON_BYTES = 128 * 1024
BODY_PATIENCE_S = 30.0  # for each MiB of a body
MAX_FETCH_S = 3600.0
_SLICE = 1024 * 1024

Endpoint = Callable[[Request], Awaitable[Response]]


class _TooLarge(UsageError):
    """A body beyond its limit: 413."""


def build_app(
    service: NodeService,
    *,
    token: str,
    host: str,
    public_routes: Sequence[BaseRoute] = (),
    max_blob_bytes: int = MAX_BLOB_BYTES,
) -> ASGIApp:
    """The application. `host` is the address the server listens on."""
    api = _Api(service, max_blob_bytes)
    routes: list[BaseRoute] = [
        Route("/healthz", _healthz, methods=["GET"]),
        *(Route(API + path, _guarded(endpoint), methods=[method]) for method, path, endpoint in api.table()),
        *public_routes,
    ]
    return _Gate(Starlette(routes=routes), token, _private_hosts(host))


# -- the door ----------------------------------------------------------------------------------------------
class _Gate:
    """Host and token, before anything of a request is read."""

    def __init__(self, app: ASGIApp, token: str, private_hosts: Collection[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._private_hosts = private_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            refusal = self._refusal(scope)
            await (self._app if refusal is None else refusal)(scope, receive, send)
        # Websockets have no route here: left without an answer, hypercorn refuses them.

    def _refusal(self, scope: Scope) -> Response | None:
        headers = scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        host = _host_of(hosts[0]) if len(hosts) == 1 else None
        private = _is_private(scope["path"])
        if host is None or not (host in self._private_hosts or (not private and _is_ip(host))):
            return _told(
                403, UsageError("this Host header is not allowed", why="the node answers to its own address")
            )
        if not private:
            return None
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1 or not hmac.compare_digest(given[0], b"Bearer " + self._token):
            return _told(401, WalletError("the API token is missing or wrong", why="it stands in node.json"))
        return None


def _is_private(path: str) -> bool:
    return path != "/healthz" and not path.startswith("/ipfs/")


def _private_hosts(bound_host: str) -> frozenset[str]:
    return frozenset(("127.0.0.1", "localhost", "::1", bound_host.strip("[]")))


def _host_of(value: bytes) -> str | None:
    """The host of a Host header without its port, None if it is not one."""
    try:
        text = value.decode("ascii").lower()
    except UnicodeDecodeError:
        return None
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        return host if bracket and (not port or (port[0] == ":" and port[1:].isdigit())) else None
    host, colon, port = text.partition(":")
    return host if host and (not colon or port.isdigit()) else None


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _told(status: int, error: DflError) -> JSONResponse:
    # Closing spares reading the body of a request that was refused.
    return JSONResponse(to_json(error), status, headers={"connection": "close", "cache-control": "no-store"})


def _guarded(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            response = await endpoint(request)
        except _TooLarge as error:
            return _told(413, error)
        except DflError as error:
            return JSONResponse(to_json(error), http_status(error))
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:
            log.exception("the API failed", path=request.url.path)
            broken = DflError("the node failed inside", why="its log says more")
            return JSONResponse(to_json(broken) | {"bug": True}, 500)
        response.headers["cache-control"] = "no-store"
        return response

    return answer


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


# -- the operator's API ------------------------------------------------------------------------------------
class _Api:
    def __init__(self, service: NodeService, max_blob_bytes: int) -> None:
        self._service = service
        self._max_blob_bytes = max_blob_bytes

    def table(self) -> tuple[tuple[str, str, Endpoint], ...]:
        return (
            ("GET", "/status", self.status),
            ("GET", "/peers", self.peers),
            ("GET", "/network", self.network),
            ("GET", "/blobs", self.list_blobs),
            ("POST", "/blobs", self.put_blob),
            ("GET", "/blobs/{cid}", self.get_blob),
            ("POST", "/pins/{cid}", self.pin),
            ("DELETE", "/pins/{cid}", self.unpin),
            ("GET", "/jobs", self.jobs),
            ("POST", "/jobs", self.submit),
            ("POST", "/jobs/check", self.check),
            ("GET", "/jobs/{job:int}", self.job),
            ("GET", "/jobs/{job:int}/model", self.download),
            ("POST", "/jobs/{job:int}/cancel", self.cancel),
            ("POST", "/claims", self.claim),
            ("POST", "/assets", self.mint),
            ("POST", "/assets/{asset:int}/price", self.price),
            ("POST", "/assets/{asset:int}/allow", self.allow),
            ("POST", "/assets/{asset:int}/revoke", self.revoke),
        )

    async def status(self, _: Request) -> Response:
        return JSONResponse(await self._service.status())

    async def peers(self, _: Request) -> Response:
        return JSONResponse({"peers": await self._service.peers()})

    async def network(self, _: Request) -> Response:
        return JSONResponse({"checks": await self._service.network()})

    async def list_blobs(self, _: Request) -> Response:
        return JSONResponse({"blobs": await self._service.list_blobs()})

    async def put_blob(self, request: Request) -> Response:
        pin = request.query_params.get("pin", "1") != "0"
        data = await _body(request, self._max_blob_bytes)
        return JSONResponse(await self._service.put_blob(data, pin=pin), 201)

    async def get_blob(self, request: Request) -> Response:
        limit = int(_number(request, "max_bytes", self._max_blob_bytes, self._max_blob_bytes))
        timeout_s = _number(request, "timeout_s", 30.0, MAX_FETCH_S)
        cid = request.path_params["cid"]
        data = await self._service.get_blob(cid, max_bytes=limit, timeout_s=timeout_s)
        return Response(data, media_type="application/octet-stream")

    async def pin(self, request: Request) -> Response:
        timeout_s = _number(request, "timeout_s", 30.0, MAX_FETCH_S)
        return JSONResponse(await self._service.pin(request.path_params["cid"], timeout_s=timeout_s))

    async def unpin(self, request: Request) -> Response:
        return JSONResponse(await self._service.unpin(request.path_params["cid"]))

    async def jobs(self, _: Request) -> Response:
        return JSONResponse({"jobs": await self._service.jobs()})

    async def submit(self, request: Request) -> Response:
        return JSONResponse(await self._service.submit_job(await _text(request)), 201)

    async def check(self, request: Request) -> Response:
        return JSONResponse(await self._service.check_job(await _text(request)))

    async def job(self, request: Request) -> Response:
        return JSONResponse(await self._service.job(request.path_params["job"]))

    async def cancel(self, request: Request) -> Response:
        return JSONResponse(await self._service.cancel_job(request.path_params["job"]))

    async def download(self, request: Request) -> Response:
        bundle = await self._service.download(request.path_params["job"])
        packed = await trio.to_thread.run_sync(pack_bundle, bundle)
        return Response(packed, media_type="application/zip")

    async def claim(self, request: Request) -> Response:
        job = (await _object(request)).get("job")
        if job is not None and (isinstance(job, bool) or not isinstance(job, int) or job < 0):
            raise UsageError("`job` is not a job's number")
        return JSONResponse(await self._service.claim(job))

    async def mint(self, request: Request) -> Response:
        asked = NewAsset.from_json(await _object(request))
        return JSONResponse(await self._service.mint_asset(asked), 201)

    async def price(self, request: Request) -> Response:
        price_bps = read_price((await _object(request)).get("price_bps"))
        return JSONResponse(await self._service.price_asset(_asset(request), price_bps))

    async def allow(self, request: Request) -> Response:
        user = (await _object(request)).get("user")
        if not isinstance(user, str):
            raise UsageError("`user` is not an address")
        return JSONResponse(await self._service.allow_asset(_asset(request), user))

    async def revoke(self, request: Request) -> Response:
        return JSONResponse(await self._service.revoke_asset(_asset(request)))


def pack_bundle(bundle: DownloadBundle) -> bytes:
    """The bundle as a ZIP without compression."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in BUNDLE_FILES:
            archive.writestr(name, bundle.files[name])
    return packed.getvalue()


async def _body(request: Request, max_bytes: int) -> bytes:
    """The whole body: refused by its announced length, counted while it comes, and never waited for long."""
    too_large = _TooLarge("the request's body is too large", why=f"more than {max_bytes} bytes")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > max_bytes:
        raise too_large
    parts = bytearray()
    stream = request.stream().__aiter__()
    while True:
        due = len(parts) + _SLICE
        with trio.move_on_after(BODY_PATIENCE_S):
            while len(parts) < due:
                try:
                    parts += await anext(stream)
                except StopAsyncIteration:
                    return bytes(parts)
                if len(parts) > max_bytes:
                    raise too_large
            continue
        raise TimedOut("the request's body did not come", why=f"{len(parts)} bytes, then too slow")


def _asset(request: Request) -> int:
    return read_number(request.path_params["asset"])


async def _object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; nothing is an empty one."""
    try:
        asked = json.loads(await _body(request, MAX_JSON_BYTES) or b"{}")
    except (ValueError, RecursionError) as bad:
        raise UsageError("the request's body is not a JSON object") from bad
    if not isinstance(asked, dict):
        raise UsageError("the request's body is not a JSON object")
    return asked


async def _text(request: Request) -> str:
    try:
        return (await _body(request, MAX_JSON_BYTES)).decode()
    except UnicodeDecodeError as bad:
        raise UsageError("the job spec is not UTF-8 text") from bad


def _number(request: Request, name: str, default: float, most: float) -> float:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= most:  # false for NaN too
        raise UsageError(f"`{name}` is not a number above 0 and at most {most:g}", why=f"it is {text[:40]!r}")
    return value
