// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeRegistry} from "../interfaces/INodeRegistry.sol";
import {JobId} from "../types/Types.sol";

/// @title Who sits on a panel
/// @notice Seats are drawn one after another without replacement, each with a chance by stake: a point of the evaluators'
/// intervals that are left, laid end to end. Twin of ledger/dfl_ledger/sortition.py.
library Sortition {
    /// @notice The seed of a panel.
    function seedOf(bytes32 blockHash, JobId job, uint32 round, uint8 panel) internal pure returns (bytes32) {
        return keccak256(abi.encode(blockHash, job, round, panel));
    }

    /// @notice Draws at most `most` seats, fewer if there are fewer evaluators.
    /// @param blockNumber stakes count as of this block's end
    function draw(
        INodeRegistry registry,
        bytes32 seed,
        uint48 blockNumber,
        uint256 most
    ) internal view returns (address[] memory evaluators, uint96[] memory weights) {
        evaluators = new address[](most);
        weights = new uint96[](most);
        // The intervals taken so far, in rising order of start.
        uint256[] memory starts = new uint256[](most);
        uint256[] memory lengths = new uint256[](most);
        uint256 left = registry.evaluatorWeightAt(blockNumber);
        uint256 count = 0;
        for (; count < most && left != 0; ++count) {
            uint256 point = uint256(keccak256(abi.encode(seed, count))) % left;
            for (uint256 i = 0; i < count && starts[i] <= point; ++i) point += lengths[i];
            uint256 start;
            (evaluators[count], start, weights[count]) = registry.evaluatorAt(point, blockNumber);
            _insert(starts, lengths, count, start, weights[count]);
            left -= weights[count];
        }
        assembly ("memory-safe") {
            mstore(evaluators, count)
            mstore(weights, count)
        }
    }

    function _insert(
        uint256[] memory starts,
        uint256[] memory lengths,
        uint256 count,
        uint256 start,
        uint256 length
    ) private pure {
        uint256 slot = count;
        for (; slot > 0 && starts[slot - 1] > start; --slot) {
            starts[slot] = starts[slot - 1];
            lengths[slot] = lengths[slot - 1];
        }
        starts[slot] = start;
        lengths[slot] = length;
    }
}
