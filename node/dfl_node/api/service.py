"""What a running node does for its operator. `dfl_node.api.app` puts it on HTTP; the node implements it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dfl_node.assets import NewAsset

JsonObject = dict[str, Any]  # plain JSON values only; wei as decimal text, because JSON numbers lose digits

BUNDLE_FILES = ("model.safetensors", "config.json", "README.md", "ledger-proof.json")


@dataclass(frozen=True, slots=True)
class DownloadBundle:
    """A finished model and what belongs to it: the bytes of each of BUNDLE_FILES by name."""

    files: Mapping[str, bytes]


class NodeService(Protocol):
    """Every method may raise DflError, which reaches the caller of the API as it is."""

    async def status(self) -> JsonObject:
        """`address`, `peer_id`, `multiaddrs`, `http_url`, `peers`, `chain` (`id`, `head`, `indexed`,
        `behind_blocks`, `behind_s`; all but `id` and `indexed` None while the RPC is silent), `jobs`,
        `datasets` (`asset`, `app`, `jobs` in which it is declared, `left_out`: why other jobs did not take
        it, by job), `roles`, `version`, `reachability` (`state`: public, private or unknown, and `why`).
        """
        ...

    async def peers(self) -> list[JsonObject]:
        """`peer_id`, `address`, `found_by`, `latency_ms` (None if not measured) of each verified peer."""
        ...

    async def network(self) -> list[JsonObject]:
        """What the doctor finds of the network: `name`, `ok` (None: cannot be said), `detail`, `help`."""
        ...

    async def put_blob(self, data: bytes, *, pin: bool) -> JsonObject:
        """Store a file; `cid` and `bytes`."""
        ...

    async def get_blob(self, cid: str, *, max_bytes: int, timeout_s: float) -> bytes:
        """A file, from here or from peers. Raises BlobNotFound, CidMismatch, UsageError for a bad CID."""
        ...

    async def list_blobs(self) -> list[JsonObject]:
        """`cid`, `bytes`, `pinned` of each file."""
        ...

    async def pin(self, cid: str, *, timeout_s: float) -> JsonObject: ...

    async def unpin(self, cid: str) -> JsonObject: ...

    async def check_job(self, toml: str) -> JsonObject:
        """Whether the job could be submitted now. Raises SpecInvalid, InsufficientFunds."""
        ...

    async def submit_job(self, toml: str) -> JsonObject:
        """Publish the spec and the first model, escrow the budget; `job_id` and more."""
        ...

    async def jobs(self) -> list[JsonObject]: ...

    async def job(self, job: int) -> JsonObject:
        """The job and its rounds; `awaited`, if known: the wallets that have not done this phase's work."""
        ...

    async def cancel_job(self, job: int) -> JsonObject:
        """End a job of ours: at once before its first round, else when the current round ends."""
        ...

    async def download(self, job: int) -> DownloadBundle: ...

    async def claim(self, job: int | None) -> JsonObject:
        """Claim what was earned in one job, or in all; `claims` and `total_wei`."""
        ...

    async def mint_asset(self, asset: NewAsset) -> JsonObject:
        """Make an asset of this wallet; `asset`, its number, and what it was made of."""
        ...

    async def price_asset(self, asset: int, price_bps: int) -> JsonObject:
        """Ask another share of jobs that begin from now on; `asset`, `price_bps`, `tx`."""
        ...

    async def allow_asset(self, asset: int, user: str) -> JsonObject:
        """Let one other wallet use it; `asset`, `user`, `tx`."""
        ...

    async def revoke_asset(self, asset: int) -> JsonObject:
        """Take it from the market, for good; `asset`, `tx`."""
        ...
