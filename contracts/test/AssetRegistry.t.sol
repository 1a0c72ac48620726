// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AssetRegistry} from "../AssetRegistry.sol";
import {IAssetRegistry} from "../interfaces/IAssetRegistry.sol";
import {Asset, AssetKind} from "../types/Assets.sol";
import {Cid} from "../types/Types.sol";
import {vm} from "./Vm.t.sol";

contract AssetRegistryTest {
    address private constant OWNER = address(0xa0);
    address private constant FRIEND = address(0xa1);
    bytes32 private constant LICENCE = keccak256("CC-BY-4.0");
    uint32 private constant TRAIN = 1;
    uint32 private constant DERIVE = 8;

    AssetRegistry private assets;

    function setUp() public {
        assets = new AssetRegistry();
    }

    function manifest(uint256 i) private pure returns (Cid) {
        return Cid.wrap(keccak256(abi.encode("manifest", i)));
    }

    function mint(uint256 i, AssetKind kind, uint32 uses) private returns (uint64) {
        vm.prank(OWNER);
        return assets.mint(kind, manifest(i), LICENCE, uses, 250, new uint64[](0));
    }

    function unknown(uint64 asset) private pure returns (bytes memory) {
        return abi.encodeWithSelector(IAssetRegistry.AssetUnknown.selector, asset);
    }

    function test_an_asset_is_its_minter_s_token() public {
        uint64 parent = mint(0, AssetKind.Dataset, TRAIN | DERIVE);
        uint64[] memory parents = new uint64[](1);
        parents[0] = parent;
        vm.expectEmit(address(assets));
        emit IAssetRegistry.AssetMinted(2, OWNER, AssetKind.Model, manifest(1), LICENCE, TRAIN, 250, parents);
        vm.prank(OWNER);
        uint64 asset = assets.mint(AssetKind.Model, manifest(1), LICENCE, TRAIN, 250, parents);

        vm.assertEq(asset, 2);
        vm.assertEq(assets.assetCount(), 2);
        vm.assertEq(assets.ownerOf(asset), OWNER);
        vm.assertEq(assets.byManifest(manifest(1)), asset);
        Asset memory record = assets.assetOf(asset);
        vm.assertEq(uint256(record.kind), uint256(AssetKind.Model));
        vm.assertFalse(record.revoked);
        vm.assertEq(record.priceBps, 250);
        vm.assertEq(record.uses, TRAIN);
        vm.assertEq(Cid.unwrap(record.manifest), Cid.unwrap(manifest(1)));
        vm.assertEq(record.licence, LICENCE);
        vm.assertEq(record.parents.length, 1);
        vm.assertEq(record.parents[0], parent);
    }

    function test_a_manifest_has_one_asset() public {
        uint64 asset = mint(0, AssetKind.Dataset, TRAIN);
        vm.expectRevert(abi.encodeWithSelector(IAssetRegistry.ManifestTaken.selector, manifest(0), asset));
        assets.mint(AssetKind.Model, manifest(0), LICENCE, TRAIN, 0, new uint64[](0));
        vm.expectRevert(abi.encodeWithSelector(IAssetRegistry.InvalidManifest.selector));
        assets.mint(AssetKind.Model, Cid.wrap(0), LICENCE, TRAIN, 0, new uint64[](0));
    }

    function test_parents_must_exist_stand_and_allow_it() public {
        uint64[] memory parents = new uint64[](1);
        parents[0] = 1;
        vm.expectRevert(unknown(1));
        assets.mint(AssetKind.Model, manifest(9), LICENCE, 0, 0, parents);
        mint(0, AssetKind.Dataset, TRAIN);
        vm.expectRevert(abi.encodeWithSelector(IAssetRegistry.MayNotDerive.selector, 1));
        assets.mint(AssetKind.Model, manifest(9), LICENCE, 0, 0, parents);
        parents[0] = mint(1, AssetKind.Dataset, DERIVE);
        vm.prank(OWNER);
        assets.revoke(parents[0]);
        vm.expectRevert(abi.encodeWithSelector(IAssetRegistry.AssetIsRevoked.selector, parents[0]));
        assets.mint(AssetKind.Model, manifest(9), LICENCE, 0, 0, parents);
        vm.expectRevert(abi.encodeWithSelector(IAssetRegistry.TooManyParents.selector, 17, 16));
        assets.mint(AssetKind.Model, manifest(9), LICENCE, 0, 0, new uint64[](17));
    }

    function test_a_price_is_a_share_of_the_whole() public {
        uint64 asset = mint(0, AssetKind.Dataset, TRAIN);
        vm.expectEmit(address(assets));
        emit IAssetRegistry.AssetPriced(asset, 10_000);
        vm.prank(OWNER);
        assets.setPrice(asset, 10_000);
        vm.assertEq(assets.priceOf(asset), 10_000);
        vm.expectRevert(abi.encodeWithSelector(IAssetRegistry.PriceTooHigh.selector, 10_001, 10_000));
        vm.prank(OWNER);
        assets.setPrice(asset, 10_001);
        vm.expectRevert(abi.encodeWithSelector(IAssetRegistry.PriceTooHigh.selector, 10_001, 10_000));
        assets.mint(AssetKind.Model, manifest(9), LICENCE, 0, 10_001, new uint64[](0));
        vm.expectRevert(unknown(7));
        assets.priceOf(7);
    }

    function test_only_the_owner_prices_and_revokes() public {
        uint64 asset = mint(0, AssetKind.Dataset, TRAIN);
        bytes memory refusal = abi.encodeWithSelector(IAssetRegistry.NotAssetOwner.selector, asset, FRIEND);
        vm.expectRevert(refusal);
        vm.prank(FRIEND);
        assets.setPrice(asset, 1);
        vm.expectRevert(refusal);
        vm.prank(FRIEND);
        assets.revoke(asset);
        vm.expectRevert(unknown(7));
        assets.revoke(7);

        vm.prank(OWNER);
        assets.transferFrom(OWNER, FRIEND, asset);
        vm.expectEmit(address(assets));
        emit IAssetRegistry.AssetRevoked(asset);
        vm.prank(FRIEND);
        assets.revoke(asset);
        vm.expectRevert(abi.encodeWithSelector(IAssetRegistry.AssetIsRevoked.selector, asset));
        vm.prank(FRIEND);
        assets.revoke(asset);
    }

    function test_owner_and_approved_may_use_it_until_it_is_revoked() public {
        uint64 asset = mint(0, AssetKind.Dataset, TRAIN);
        vm.assertTrue(assets.mayUse(OWNER, asset));
        vm.assertFalse(assets.mayUse(FRIEND, asset));
        vm.prank(OWNER);
        assets.approve(FRIEND, asset);
        vm.assertTrue(assets.mayUse(FRIEND, asset));
        vm.prank(OWNER);
        assets.approve(address(0), asset);
        vm.prank(OWNER);
        assets.setApprovalForAll(FRIEND, true);
        vm.assertTrue(assets.mayUse(FRIEND, asset));
        vm.prank(OWNER);
        assets.revoke(asset);
        vm.assertFalse(assets.mayUse(OWNER, asset));
        vm.assertFalse(assets.mayUse(OWNER, 7));
    }

    function test_usable_asks_for_kind_and_every_use() public {
        uint64 asset = mint(0, AssetKind.Model, TRAIN | DERIVE);
        vm.assertTrue(assets.usable(asset, AssetKind.Model, TRAIN));
        vm.assertTrue(assets.usable(asset, AssetKind.Model, TRAIN | DERIVE));
        vm.assertFalse(assets.usable(asset, AssetKind.Model, TRAIN | 4));
        vm.assertFalse(assets.usable(asset, AssetKind.Algorithm, TRAIN));
        vm.assertFalse(assets.usable(7, AssetKind.Model, TRAIN));
        vm.prank(OWNER);
        assets.revoke(asset);
        vm.assertFalse(assets.usable(asset, AssetKind.Model, TRAIN));
    }

    function test_an_unknown_asset_has_no_record() public {
        vm.expectRevert(unknown(1));
        assets.assetOf(1);
    }
}
