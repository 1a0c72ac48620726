// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Cid} from "./Types.sol";

/// @notice What an asset is: rows, weights to start from, a way of training or of combining, a product built on a model.
enum AssetKind {
    Dataset,
    Model,
    Algorithm,
    Application
}

/// @notice An asset as registered. `uses` is a bit mask of the USE_ constants of IAssetRegistry; `parents` are the assets
/// it was derived from.
struct Asset {
    AssetKind kind;
    bool revoked;
    uint16 priceBps;
    uint32 uses;
    Cid manifest;
    bytes32 licence;
    uint64[] parents;
}
