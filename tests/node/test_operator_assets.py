"""What a running node does with assets, on the twin: its wallet owns what it mints."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfl_ledger.errors import Reverted, UsageError
from dfl_ledger.records import AssetKind, AssetUse, Cid
from dfl_node.assets import NewAsset
from tests.node.modes.world import World, play

ASSET = NewAsset(AssetKind.DATASET, Cid.of(b"manifest"), "CC-BY-4.0", AssetUse.TRAIN, 250)


def test_an_asset_from_its_minting_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        node, friend = world.running["requester"], world.machines["a"].address
        minted = await node.operator.mint_asset(ASSET)
        assert (minted["asset"], minted["owner"]) == ("1", node.parts.ledger.address)
        found = node.parts.ledger.asset(1)
        assert found is not None
        assert (found.kind, found.manifest, found.price_bps) == (ASSET.kind, ASSET.manifest, 250)
        assert (found.licence, found.uses) == (ASSET.licence_word, AssetUse.TRAIN)
        with pytest.raises(Reverted, match="ManifestTaken"):
            await node.operator.mint_asset(ASSET)

        assert (await node.operator.price_asset(1, 500))["price_bps"] == 500
        assert not node.parts.ledger.may_use(friend, 1)
        assert (await node.operator.allow_asset(1, friend.lower()))["user"] == friend
        assert node.parts.ledger.may_use(friend, 1)
        with pytest.raises(UsageError):
            await node.operator.allow_asset(1, "0x12")

        await node.operator.revoke_asset(1)
        assert not node.parts.ledger.may_use(friend, 1)
        with pytest.raises(Reverted, match="NotAssetOwner"):
            await world.running["a"].operator.price_asset(1, 0)

        await world.until(lambda: bool(node.parts.rows.assets()), "the ledger tells of it")
        (row,) = node.parts.rows.assets(node.parts.ledger.address)
        assert (row.price_bps, row.revoked) == (500, True)

    play(story, tmp_path, monkeypatch)
