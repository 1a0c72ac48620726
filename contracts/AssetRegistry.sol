// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";

import {IAssetRegistry} from "./interfaces/IAssetRegistry.sol";
import {Asset, AssetKind} from "./types/Assets.sol";
import {Cid} from "./types/Types.sol";

/// @title The registry of assets
/// @notice See interfaces/IAssetRegistry.sol
contract AssetRegistry is ERC721, IAssetRegistry {
    /// @notice Use: jobs may train on it, from it, or by it.
    uint32 public constant USE_TRAIN = 1;

    /// @notice Use: models may be measured with it.
    uint32 public constant USE_EVALUATE = 2;

    /// @notice Use: what is made with it may be sold.
    uint32 public constant USE_COMMERCIAL = 4;

    /// @notice Use: other assets may be derived from it.
    uint32 public constant USE_DERIVE = 8;

    /// @notice The whole of a budget, in basis points.
    uint16 public constant MAX_PRICE_BPS = 10_000;

    /// @notice Most parents of an asset.
    uint256 public constant MAX_PARENTS = 16;

    /// @inheritdoc IAssetRegistry
    uint64 public assetCount;

    /// @inheritdoc IAssetRegistry
    mapping(Cid manifest => uint64 asset) public byManifest;

    mapping(uint64 asset => Asset) private _assets;

    constructor() ERC721("dfl asset", "DFLA") {}

    /// @inheritdoc IAssetRegistry
    function mint(
        AssetKind kind,
        Cid manifest,
        bytes32 licence,
        uint32 uses,
        uint16 priceBps,
        uint64[] calldata parents
    ) external returns (uint64 asset) {
        if (Cid.unwrap(manifest) == 0) revert InvalidManifest();
        if (byManifest[manifest] != 0) revert ManifestTaken(manifest, byManifest[manifest]);
        _checkPrice(priceBps);
        if (parents.length > MAX_PARENTS) revert TooManyParents(parents.length, MAX_PARENTS);
        for (uint256 i = 0; i < parents.length; ++i) {
            Asset storage parent = _known(parents[i]);
            if (parent.revoked) revert AssetIsRevoked(parents[i]);
            if (parent.uses & USE_DERIVE == 0) revert MayNotDerive(parents[i]);
        }

        asset = ++assetCount;
        byManifest[manifest] = asset;
        _assets[asset] = Asset(kind, false, priceBps, uses, manifest, licence, parents);
        emit AssetMinted(asset, msg.sender, kind, manifest, licence, uses, priceBps, parents);
        // Not _safeMint: its call into the receiver is one more way in, and a wallet asks for its own asset.
        _mint(msg.sender, asset);
    }

    /// @inheritdoc IAssetRegistry
    function revoke(uint64 asset) external {
        Asset storage record = _owned(asset);
        if (record.revoked) revert AssetIsRevoked(asset);
        record.revoked = true;
        emit AssetRevoked(asset);
    }

    /// @inheritdoc IAssetRegistry
    function setPrice(uint64 asset, uint16 priceBps) external {
        Asset storage record = _owned(asset);
        _checkPrice(priceBps);
        record.priceBps = priceBps;
        emit AssetPriced(asset, priceBps);
    }

    /// @inheritdoc IAssetRegistry
    function assetOf(uint64 asset) external view returns (Asset memory) {
        return _known(asset);
    }

    /// @inheritdoc IAssetRegistry
    function priceOf(uint64 asset) external view returns (uint16) {
        return _known(asset).priceBps;
    }

    /// @inheritdoc IAssetRegistry
    function mayUse(address user, uint64 asset) external view returns (bool) {
        address owner = _ownerOf(asset);
        return owner != address(0) && !_assets[asset].revoked && _isAuthorized(owner, user, asset);
    }

    /// @inheritdoc IAssetRegistry
    function usable(uint64 asset, AssetKind kind, uint32 uses) external view returns (bool) {
        Asset storage record = _assets[asset];
        return Cid.unwrap(record.manifest) != 0 && !record.revoked && record.kind == kind && record.uses & uses == uses;
    }

    function _known(uint64 asset) private view returns (Asset storage record) {
        record = _assets[asset];
        if (Cid.unwrap(record.manifest) == 0) revert AssetUnknown(asset);
    }

    function _owned(uint64 asset) private view returns (Asset storage record) {
        record = _known(asset);
        if (_ownerOf(asset) != msg.sender) revert NotAssetOwner(asset, msg.sender);
    }

    function _checkPrice(uint16 priceBps) private pure {
        if (priceBps > MAX_PRICE_BPS) revert PriceTooHigh(priceBps, MAX_PRICE_BPS);
    }
}
