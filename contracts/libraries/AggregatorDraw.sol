// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobId} from "../types/Types.sol";

/// @title Who aggregates a round, and who steps in
/// @notice The contributors of a round stand in a circle by their index. The drawn one comes first, the others follow
/// in order; each in turn may publish a slot later than the one before, up to the last slot, where all may. A dead
/// aggregator so costs one slot, not the round.
library AggregatorDraw {
    /// @notice Slots that the aggregate window is cut into.
    uint32 internal constant SLOTS = 4;

    /// @notice The index of the contributor who comes first.
    /// @param randao the beacon chain's randomness
    /// @param parentHash the previous block's hash, for chains whose randomness is constant
    /// @param reveals how many contributed, at least 1
    function draw(
        uint256 randao,
        bytes32 parentHash,
        JobId job,
        uint32 round,
        uint32 reveals
    ) internal pure returns (uint32) {
        uint256 seed = uint256(keccak256(abi.encode(randao, parentHash, job, round)));
        return uint32(seed % reveals);
    }

    /// @notice How many contributors come before `index`; both `index` and `drawn` lie below `reveals`.
    function rank(uint32 index, uint32 drawn, uint32 reveals) internal pure returns (uint32) {
        return index >= drawn ? index - drawn : reveals - (drawn - index);
    }

    /// @notice Seconds after the phase's start until a contributor of this rank may publish.
    function delay(uint32 rank_, uint32 reveals, uint32 window) internal pure returns (uint32) {
        uint32 slots = reveals < SLOTS ? reveals : SLOTS;
        uint32 slot = rank_ < SLOTS ? rank_ : SLOTS - 1;
        // A slot is whole seconds long: the remainder belongs to the last one.
        // slither-disable-next-line divide-before-multiply
        return (window / slots) * slot;
    }
}
