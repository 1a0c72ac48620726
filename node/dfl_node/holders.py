"""Before the chain names a file, somebody else must have it.

A model that only its aggregator holds dies with the aggregator, and the round on chain would name bytes that
nobody can deliver. So whoever publishes first asks other members to fetch and keep the file, and goes on when
enough of them have said that they do. The others go on fetching: they need the model for the next round.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

import structlog
import trio

from dfl_ledger import codec
from dfl_ledger.errors import DflError, PeerMisbehaved, StoreUnavailable
from dfl_ledger.records import Address, Cid, JobId
from dfl_node.net.channel import Channel, Peer
from dfl_node.store.blob_store import BlobStore

log = structlog.get_logger(__name__)

PROTOCOL = "/dfl/hold/1.0.0"
MAX_CIDS = 4
MAX_REQUEST_BYTES = 1024
KEPT = b"kept"
FETCH_S = 20.0
PATIENCE_S = 5.0

# (job, wallet) -> the largest file the job may ask us to hold; None unless the wallet is a member of the job
LimitFor = Callable[[JobId, Address], Awaitable[int | None]]


class Holders:
    """Asks members to hold files, and holds files for members."""

    def __init__(self, channel: Channel, store: BlobStore, limit_for: LimitFor) -> None:
        self._channel = channel
        self._store = store
        self._limit_for = limit_for
        channel.handle(PROTOCOL, self._on_request, max_request_bytes=MAX_REQUEST_BYTES)

    async def ask(
        self,
        nursery: trio.Nursery,
        job: JobId,
        cids: Sequence[Cid],
        members: Collection[Address],
        wanted: int = 1,
        patience_s: float = PATIENCE_S,
    ) -> int:
        """Ask every connected one of `members` to hold the files.

        Returns when `wanted` do, all have answered, or after `patience_s`, with how many do by then. The
        requests that are still under way go on in `nursery`.
        """
        peers = [peer for peer in self._channel.peers() if peer.address in members]
        awaited, kept, enough = len(peers), 0, trio.Event()

        async def ask_one(peer: Peer) -> None:
            nonlocal awaited, kept
            body = codec.encode({"job": job, "cids": list(cids)})
            try:
                reply = await self._channel.request(
                    peer.peer_id, PROTOCOL, body, max_reply_bytes=len(KEPT), timeout_s=FETCH_S
                )
                kept += reply == KEPT
            except DflError as failure:
                log.debug("a member does not hold our files", peer=peer.peer_id, job=job, why=str(failure))
            awaited -= 1
            if kept >= wanted or not awaited:
                enough.set()

        if peers:
            for peer in peers:
                nursery.start_soon(ask_one, peer)
            with trio.move_on_after(patience_s):
                await enough.wait()
        return kept

    async def _on_request(self, peer: Peer, body: bytes) -> bytes:
        """Fetch the files a member of one of our jobs asks us to hold."""
        try:
            job, cids = _read(body)
        except (DflError, ValueError) as bad:
            raise PeerMisbehaved(peer.peer_id, f"asks to hold nonsense: {bad}") from bad
        limit = await self._limit_for(job, peer.address)
        if limit is None:
            raise PeerMisbehaved(peer.peer_id, f"asks to hold files of job {job}, where it is no member")
        for cid in cids:
            await self._store.get(cid, max_bytes=limit, timeout_s=FETCH_S, providers=(peer.peer_id,))
            if not await self._store.has(cid):  # fetched, but on a full disk nothing is kept
                raise StoreUnavailable(f"file {cid} is not kept", why="the disk is full")
        return KEPT


def _read(body: bytes) -> tuple[JobId, list[Cid]]:
    """Raises VerificationFailed, ValueError."""
    values = codec.decode(body, max_bytes=MAX_REQUEST_BYTES)
    if not isinstance(values, dict) or values.keys() != {"job", "cids"}:
        raise ValueError("not a job and its files")
    job, cids = values["job"], values["cids"]
    if type(job) is not int or not isinstance(cids, list) or not 1 <= len(cids) <= MAX_CIDS:
        raise ValueError(f"not a job and at most {MAX_CIDS} files")
    if not all(isinstance(cid, Cid) for cid in cids):
        raise ValueError("a file is not named by a CID")
    return JobId(job), cids
