"""JSON-RPC to one endpoint: bounded in time and size, every failure an error of ours.

web3's provider carries the bytes; its middleware is left out, because a call here must be one round trip.
"""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError as UrllibError
from urllib3.exceptions import ReadTimeoutError
from web3 import HTTPProvider
from web3.exceptions import Web3Exception
from web3.types import RPCEndpoint

import dfl_ledger.accounts  # noqa: F401  importing web3 lifts the recursion limit; this puts it back
from dfl_ledger.errors import ChainUnreachable, UsageError

HELP = "dfl-node chain dev"
MAX_RESPONSE_BYTES = 32 << 20
_CHUNK_BYTES = 64 << 10
_MAX_MESSAGE_CHARS = 300
_POOL_CONNECTIONS = 8

# Debug lines of these two carry the endpoint's whole URL, and hosted endpoints keep their API key in it.
for _chatty in ("web3.providers.HTTPProvider", "urllib3.connectionpool"):
    logging.getLogger(_chatty).setLevel(logging.INFO)


class RpcError(Exception):
    """The endpoint answered with a JSON-RPC error object: the transport works, the request was refused."""

    def __init__(self, method: str, code: int, message: str, data: object) -> None:
        super().__init__(f"{method}: {message} ({code})")
        self.method = method
        self.code = code
        self.message = message
        self.data = data


class ResponseTooLarge(ChainUnreachable):
    """The answer is over our size limit: ask for less."""


class _TooLarge(requests.RequestException):
    """An answer over the size limit."""


class _TooSlow(requests.Timeout):
    """An answer that drips in for longer than the timeout."""


class _BoundedAdapter(HTTPAdapter):
    """Reads the whole answer itself, so that size and total time are limited before memory is taken."""

    def __init__(self, timeout_s: float, max_bytes: int) -> None:
        super().__init__(pool_connections=1, pool_maxsize=_POOL_CONNECTIONS)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        started = time.monotonic()
        kwargs["stream"] = True
        response = super().send(request, *args, **kwargs)
        try:
            response._content = self._read(response, started)
        except BaseException:
            response.close()
            raise
        return response

    def _read(self, response: requests.Response, started: float) -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _TooLarge("compressed, which was not asked for")
        body = bytearray()
        for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
            body += chunk
            if len(body) > self._max_bytes:
                raise _TooLarge(f"longer than {self._max_bytes} bytes")
            if time.monotonic() - started > self._timeout_s:
                raise _TooSlow
        return bytes(body)


class Rpc:
    """One endpoint. Safe to use from several threads.

    Raises UsageError when `url` is not http(s).
    """

    def __init__(
        self, url: str, *, timeout_s: float = 10.0, max_response_bytes: int = MAX_RESPONSE_BYTES
    ) -> None:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise UsageError("not an RPC endpoint", why="an http:// or https:// URL is wanted")
        self._timeout_s = timeout_s
        self._has_pending = True
        self.shown = _without_secrets(url)
        session = requests.Session()
        # Proxy settings of the environment would catch a local chain too, and cost a look at each request.
        session.trust_env = parts.hostname not in ("127.0.0.1", "::1", "localhost")
        adapter = _BoundedAdapter(timeout_s, max_response_bytes)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        self._session = session
        self._provider = HTTPProvider(
            url,
            session=session,
            exception_retry_configuration=None,
            request_kwargs={
                "timeout": timeout_s,
                "allow_redirects": False,
                "headers": {
                    "Accept-Encoding": "identity",  # a compressed answer would get round the size limit
                    "Content-Type": "application/json",
                    "User-Agent": "dfl",
                },
            },
        )

    def __repr__(self) -> str:
        return f"Rpc({self.shown})"

    def close(self) -> None:
        """Close the kept connections."""
        self._session.close()

    def call(self, method: str, *params: object) -> Any:
        """The `result` of one request. Raises RpcError, and ChainUnreachable for everything else."""
        answer = self._answer(method, list(params))
        if not isinstance(answer, dict):
            raise self._unreachable("its answer is not a JSON-RPC object")
        error = answer.get("error")
        if error is not None:
            if not isinstance(error, dict):
                raise self._unreachable("its answer is not a JSON-RPC object")
            code = error.get("code")
            message = str(error.get("message", ""))[:_MAX_MESSAGE_CHARS]
            raise RpcError(method, code if isinstance(code, int) else 0, message, error.get("data"))
        if "result" not in answer:
            raise self._unreachable("its answer has neither result nor error")
        return answer["result"]

    def call_now(self, method: str, call: dict[str, object]) -> Any:
        """`eth_call` or `eth_estimateGas` as in a block mined now.

        On "latest" deadlines would be judged at the newest block's time, which may be long past. An endpoint
        that has no pending block is asked for the newest one after all.
        """
        if self._has_pending:
            try:
                return self.call(method, call, "pending")
            except RpcError as error:
                if "pending" not in error.message.lower():
                    raise
                self._has_pending = False
        return self.call(method, call, "latest")

    def quantity(self, method: str, *params: object) -> int:
        """A result that must be a 0x number."""
        return self.as_int(self.call(method, *params))

    def as_int(self, value: object) -> int:
        """A JSON-RPC quantity. Raises ChainUnreachable when it is none."""
        if isinstance(value, str) and value.startswith("0x") and len(value) <= 66:
            try:
                return int(value, 16)
            except ValueError:
                pass
        raise self._unreachable("it answered something that is not a number")

    def as_bytes(self, value: object) -> bytes:
        """JSON-RPC data. Raises ChainUnreachable when it is none."""
        if isinstance(value, str) and value.startswith("0x"):
            try:
                return bytes.fromhex(value[2:])
            except ValueError:
                pass
        raise self._unreachable("it answered something that is not hex data")

    def as_object(self, value: object) -> dict[str, Any]:
        """A JSON object. Raises ChainUnreachable when it is none."""
        if isinstance(value, dict):
            return value
        raise self._unreachable("it answered something that is not an object")

    def _answer(self, method: str, params: list[object]) -> object:
        try:
            try:
                return self._provider.make_request(RPCEndpoint(method), params)
            except requests.ConnectionError as error:
                # A kept connection that the server closed a moment ago. Requests here may be repeated
                # safely: a signed transaction sent twice is still one transaction.
                if isinstance(error, requests.Timeout) or "Remote end closed" not in str(error):
                    raise
                return self._provider.make_request(RPCEndpoint(method), params)
        except (requests.Timeout, ReadTimeoutError):
            raise self._unreachable(f"no answer within {self._timeout_s:g} s") from None
        except requests.HTTPError as error:
            raise self._unreachable(f"HTTP status {error.response.status_code}") from None
        except _TooLarge as error:
            raise ResponseTooLarge(
                f"the chain at {self.shown} answers too much", why=f"its answer is {error}"
            ) from None
        except (requests.RequestException, UrllibError, OSError) as error:
            # The exception's own text would repeat the URL.
            raise self._unreachable(_reason(error)) from None
        except (Web3Exception, ValueError, TypeError, KeyError, RecursionError):
            raise self._unreachable("its answer is not JSON") from None

    def _unreachable(self, why: str) -> ChainUnreachable:
        return ChainUnreachable(f"the chain at {self.shown} does not work", why=why, help_command=HELP)


def _without_secrets(url: str) -> str:
    """Scheme, host and port: user info, path and query may hold keys."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    more = "/…" if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{host}{port}{more}"


def _reason(error: BaseException) -> str:
    text = str(error)
    for known in ("Connection refused", "Name or service not known", "Connection reset", "Remote end closed"):
        if known in text:
            return known.lower()
    return type(error).__name__
