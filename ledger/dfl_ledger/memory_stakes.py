"""The part of `MemoryLedger` about stake, hot keys, evaluators and assets."""

from __future__ import annotations

from collections.abc import Sequence

from dfl_ledger.memory_wallet import MemoryWallet
from dfl_ledger.records import NOBODY, Address, Asset, AssetKind, AssetUse, Cid, Interval, Receipt


class MemoryStakes(MemoryWallet):
    # -- stake ----------------------------------------------------------------------------------------
    def top_up(self, node: Address, amount_wei: int) -> Receipt:
        return self._send("topUp", lambda tx: self._chain.registry.top_up(tx, node, amount_wei))

    def unbond(self) -> Receipt:
        return self._send("unbond", self._chain.registry.unbond)

    def withdraw(self) -> Receipt:
        return self._send("withdraw", self._chain.registry.withdraw)

    def set_delegate(self, delegate: Address | None) -> Receipt:
        return self._send("setDelegate", lambda tx: self._chain.registry.set_delegate(tx, delegate or NOBODY))

    def act_for(self, node: Address | None) -> Receipt:
        return self._send("actFor", lambda tx: self._chain.registry.act_for(tx, node or NOBODY))

    def delegate_of(self, node: Address) -> Address | None:
        return self._chain.registry.delegate_of(node)

    def principal_of(self, sender: Address) -> Address:
        return self._chain.registry.principal_of(sender)

    def enlist(self) -> Receipt:
        return self._send("enlist", self._chain.registry.enlist)

    def delist(self) -> Receipt:
        return self._send("delist", self._chain.registry.delist)

    def limit_seats(self, least_window_s: int, most_bond_wei: int) -> Receipt:
        return self._send(
            "limitSeats", lambda tx: self._chain.registry.limit_seats(tx, least_window_s, most_bond_wei)
        )

    def may_decline(self, node: Address, draw_block: int, window_s: int, bond_wei: int) -> bool:
        return self._chain.registry.may_decline(node, draw_block, window_s, bond_wei)

    def is_evaluator(self, node: Address) -> bool:
        return self._chain.registry.evaluators.holds(node)

    def evaluator_weight_at(self, block: int) -> int:
        return self._chain.registry.evaluators.total_at(block)

    def evaluator_at(self, point: int, block: int) -> Interval:
        total = self.evaluator_weight_at(block)
        if point >= total:
            raise self._view("evaluatorAt").refused("PointOutOfRange", point=point, total=total)
        return self._chain.registry.evaluators.owner_at(point, block)

    def min_evaluator_stake_wei(self) -> int:
        return self._chain.registry.min_evaluator_stake_wei

    def unbond_delay_s(self) -> int:
        return self._chain.registry.unbond_delay_s

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
        minted: list[int] = []
        self._send(
            "mint",
            lambda tx: minted.append(
                self._chain.assets.mint(tx, kind, manifest, licence, uses, price_bps, parents)
            ),
        )
        return minted[0]

    def revoke_asset(self, asset: int) -> Receipt:
        return self._send("revoke", lambda tx: self._chain.assets.revoke(tx, asset))

    def price_asset(self, asset: int, price_bps: int) -> Receipt:
        return self._send("setPrice", lambda tx: self._chain.assets.set_price(tx, asset, price_bps))

    def allow_asset(self, user: Address, asset: int) -> Receipt:
        return self._send("approve", lambda tx: self._chain.assets.approve(tx, user, asset))

    def transfer_asset(self, to: Address, asset: int) -> Receipt:
        return self._send("transferFrom", lambda tx: self._chain.assets.transfer(tx, to, asset))

    def asset(self, asset: int) -> Asset | None:
        return self._chain.assets.assets.get(asset)

    def asset_by_manifest(self, manifest: Cid) -> int:
        return self._chain.assets.by_manifest(manifest)

    def may_use(self, user: Address, asset: int) -> bool:
        return self._chain.assets.may_use(user, asset)
