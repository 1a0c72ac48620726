"""The part of the `Ledger` Protocol about stake, hot keys, evaluators and assets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dfl_ledger.records import Address, Asset, AssetKind, AssetUse, Cid, Interval, Receipt


class StakeLedger(Protocol):
    """What a node has at stake, who acts for it, and who may be drawn to judge."""

    def top_up(self, node: Address, amount_wei: int) -> Receipt:
        """Add to a node's stake. Anyone may; the stake is the node's."""
        ...

    def unbond(self) -> Receipt:
        """Begin to leave: the node counts as gone at once, its stake is free after a delay."""
        ...

    def withdraw(self) -> Receipt:
        """Take the stake back after `unbond` and its delay."""
        ...

    def set_delegate(self, delegate: Address | None) -> Receipt:
        """Name the hot key that may act for this wallet once it accepts; None takes the right away at
        once.
        """
        ...

    def act_for(self, node: Address | None) -> Receipt:
        """As a hot key that `node` named: act for it from now on; None: for nobody."""
        ...

    def delegate_of(self, node: Address) -> Address | None: ...

    def principal_of(self, sender: Address) -> Address:
        """The node that `sender` acts for, else `sender` itself."""
        ...

    def enlist(self) -> Receipt:
        """Become an evaluator, with the whole stake as weight."""
        ...

    def delist(self) -> Receipt:
        """Not be drawn any more, from this block on."""
        ...

    def limit_seats(self, least_window_s: int, most_bond_wei: int) -> Receipt:
        """Take, of panels drawn from this block on, no seat with less time for each phase, or with more to
        lose for an offence. At most 600 s, and at least `min_evaluator_stake_wei`."""
        ...

    def may_decline(self, node: Address, draw_block: int, window_s: int, bond_wei: int) -> bool:
        """True if an evaluator drawn from this block may leave a seat with this window and bond empty."""
        ...

    def is_evaluator(self, node: Address) -> bool: ...

    def evaluator_weight_at(self, block: int) -> int:
        """The stake of all evaluators as of the end of a block."""
        ...

    def evaluator_at(self, point: int, block: int) -> Interval:
        """Whose interval holds `point`, as of the end of a block."""
        ...

    def min_evaluator_stake_wei(self) -> int: ...

    def unbond_delay_s(self) -> int:
        """Seconds between `unbond` and `withdraw`: no job's windows together may be longer."""
        ...


class AssetLedger(Protocol):
    """What people own and lend to jobs."""

    def mint_asset(
        self,
        kind: AssetKind,
        manifest: Cid,
        licence: bytes,
        uses: AssetUse,
        price_bps: int,
        parents: Sequence[int] = (),
    ) -> int:
        """Make an asset of a manifest that no other has; gives its number. `licence` has 32 bytes."""
        ...

    def revoke_asset(self, asset: int) -> Receipt:
        """Take it from the market, for good."""
        ...

    def price_asset(self, asset: int, price_bps: int) -> Receipt:
        """Ask another share of jobs that begin from now on."""
        ...

    def allow_asset(self, user: Address, asset: int) -> Receipt:
        """Let one other wallet use it (ERC-721's approve)."""
        ...

    def transfer_asset(self, to: Address, asset: int) -> Receipt:
        """Give it away, and with it all that it has earned and was not paid."""
        ...

    def asset(self, asset: int) -> Asset | None: ...

    def asset_by_manifest(self, manifest: Cid) -> int:
        """0 if there is none."""
        ...

    def may_use(self, user: Address, asset: int) -> bool:
        """True for its owner and whom it was allowed to, while it is not revoked."""
        ...
