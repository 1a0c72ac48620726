"""The in-memory twin of AssetRegistry.sol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dfl_ledger.memory_chain import Transaction
from dfl_ledger.records import NOBODY, Address, Asset, AssetKind, AssetUse, Cid

MAX_PRICE_BPS = 10_000
MAX_PARENTS = 16
_NAME = "AssetRegistry"


class MemoryAssets:
    """What people own and lend to jobs."""

    def __init__(self) -> None:
        self.assets: dict[int, Asset] = {}
        self._allowed: dict[int, Address] = {}

    def mint(
        self,
        tx: Transaction,
        kind: AssetKind,
        manifest: Cid,
        licence: bytes,
        uses: AssetUse,
        price_bps: int,
        parents: Sequence[int],
    ) -> int:
        if not any(manifest.digest):
            raise tx.refused("InvalidManifest")
        if taken := self.by_manifest(manifest):
            raise tx.refused("ManifestTaken", manifest="0x" + manifest.digest.hex(), asset=taken)
        self._check_price(tx, price_bps)
        if len(parents) > MAX_PARENTS:
            raise tx.refused("TooManyParents", count=len(parents), most=MAX_PARENTS)
        for parent in parents:
            found = self._known(tx, parent)
            if found.revoked:
                raise tx.refused("AssetIsRevoked", asset=parent)
            if not found.uses & AssetUse.DERIVE:
                raise tx.refused("MayNotDerive", asset=parent)
        number = len(self.assets) + 1
        self.assets[number] = Asset(
            number, tx.sender, kind, False, price_bps, AssetUse(uses), manifest, licence, tuple(parents)
        )
        tx.emit(
            _NAME,
            "AssetMinted",
            asset=number,
            owner=tx.sender,
            kind=int(kind),
            manifest="0x" + manifest.digest.hex(),
            licence="0x" + licence.hex(),
            uses=int(uses),
            priceBps=price_bps,
            parents=list(parents),
        )
        tx.emit(_NAME, "Transfer", **{"from": NOBODY}, to=tx.sender, tokenId=number)
        return number

    def revoke(self, tx: Transaction, asset: int) -> None:
        record = self._owned(tx, asset)
        if record.revoked:
            raise tx.refused("AssetIsRevoked", asset=asset)
        self.assets[asset] = replace(record, revoked=True)
        tx.emit(_NAME, "AssetRevoked", asset=asset)

    def set_price(self, tx: Transaction, asset: int, price_bps: int) -> None:
        record = self._owned(tx, asset)
        self._check_price(tx, price_bps)
        self.assets[asset] = replace(record, price_bps=price_bps)
        tx.emit(_NAME, "AssetPriced", asset=asset, priceBps=price_bps)

    def approve(self, tx: Transaction, user: Address, asset: int) -> None:
        record = self._token(tx, asset)
        if record.owner != tx.sender:
            raise tx.refused("ERC721InvalidApprover", approver=tx.sender)
        self._allowed[asset] = user
        tx.emit(_NAME, "Approval", owner=record.owner, approved=user, tokenId=asset)

    def transfer(self, tx: Transaction, to: Address, asset: int) -> None:
        """From the sender."""
        if to == NOBODY:
            raise tx.refused("ERC721InvalidReceiver", receiver=to)
        record = self._token(tx, asset)
        if tx.sender not in (record.owner, self._allowed.get(asset)):
            raise tx.refused("ERC721InsufficientApproval", operator=tx.sender, tokenId=asset)
        if record.owner != tx.sender:
            raise tx.refused("ERC721IncorrectOwner", sender=tx.sender, tokenId=asset, owner=record.owner)
        self._allowed.pop(asset, None)
        self.assets[asset] = replace(record, owner=to)
        tx.emit(_NAME, "Transfer", **{"from": tx.sender}, to=to, tokenId=asset)

    def by_manifest(self, manifest: Cid) -> int:
        """0 if there is none."""
        return next((n for n, asset in self.assets.items() if asset.manifest.digest == manifest.digest), 0)

    def may_use(self, user: Address, asset: int) -> bool:
        record = self.assets.get(asset)
        return record is not None and not record.revoked and user in (record.owner, self._allowed.get(asset))

    def usable(self, asset: int, kind: AssetKind, uses: AssetUse) -> bool:
        record = self.assets.get(asset)
        return (
            record is not None and not record.revoked and record.kind is kind and record.uses & uses == uses
        )

    def _known(self, tx: Transaction, asset: int) -> Asset:
        if asset not in self.assets:
            raise tx.refused("AssetUnknown", asset=asset)
        return self.assets[asset]

    def _owned(self, tx: Transaction, asset: int) -> Asset:
        record = self._known(tx, asset)
        if record.owner != tx.sender:
            raise tx.refused("NotAssetOwner", asset=asset, caller=tx.sender)
        return record

    def _token(self, tx: Transaction, asset: int) -> Asset:
        """As ERC-721 has it."""
        if asset not in self.assets:
            raise tx.refused("ERC721NonexistentToken", tokenId=asset)
        return self.assets[asset]

    def _check_price(self, tx: Transaction, price_bps: int) -> None:
        if price_bps > MAX_PRICE_BPS:
            raise tx.refused("PriceTooHigh", priceBps=price_bps, most=MAX_PRICE_BPS)
