// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Checkpoints} from "@openzeppelin/contracts/utils/structs/Checkpoints.sol";

/// @notice Who stands at which place of the tree, and the weights of all its nodes, each as of every past block.
struct StakeTree {
    /// Level 0 holds the leaves; a node of the level above is the sum of ARITY of them.
    mapping(uint256 level => mapping(uint256 index => Checkpoints.Trace208)) sums;
    mapping(uint256 place => Checkpoints.Trace160) owners;
    mapping(address owner => uint256) placeOf; // from 1; 0 for whoever has none
    uint256[] free; // places that were left
    uint256 used; // places that were ever taken
}

/// @title Stake-weighted draws as of a past block
/// @notice A sum tree whose nodes are checkpointed by block (OpenZeppelin's Checkpoints). A draw asks for the weights
/// as they were when its block ended, so that nobody moves it by moving stake once the block's hash is known. Costs do
/// not grow with the number of owners: a change writes LEVELS + 1 nodes, a draw reads at most ARITY of each level.
library StakeTrees {
    using Checkpoints for Checkpoints.Trace160;
    using Checkpoints for Checkpoints.Trace208;

    /// @notice Children of a node.
    uint256 internal constant ARITY = 8;

    /// @notice Levels above the leaves.
    uint256 internal constant LEVELS = 5;

    /// @notice Most owners at a time.
    uint256 internal constant CAPACITY = ARITY ** LEVELS;

    /// @notice Every place is taken.
    error StakeTreeFull(uint256 capacity);

    /// @notice The point lies beyond the sum of all weights.
    error PointOutOfRange(uint256 point, uint256 total);

    /// @notice Gives an owner this weight from the current block on; 0 takes it out.
    function set(StakeTree storage tree, address owner, uint96 weight) internal {
        uint256 place = tree.placeOf[owner];
        if (place == 0) {
            if (weight == 0) return;
            place = _take(tree, owner);
        }
        uint48 key = uint48(block.number);
        uint256 index = place - 1;
        uint208 before = tree.sums[0][index].latest();
        for (uint256 level = 0; level <= LEVELS; ++level) {
            Checkpoints.Trace208 storage node = tree.sums[level][index];
            // Below the token's supply, which has 90 bits.
            // slither-disable-next-line unused-return
            node.push(key, node.latest() - before + weight);
            index /= ARITY;
        }
        if (weight == 0) _leave(tree, owner, place);
    }

    /// @notice True for an owner with a place, which is one with a weight.
    function holds(StakeTree storage tree, address owner) internal view returns (bool) {
        return tree.placeOf[owner] != 0;
    }

    /// @notice The sum of all weights as of the end of a block.
    function totalAt(StakeTree storage tree, uint48 blockNumber) internal view returns (uint256) {
        return tree.sums[LEVELS][0].upperLookupRecent(blockNumber);
    }

    /// @notice Whose interval holds `point`, with owners one after another by place, as of the end of a block.
    /// @return owner the owner
    /// @return start where its interval begins
    /// @return weight how long it is
    function ownerAt(
        StakeTree storage tree,
        uint256 point,
        uint48 blockNumber
    ) internal view returns (address owner, uint256 start, uint96 weight) {
        uint256 total = totalAt(tree, blockNumber);
        if (point >= total) revert PointOutOfRange(point, total);
        uint256 index = 0;
        for (uint256 level = LEVELS; level > 0; --level) {
            index *= ARITY;
            weight = _weightAt(tree, level - 1, index, blockNumber);
            while (point >= start + weight) {
                start += weight;
                weight = _weightAt(tree, level - 1, ++index, blockNumber);
            }
        }
        owner = address(tree.owners[index].upperLookupRecent(blockNumber));
    }

    function _weightAt(
        StakeTree storage tree,
        uint256 level,
        uint256 index,
        uint48 blockNumber
    ) private view returns (uint96) {
        // At most the token's supply, which has 90 bits.
        return uint96(tree.sums[level][index].upperLookupRecent(blockNumber));
    }

    function _take(StakeTree storage tree, address owner) private returns (uint256 place) {
        uint256 left = tree.free.length;
        if (left != 0) {
            place = tree.free[left - 1];
            tree.free.pop();
        } else {
            place = ++tree.used;
            if (place > CAPACITY) revert StakeTreeFull(CAPACITY);
        }
        tree.placeOf[owner] = place;
        // slither-disable-next-line unused-return
        tree.owners[place - 1].push(uint96(block.number), uint160(owner));
    }

    function _leave(StakeTree storage tree, address owner, uint256 place) private {
        delete tree.placeOf[owner];
        tree.free.push(place);
    }
}
