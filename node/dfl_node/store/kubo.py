"""`KuboStore`: files in a Kubo daemon, through its RPC (`dfl-node start --ipfs /ip4/127.0.0.1/tcp/5001`).

The DAG is built here and handed over as one CAR (`dag/import`), because `ipfs add` gives a file of one chunk
a raw CID: so this store and `LocalStore` give the same CID for the same bytes, whatever its defaults.
Reading takes single blocks (`block/get`) and checks each against its CID: the daemon is not trusted either.

Any server of the same RPC will do. The tests run against js-ipfs, which ignores `offline`: there a look for a
block that is not in the daemon takes LOCAL_S instead of an instant.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import base58
import ipfshttpclient
import trio
from ipfshttpclient import exceptions as rpc

from dfl_ledger.errors import BlobNotFound, StoreUnavailable, UsageError
from dfl_ledger.records import DAG_PB, Cid
from dfl_node.store.blob_store import BlobInfo, Traffic
from dfl_node.store.car import car_header, car_section
from dfl_node.store.dag_pb import decode_links
from dfl_node.store.exchange import Fetch, Fetcher, Meter, fetch_file
from dfl_node.store.listing import Listing
from dfl_node.store.unixfs import MAX_BLOCK_BYTES, MAX_NODES, Assembly, Block, build, verify

# ipfshttpclient 0.8.0a2 still passes urllib3 a parameter that version 3 will drop; we ask for urllib3 < 3.
warnings.filterwarnings("ignore", "The 'strict' parameter is no longer needed", FutureWarning)

LOCAL_S = 0.5  # a look for a block the daemon should have
NETWORK_S = 5.0  # one attempt of the daemon to get a block from its own network
WRITE_S = 120.0
PIN_TIMEOUT_S = 600.0
LANES = 4  # blocks read side by side
MAX_PINNED_BYTES = 1 << 40
_Answer = TypeVar("_Answer")


class _RpcRefusal(StoreUnavailable):
    """The daemon answered, but not with what was asked for: an error, or nothing in time."""


class KuboBlocks:
    """A daemon's blocks over its RPC; a `BlockSource`. Raises StoreUnavailable when the daemon fails."""

    def __init__(self, multiaddr: str) -> None:
        """`multiaddr` is the RPC's, like /ip4/127.0.0.1/tcp/5001. Raises UsageError if it is none."""
        self.multiaddr = multiaddr
        self.meter = Meter()
        try:
            # Not `connect`: that compares the daemon's version with a range that ended in 2021.
            self._rpc = ipfshttpclient.Client(multiaddr, chunk_size=1 << 18, session=True, timeout=WRITE_S)
        except rpc.Error as bad:
            help_command = "dfl-node start --ipfs /ip4/127.0.0.1/tcp/5001"
            raise UsageError(f"--ipfs {multiaddr}", why=str(bad), help_command=help_command) from bad

    def close(self) -> None:
        self._rpc.close()

    async def check(self) -> str:
        """The daemon's version: to find out early whether it is there."""
        return str((await self.call(self._rpc.version, timeout_s=LOCAL_S + 2))["Version"])

    async def block(self, cid: Cid) -> bytes | None:
        return await self.read(cid, timeout_s=LOCAL_S, offline=True)

    async def has_block(self, cid: Cid) -> bool:
        try:
            await self.call(self._rpc.block.stat, str(cid), timeout_s=LOCAL_S, offline=True)
        except _RpcRefusal:
            return False
        return True

    async def read(self, cid: Cid, *, timeout_s: float, offline: bool = False) -> bytes | None:
        """A block that matches its CID, or None."""

        def take(*args: Any, **kwargs: Any) -> bytes:
            block = bytearray()
            with self._rpc.block.get(*args, **kwargs, stream=True) as parts:
                for part in parts:
                    block += part
                    if len(block) > MAX_BLOCK_BYTES:
                        break
            return bytes(block)

        try:
            block = await self.call(take, str(cid), timeout_s=timeout_s, offline=offline)
        except _RpcRefusal:
            return None
        return block if await trio.to_thread.run_sync(verify, cid, block) else None

    async def write(self, root: Cid, blocks: Sequence[tuple[Cid, Block]], *, pin: bool) -> None:
        """Hand over blocks of one file; with `pin`, all of them at once."""
        car = b"".join(
            [car_header(root)]
            + [part for cid, block in blocks for part in (car_section(cid, len(block)), block)]
        )
        opts = {"pin-roots": str(pin).lower()}

        def send(*args: Any, **kwargs: Any) -> list[Any]:
            with self._rpc.dag.imprt(*args, **kwargs, stream=True) as answers:
                return list(answers)

        answers = await self.call(send, io.BytesIO(car), timeout_s=WRITE_S, opts=opts)
        if pin and (not answers or answers[0]["Root"].get("PinErrorMsg")):  # without `pin` there is no answer
            raise self.unavailable(f"it does not pin {root}: {answers}")

    async def pin(self, cid: Cid) -> None:
        try:
            await self.call(self._rpc.pin.add, str(cid), timeout_s=WRITE_S)
        except _RpcRefusal as bad:
            raise self.unavailable(f"it does not pin {cid}: {bad}") from bad

    async def unpin(self, cid: Cid) -> None:
        try:
            await self.call(self._rpc.pin.rm, str(cid), timeout_s=WRITE_S)
        except _RpcRefusal as bad:
            if "not pinned" not in str(bad):
                raise self.unavailable(str(bad)) from bad
            raise BlobNotFound(
                f"file {cid}", why="it is not pinned", help_command="dfl-node blob ls"
            ) from bad

    async def pinned(self) -> list[BlobInfo]:
        """Every recursively pinned file, whoever pinned it. Directories are left out."""
        answer = await self.call(self._rpc.pin.ls, type="recursive", timeout_s=WRITE_S)
        found = []
        for text in answer["Keys"]:
            try:
                cid = parse_cid(text)
                stat = await self.call(self._rpc.files.stat, f"/ipfs/{cid}", timeout_s=LOCAL_S, offline=True)
            except (ValueError, _RpcRefusal):
                continue  # a hash we do not read, or not all of it is here
            if stat["Type"] == "file":
                found.append(BlobInfo(cid, int(stat["Size"]), True))
        return sorted(found, key=lambda info: info.cid)

    async def collect(self) -> int:
        before = await self.call(self._rpc.repo.stat, timeout_s=WRITE_S)
        await self.call(partial(self._rpc.repo.gc, quiet=True), timeout_s=WRITE_S)
        after = await self.call(self._rpc.repo.stat, timeout_s=WRITE_S)
        return max(0, int(before["RepoSize"]) - int(after["RepoSize"]))

    async def call(
        self,
        method: Callable[..., _Answer],
        *args: Any,
        timeout_s: float,
        opts: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> _Answer:
        """One RPC in a thread. Raises StoreUnavailable, and _RpcRefusal when the daemon does answer."""
        opts = {"timeout": f"{math.ceil(timeout_s * 1000)}ms", **(opts or {})}
        run = partial(method, *args, opts=opts, timeout=(3.0, timeout_s + 2.0), **kwargs)
        try:
            # The types are those of an older trio (trio-stubs, which libp2p brings along).
            return await trio.to_thread.run_sync(run, abandon_on_cancel=True)  # type: ignore[call-arg]
        except (rpc.ErrorResponse, rpc.TimeoutError) as refused:
            raise self.unavailable(str(refused), _RpcRefusal) from refused
        except (rpc.Error, AssertionError) as bad:  # the library asserts that an answer has one item
            raise self.unavailable(str(bad)) from bad

    def unavailable(self, why: str, kind: type[StoreUnavailable] = StoreUnavailable) -> StoreUnavailable:
        return kind(f"the IPFS daemon at {self.multiaddr}", why=why, help_command="ipfs daemon")


class KuboStore:
    """Files in the daemon; what it lacks comes through the fetchers, and last from the daemon's network."""

    def __init__(self, blocks: KuboBlocks, fetchers: Sequence[Fetcher] = ()) -> None:
        self.blocks = blocks
        self._fetchers = (*fetchers, _DaemonNetwork(blocks))

    async def put(self, data: bytes, *, pin: bool = True) -> Cid:
        built = await trio.to_thread.run_sync(build, data)
        await self.blocks.write(built.root, built.blocks, pin=pin)
        return built.root

    async def get(
        self, cid: Cid, *, max_bytes: int, timeout_s: float = 30.0, providers: Sequence[str] = ()
    ) -> bytes:
        assembly = Assembly(cid, max_bytes)
        await self._complete(assembly, timeout_s, providers)
        return assembly.data()

    async def has(self, cid: Cid) -> bool:
        todo, seen = [cid], {cid}
        while todo:
            at = todo.pop()
            if at.codec != DAG_PB:
                if not await self.blocks.has_block(at):
                    return False
                continue
            block = await self.blocks.block(at)
            if block is None:
                return False
            fresh = set(decode_links(block)) - seen
            seen |= fresh
            todo += fresh
            if len(seen) > MAX_NODES:
                return False
        return True

    def ls(self) -> AsyncIterator[BlobInfo]:
        return Listing(self.blocks.pinned)

    async def pin(self, cid: Cid) -> None:
        await self._complete(Assembly(cid, MAX_PINNED_BYTES, keep=False), PIN_TIMEOUT_S, ())
        await self.blocks.pin(cid)

    async def unpin(self, cid: Cid) -> None:
        await self.blocks.unpin(cid)

    async def collect(self) -> int:
        """Runs the daemon's garbage collection: what others keep in it without a pin goes as well."""
        return await self.blocks.collect()

    def traffic(self) -> Traffic:
        """What went through this node's own gateway and host; the daemon's own traffic is not in it."""
        return self.blocks.meter.traffic()

    async def _complete(self, assembly: Assembly, timeout_s: float, providers: Sequence[str]) -> None:
        async def save(blocks: Sequence[tuple[Cid, bytes]]) -> None:
            await self.blocks.write(assembly.root, blocks, pin=False)

        fetch = Fetch(assembly, save, self.blocks.meter)
        deadline = trio.current_time() + timeout_s
        with trio.move_on_at(deadline):
            await _fill(self.blocks, assembly, LOCAL_S, offline=True)
            await fetch_file(fetch, self._fetchers, providers, max(0.0, deadline - trio.current_time()))
        if not assembly.done:
            raise fetch.gave_up(timeout_s)


class _DaemonNetwork:
    """A `Fetcher`: the daemon asks its own peers. What it finds it keeps by itself."""

    def __init__(self, blocks: KuboBlocks) -> None:
        self._blocks = blocks

    async def fetch(self, fetch: Fetch, providers: Sequence[str]) -> None:
        await _fill(self._blocks, fetch.assembly, NETWORK_S, offline=False)


async def _fill(blocks: KuboBlocks, assembly: Assembly, timeout_s: float, *, offline: bool) -> None:
    """Read wanted blocks, LANES at a time, until the file is complete or one cannot be had."""
    while todo := assembly.wanted()[:LANES]:
        read: dict[Cid, bytes | None] = {}
        failures: list[StoreUnavailable] = []

        async def lane(
            cid: Cid,
            read: dict[Cid, bytes | None] = read,
            failures: list[StoreUnavailable] = failures,
        ) -> None:
            try:
                read[cid] = await blocks.read(cid, timeout_s=timeout_s, offline=offline)
            except StoreUnavailable as failure:
                failures.append(failure)

        async with trio.open_nursery() as nursery:
            for cid in todo:
                nursery.start_soon(lane, cid)
        if failures:
            raise failures[0]
        for cid, block in read.items():
            if block is not None:
                assembly.give(cid, block)
        if None in read.values():
            return


def parse_cid(text: str) -> Cid:
    """A CID as daemons write it: js-ipfs prefers base58btc (`z…`). Raises ValueError."""
    return Cid.from_bytes(base58.b58decode(text[1:])) if text.startswith("z") else Cid.parse(text)
