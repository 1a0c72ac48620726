"""The part of `ChainLedger` about stake, hot keys, evaluators and assets."""

from __future__ import annotations

from collections.abc import Sequence

from dfl_ledger.chain_calls import ChainCalls, bytes_of, cid_of
from dfl_ledger.errors import Reverted
from dfl_ledger.records import NOBODY, Address, Asset, AssetKind, AssetUse, Cid, Interval, Receipt


class ChainStakes(ChainCalls):
    # -- stake ----------------------------------------------------------------------------------------
    def top_up(self, node: Address, amount_wei: int) -> Receipt:
        registry = self._deployment.registry
        self._allow(registry, amount_wei, "topUp")
        return self._write(registry, "topUp", node, amount_wei).receipt

    def unbond(self) -> Receipt:
        return self._write(self._deployment.registry, "unbond").receipt

    def withdraw(self) -> Receipt:
        return self._write(self._deployment.registry, "withdraw").receipt

    def set_delegate(self, delegate: Address | None) -> Receipt:
        return self._write(self._deployment.registry, "setDelegate", delegate or NOBODY).receipt

    def act_for(self, node: Address | None) -> Receipt:
        return self._write(self._deployment.registry, "actFor", node or NOBODY).receipt

    def delegate_of(self, node: Address) -> Address | None:
        found = Address(self._read(self._deployment.registry, "delegateOf", node)[0])
        return None if found == NOBODY else found

    def principal_of(self, sender: Address) -> Address:
        return Address(self._read(self._deployment.registry, "principalOf", sender)[0])

    def enlist(self) -> Receipt:
        return self._write(self._deployment.registry, "enlist").receipt

    def delist(self) -> Receipt:
        return self._write(self._deployment.registry, "delist").receipt

    def limit_seats(self, least_window_s: int, most_bond_wei: int) -> Receipt:
        return self._write(self._deployment.registry, "limitSeats", least_window_s, most_bond_wei).receipt

    def may_decline(self, node: Address, draw_block: int, window_s: int, bond_wei: int) -> bool:
        asked = (node, draw_block, window_s, bond_wei)
        return bool(self._read(self._deployment.registry, "mayDecline", *asked)[0])

    def is_evaluator(self, node: Address) -> bool:
        return bool(self._read(self._deployment.registry, "isEvaluator", node)[0])

    def evaluator_weight_at(self, block: int) -> int:
        return int(self._read(self._deployment.registry, "evaluatorWeightAt", block)[0])

    def evaluator_at(self, point: int, block: int) -> Interval:
        node, start, weight = self._read(self._deployment.registry, "evaluatorAt", point, block)
        return Interval(Address(node), int(start), int(weight))

    def min_evaluator_stake_wei(self) -> int:
        return int(self._read(self._deployment.registry, "minEvaluatorStake")[0])

    def unbond_delay_s(self) -> int:
        return int(self._read(self._deployment.registry, "unbondDelay")[0])

    # -- assets ---------------------------------------------------------------------------------------
    def mint_asset(
        self,
        kind: AssetKind,
        manifest: Cid,
        licence: bytes,
        uses: AssetUse,
        price_bps: int,
        parents: Sequence[int] = (),
    ) -> int:
        told = (int(kind), manifest.digest, licence, int(uses), price_bps, list(parents))
        return self._created(self._write(self._deployment.assets, "mint", *told), "AssetMinted", "asset")

    def revoke_asset(self, asset: int) -> Receipt:
        return self._write(self._deployment.assets, "revoke", asset).receipt

    def price_asset(self, asset: int, price_bps: int) -> Receipt:
        return self._write(self._deployment.assets, "setPrice", asset, price_bps).receipt

    def allow_asset(self, user: Address, asset: int) -> Receipt:
        return self._write(self._deployment.assets, "approve", user, asset).receipt

    def transfer_asset(self, to: Address, asset: int) -> Receipt:
        return self._write(self._deployment.assets, "transferFrom", self.address, to, asset).receipt

    def asset(self, asset: int) -> Asset | None:
        assets = self._deployment.assets
        try:
            kind, revoked, price_bps, uses, manifest, licence, parents = self._read(assets, "assetOf", asset)[
                0
            ]
        except Reverted as refused:
            if refused.error == "AssetUnknown":
                return None
            raise
        owner = Address(self._read(assets, "ownerOf", asset)[0])
        with self._understood("assetOf"):
            return Asset(
                asset,
                owner,
                AssetKind(kind),
                bool(revoked),
                int(price_bps),
                AssetUse(uses),
                cid_of(manifest),
                bytes_of(licence),
                tuple(parents),
            )

    def asset_by_manifest(self, manifest: Cid) -> int:
        return int(self._read(self._deployment.assets, "byManifest", manifest.digest)[0])

    def may_use(self, user: Address, asset: int) -> bool:
        return bool(self._read(self._deployment.assets, "mayUse", user, asset)[0])
