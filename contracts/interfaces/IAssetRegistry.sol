// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC721} from "@openzeppelin/contracts/token/ERC721/IERC721.sol";

import {Asset, AssetKind} from "../types/Assets.sol";
import {Cid} from "../types/Types.sol";

/// @title What people own and lend to jobs: data sets, models, algorithms, applications
/// @notice An asset is an ERC-721 token, and whoever holds it when a reward is claimed is paid. What it is stands in its
/// manifest, a file; the registry says who may use it, for what, and what share of a round's budget it asks for.
interface IAssetRegistry is IERC721 {
    /// @notice A new asset. `licence` is keccak256 of an SPDX identifier, or the digest of the licence's CID.
    event AssetMinted(
        uint64 indexed asset,
        address indexed owner,
        AssetKind indexed kind,
        Cid manifest,
        bytes32 licence,
        uint32 uses,
        uint16 priceBps,
        uint64[] parents
    );

    /// @notice No job that begins from now on may use the asset. Jobs that use it already go on paying for it.
    event AssetRevoked(uint64 indexed asset);

    /// @notice The share that the asset asks of jobs that begin from now on.
    event AssetPriced(uint64 indexed asset, uint16 priceBps);

    /// @notice No asset has this number.
    error AssetUnknown(uint64 asset);

    /// @notice The owner has revoked the asset.
    error AssetIsRevoked(uint64 asset);

    /// @notice The asset's owner does not allow to derive others from it.
    error MayNotDerive(uint64 asset);

    /// @notice Another asset has this manifest: a copy is no asset of its own.
    error ManifestTaken(Cid manifest, uint64 asset);

    /// @notice The manifest's CID is zero.
    error InvalidManifest();

    /// @notice More than 10000 basis points.
    error PriceTooHigh(uint16 priceBps, uint16 most);

    /// @notice More parents than `most`.
    error TooManyParents(uint256 count, uint256 most);

    /// @notice Only the asset's owner may do this.
    error NotAssetOwner(uint64 asset, address caller);

    /// @notice Mints an asset to the caller.
    /// @param manifest the file that describes it
    /// @param licence keccak256 of an SPDX identifier, or the digest of the licence's CID
    /// @param uses what it may be used for, a bit mask: 1 train, 2 evaluate, 4 commercially, 8 derive
    /// @param priceBps the least share of a round's budget, in basis points
    /// @param parents assets it was derived from, at most 16; each must allow that
    function mint(
        AssetKind kind,
        Cid manifest,
        bytes32 licence,
        uint32 uses,
        uint16 priceBps,
        uint64[] calldata parents
    ) external returns (uint64 asset);

    /// @notice Takes the asset from the market, for good.
    function revoke(uint64 asset) external;

    /// @notice Asks another share of jobs that begin from now on.
    function setPrice(uint64 asset, uint16 priceBps) external;

    /// @notice An asset's record. Reverts with AssetUnknown.
    function assetOf(uint64 asset) external view returns (Asset memory);

    /// @notice How many assets there are; they are numbered from 1.
    function assetCount() external view returns (uint64);

    /// @notice The asset with this manifest, 0 if there is none.
    function byManifest(Cid manifest) external view returns (uint64 asset);

    /// @notice True for the owner and whoever it approved (ERC-721), while the asset is not revoked.
    function mayUse(address user, uint64 asset) external view returns (bool);

    /// @notice True if the asset exists, is of this kind, is not revoked, and allows every use of the mask.
    function usable(uint64 asset, AssetKind kind, uint32 uses) external view returns (bool);

    /// @notice The least share of a round's budget that the asset asks, in basis points.
    function priceOf(uint64 asset) external view returns (uint16);
}
