"""The data sets that a node says it trains on: checked once when it starts, declared in each job that pays.

Nothing on chain ties a node's rows to an asset. Its own node does: it declares only a data set whose manifest
has the digest of the very rows that it trains on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from dfl_ledger.errors import UsageError
from dfl_ledger.ledger import Ledger
from dfl_ledger.records import Asset, AssetKind, AssetUse
from dfl_node.assets import MAX_MANIFEST_BYTES, read_manifest, use_names
from dfl_node.store.blob_store import BlobStore
from dfl_node.train.trainer import DataConfig, Trainer

log = structlog.get_logger(__name__)

MOST_BPS = 9_998  # that a job can pay for data: one for its evaluators and one for who trains are left
MANIFEST_PATIENCE_S = 60.0


def refusal(ledger: Ledger, asset: int, data_bps: int = MOST_BPS) -> UsageError | None:
    """Why a job that pays so much for data would not take this data set from us; None if it would. Blocks."""
    found, me = ledger.asset(asset), ledger.address
    show = f"dfl-node asset show {asset}"
    if found is None:
        return UsageError(
            f"there is no asset {asset}", why="the registry has none", help_command="dfl-node asset list"
        )
    if found.kind is not AssetKind.DATASET:
        why = f"it is of kind {found.kind.name.lower()}"
        return UsageError(f"asset {asset} is no data set", why=why, help_command=show)
    if found.revoked:
        why = "its owner took it from the market"
        return UsageError(f"data set {asset} is revoked", why=why, help_command=show)
    if AssetUse.TRAIN not in found.uses:
        why = f"its owner allows {', '.join(use_names(found.uses)) or 'nothing'}"
        return UsageError(f"data set {asset} is not for training", why=why, help_command=show)
    if not ledger.may_use(me, asset):
        return UsageError(
            f"wallet {me} may not use data set {asset}",
            why=f"its owner {found.owner} has not allowed it to",
            help_command=f"dfl-node asset allow {asset} {me}",
        )
    if found.price_bps > data_bps:
        return UsageError(
            f"data set {asset} costs {_percent(found.price_bps)} of a round's budget",
            why=f"{'no job can pay more than' if data_bps == MOST_BPS else 'the job pays'} "
            f"{_percent(data_bps)} for data",
            help_command=f"dfl-node asset price {asset} {data_bps / 100:g}",
        )
    return None


def check(ledger: Ledger, assets: Sequence[int]) -> tuple[Asset, ...]:
    """What the registry has of them. Raises UsageError for one that no job would take from us. Blocks."""
    found = []
    for number in assets:
        no = refusal(ledger, number)
        asset = ledger.asset(number)
        if no is not None or asset is None:
            raise no or UsageError(f"there is no asset {number}", help_command="dfl-node asset list")
        found.append(asset)
    return tuple(found)


async def match(
    assets: Sequence[Asset], data: Mapping[str, DataConfig], store: BlobStore, trainer: Trainer
) -> dict[str, tuple[int, ...]]:
    """Application -> the data sets that its rows are.

    Raises UsageError unless each data set is the rows of one, BlobNotFound if nobody has its manifest.
    """
    found: dict[str, tuple[int, ...]] = {}
    digests: dict[str, bytes] = {}
    for asset in assets:
        file = await store.get(asset.manifest, max_bytes=MAX_MANIFEST_BYTES, timeout_s=MANIFEST_PATIENCE_S)
        try:
            manifest = read_manifest(file)
        except UsageError as bad:
            raise UsageError(
                f"data set {asset.asset} has no manifest of rows",
                why=bad.why,
                help_command=f"dfl-node blob get {asset.manifest} -o manifest.json",
            ) from bad
        await store.pin(asset.manifest)
        app = manifest.app
        start = f"dfl-node start --data {app}=PATH --dataset {asset.asset} …"
        if app not in data:
            raise UsageError(
                f"data set {asset.asset} has rows of {app}", why="this node has none", help_command=start
            )
        if app not in digests:
            digests[app] = (await trainer.shard(data[app])).commitment
        if digests[app] != manifest.digest:
            raise UsageError(
                f"the rows of {app} are not those of data set {asset.asset}",
                why=f"their digest is 0x{digests[app].hex()}; its manifest names {manifest.rows} rows with "
                f"0x{manifest.digest.hex()}",
                help_command=start,
            )
        found[app] = (*found.get(app, ()), asset.asset)
        log.info("trains on a data set", asset=asset.asset, app=app, rows=manifest.rows)
    return found


def _percent(bps: int) -> str:
    return f"{bps / 100:g} %"
