"""The running node's API for the command line: blocking calls, and the same errors as inside the node."""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from dfl_ledger.errors import DflError, TimedOut, Unreachable, UsageError, WalletError
from dfl_node.api.errors import from_json
from dfl_node.api.service import BUNDLE_FILES
from dfl_node.assets import NewAsset
from dfl_node.datadir import find_node, not_running

MAX_JSON_BYTES = 32 * 1024 * 1024
MAX_BLOB_BYTES = 1 << 30
_CONNECT_S = 3.0
_CHUNK = 256 * 1024
_LATE_S = 5.0  # a node that waits for peers as long as we do still gets to say so
_HELP = "dfl-node doctor"


class NodeClient:
    """A context manager over one node's API.

    Every call may raise NodeNotRunning (nobody listens), TimedOut, Unreachable (something else answers), and
    whatever the node itself raised.
    """

    def __init__(self, datadir: Path, *, timeout_s: float = 30.0) -> None:
        """Raises NodeNotRunning if no node has said where it is."""
        node = find_node(datadir)
        self._datadir = datadir
        self._pid = node.pid
        self._timeout_s = timeout_s
        try:
            self._http = httpx.Client(
                base_url=f"{node.url}/api/v1",
                headers={"Authorization": f"Bearer {node.token}", "Accept-Encoding": "identity"},
                timeout=httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
                trust_env=False,  # a proxy of the environment would be handed the token
            )
        except (httpx.InvalidURL, ValueError, UnicodeError) as bad:
            raise not_running(datadir, "its node.json is damaged") from bad

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # -- node -----------------------------------------------------------------------------------------
    def status(self) -> dict[str, Any]:
        return self._json("GET", "/status", "the node's status")

    def peers(self) -> list[dict[str, Any]]:
        return self._rows("/peers", "peers", "the node's peers")

    def network(self) -> list[dict[str, Any]]:
        return self._rows("/network", "checks", "the node's look at its network")

    # -- blobs ----------------------------------------------------------------------------------------
    def put_blob(self, path: Path, *, pin: bool) -> dict[str, Any]:
        """Send a file. Raises UsageError if it cannot be read or is too large."""
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                if size > MAX_BLOB_BYTES:
                    raise UsageError(f"{path} is too large", why=f"{size} bytes, at most {MAX_BLOB_BYTES}")
                return self._json(
                    "POST",
                    "/blobs",
                    f"{path.name} to be stored",
                    params={"pin": int(pin)},
                    content=iter(lambda: file.read(_CHUNK), b""),
                    headers={"Content-Length": str(size)},
                )
        except OSError as bad:
            raise UsageError(f"cannot read {path}", why=bad.strerror or str(bad)) from bad

    def get_blob(self, cid: str, path: Path, *, overwrite: bool = False) -> int:
        """Fetch a file to `path`, which appears whole or not at all; its size in bytes."""
        refuse_existing(path, overwrite)
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        size = 0
        wait = self._fetch_wait()
        try:
            with self._stream("GET", f"/blobs/{_segment(cid)}", f"the file {cid}", **wait) as response:
                with scratch.open("xb") as file:
                    for chunk in response.iter_raw(_CHUNK):
                        size += len(chunk)
                        if size > MAX_BLOB_BYTES:
                            raise Unreachable(
                                "the node sent too much", why=f"more than {MAX_BLOB_BYTES} bytes"
                            )
                        file.write(chunk)
                scratch.replace(path)
        except OSError as bad:
            raise UsageError(f"cannot write {path}", why=bad.strerror or str(bad)) from bad
        finally:
            scratch.unlink(missing_ok=True)
        return size

    def list_blobs(self) -> list[dict[str, Any]]:
        return self._rows("/blobs", "blobs", "the node's files")

    def pin(self, cid: str) -> dict[str, Any]:
        return self._json("POST", f"/pins/{_segment(cid)}", f"the file {cid}", **self._fetch_wait())

    def _fetch_wait(self) -> dict[str, Any]:
        """What makes the node look for a file as long as `timeout_s`."""
        timeout = httpx.Timeout(self._timeout_s + _LATE_S, connect=min(_CONNECT_S, self._timeout_s))
        return {"params": {"timeout_s": self._timeout_s}, "timeout": timeout}

    def unpin(self, cid: str) -> dict[str, Any]:
        return self._json("DELETE", f"/pins/{_segment(cid)}", f"the file {cid}")

    # -- jobs -----------------------------------------------------------------------------------------
    def check_job(self, toml: str) -> dict[str, Any]:
        return self._json("POST", "/jobs/check", "the job to be checked", content=toml.encode())

    def submit_job(self, toml: str) -> dict[str, Any]:
        return self._json("POST", "/jobs", "the job to be submitted", content=toml.encode())

    def job(self, job: int) -> dict[str, Any]:
        return self._json("GET", f"/jobs/{job}", f"job {job}")

    def cancel_job(self, job: int) -> dict[str, Any]:
        return self._json("POST", f"/jobs/{job}/cancel", f"job {job} to be cancelled")

    def download(self, job: int) -> dict[str, bytes]:
        """The files of a finished job by name, exactly BUNDLE_FILES."""
        what = f"the model of job {job}"
        with self._stream("GET", f"/jobs/{job}/model", what) as response:
            packed = b"".join(self._bounded(response, MAX_BLOB_BYTES, what))
        return _unpack(packed, response)

    def claim(self, job: int | None) -> dict[str, Any]:
        return self._json("POST", "/claims", "the claim to be mined", json={"job": job})

    # -- assets ---------------------------------------------------------------------------------------
    def put_bytes(self, data: bytes, what: str) -> dict[str, Any]:
        """Store bytes that are no file yet."""
        return self._json("POST", "/blobs", f"{what} to be stored", params={"pin": 1}, content=data)

    def mint_asset(self, asset: NewAsset) -> dict[str, Any]:
        return self._json("POST", "/assets", "the asset to be minted", json=asset.to_json())

    def price_asset(self, asset: int, price_bps: int) -> dict[str, Any]:
        what = f"asset {asset} to be priced"
        return self._json("POST", f"/assets/{asset}/price", what, json={"price_bps": price_bps})

    def allow_asset(self, asset: int, user: str) -> dict[str, Any]:
        what = f"asset {asset} to be lent"
        return self._json("POST", f"/assets/{asset}/allow", what, json={"user": user})

    def revoke_asset(self, asset: int) -> dict[str, Any]:
        return self._json("POST", f"/assets/{asset}/revoke", f"asset {asset} to be revoked")

    # -- the wire -------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _stream(self, method: str, path: str, what: str, **arguments: Any) -> Iterator[httpx.Response]:
        """A successful response whose body has not been read; everything else is an error."""
        try:
            with self._http.stream(method, path, **arguments) as response:
                if not response.is_success:
                    raise self._error(response, b"".join(self._bounded(response, MAX_JSON_BYTES, what)))
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as bad:
            why = f"process {self._pid} does not answer at {self._http.base_url.copy_with(path='/')}"
            raise not_running(self._datadir, why) from bad
        except httpx.TimeoutException as bad:
            raise self._timed_out(what) from bad
        except httpx.RemoteProtocolError as bad:
            raise _garbage(self._http.base_url, f"this is not HTTP as the node speaks it: {bad}") from bad
        except httpx.HTTPError as bad:
            raise Unreachable(
                "the node hung up", why=f"{type(bad).__name__} while waiting for {what}", help_command=_HELP
            ) from bad

    def _json(self, method: str, path: str, what: str, **arguments: Any) -> dict[str, Any]:
        with self._stream(method, path, what, **arguments) as response:
            body = b"".join(self._bounded(response, MAX_JSON_BYTES, what))
        answer = _parsed(body)
        if not isinstance(answer, dict):
            raise _garbage(response.url, "the answer is not a JSON object")
        return answer

    def _rows(self, path: str, name: str, what: str) -> list[dict[str, Any]]:
        rows = self._json("GET", path, what).get(name)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _garbage(self._http.base_url, f"the answer has no list of {name}")
        return rows

    def _bounded(self, response: httpx.Response, max_bytes: int, what: str) -> Iterator[bytes]:
        """The body, refused beyond its limit or when it only trickles."""
        deadline, size = time.monotonic() + self._timeout_s, 0
        for chunk in response.iter_raw(_CHUNK):
            size += len(chunk)
            if size > max_bytes:
                raise _garbage(response.url, f"the answer is larger than {max_bytes} bytes")
            if time.monotonic() > deadline:
                raise self._timed_out(what)
            yield chunk

    def _error(self, response: httpx.Response, body: bytes) -> DflError:
        if response.status_code == 401:
            return WalletError(
                "the node refuses this data directory's token",
                why="another node may have taken its port",
                help_command="dfl-node start --wallet key.json",
            )
        answer = _parsed(body)
        told = from_json(answer)
        if told is None:
            return _garbage(response.url, f"it answers with status {response.status_code}")
        return told

    def _timed_out(self, what: str) -> TimedOut:
        return TimedOut(
            f"gave up waiting for {what}",
            why=f"nothing came for {self._timeout_s:g} s",
            help_command="run it again with a longer --timeout",
        )


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises UsageError if there is something at `path` and it may not be overwritten."""
    if path.exists() and not overwrite:
        raise UsageError(
            f"{path} exists already", why="nothing is overwritten unasked", help_command="add --force"
        )


def _unpack(packed: bytes, response: httpx.Response) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            entries = archive.infolist()
            # Stored, not compressed: what comes out cannot be larger than what came in.
            fine = all(e.compress_type == zipfile.ZIP_STORED and e.file_size <= len(packed) for e in entries)
            if not fine or sorted(e.filename for e in entries) != sorted(BUNDLE_FILES):
                raise _garbage(response.url, "the download does not hold the files of a model")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as bad:
        raise _garbage(response.url, "the download is damaged") from bad


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _garbage(url: httpx.URL, why: str) -> Unreachable:
    return Unreachable(
        f"what listens on {url.host}:{url.port} does not answer as a node", why=why, help_command=_HELP
    )


def _segment(cid: str) -> str:
    """A CID as one step of a path. Raises UsageError for anything that is not a CID."""
    from dfl_ledger.records import Cid

    try:
        return str(Cid.parse(cid))
    except ValueError as bad:
        raise UsageError(f"{cid[:80]!r} is not a CID", why=str(bad)) from bad
