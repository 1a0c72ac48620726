// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

import {Leaf, ProofStep, ScoreLeaf, Tree} from "../types/Rewards.sol";

/// @title The two sum trees of a settlement
/// @notice Each node carries the sum of what is below it, bound into the hash of its parent.
///
///     RewardTree  leaf   H(0, account, asset, score, reward, cumulative)     sum = cumulative
///                 inner  H(1, leftHash, leftSum, rightHash, rightSum)        sum = leftSum + rightSum, below 2^128
///     ScoreTree   leaf   H(4, score, weight)                                 sum = weight
///                 inner  H(5, leftHash, leftSum, rightHash, rightSum)        sum = leftSum + rightSum, field by field
///
/// H is keccak256(abi.encode(..)). Both are perfect binary trees: a leaf stands at its place (the payee's number, the
/// subject), and (hash 0, sum 0) at each place from their number up to the next power of two. A single leaf is its own
/// root. The fields of a ScoreTree's sums are those of libraries/Weights.sol; none may carry into the next. Twin of
/// ledger/dfl_ledger/merkle.py.
library SumTree {
    /// @notice The place of a proof that is none: a sum overflows on the way.
    uint256 internal constant NOWHERE = type(uint256).max;

    /// @dev The highest bit of each field of a weight.
    uint256 private constant WEIGHT_TOPS = (1 << 111) | (1 << 223) | (1 << 255);

    /// @notice Levels above the leaves of a tree with so many of them.
    function depthOf(uint256 leaves) internal pure returns (uint256) {
        return leaves < 2 ? 0 : Math.log2(leaves - 1) + 1;
    }

    /// @notice True if a tree with so many leaves has this depth: what depthOf says, for less gas.
    function isDepth(uint256 leaves, uint256 depth) internal pure returns (bool) {
        unchecked {
            return depth == 0 ? leaves < 2 : leaves > 1 && (leaves - 1) >> (depth - 1) == 1;
        }
    }

    /// @notice The hash of a RewardTree's leaf.
    /// @dev Of the words as they stand in calldata; the layout is that of abi.encode.
    function hash(Leaf calldata leaf) internal pure returns (bytes32 digest) {
        assembly ("memory-safe") {
            let scratch := mload(0x40)
            mstore(scratch, 0)
            calldatacopy(add(scratch, 0x20), leaf, 0xa0)
            digest := keccak256(scratch, 0xc0)
        }
    }

    /// @notice The hash of a ScoreTree's leaf.
    function hash(ScoreLeaf calldata leaf) internal pure returns (bytes32 digest) {
        assembly ("memory-safe") {
            let scratch := mload(0x40)
            mstore(scratch, 4)
            calldatacopy(add(scratch, 0x20), leaf, 0x40)
            digest := keccak256(scratch, 0x60)
        }
    }

    /// @notice Follows a proof from a node of the tree to its root.
    /// @dev Every claim climbs here, so each step is a hash over one piece of scratch memory: a quarter of the gas that
    /// abi.encode takes. The layout is that of abi.encode all the same; the tests build their trees with it.
    /// @return root the root's hash
    /// @return total the root's sum
    /// @return place the node's place among those of its level, or NOWHERE
    function climb(
        Tree tree,
        bytes32 node,
        uint256 sum,
        ProofStep[] calldata proof
    ) internal pure returns (bytes32 root, uint256 total, uint256 place) {
        uint256 carries = 0;
        root = node;
        total = sum;
        assembly ("memory-safe") {
            let scratch := mload(0x40)
            mstore(scratch, add(1, shl(2, tree)))
            let step := proof.offset
            for { let i := 0 } lt(i, proof.length) { i := add(i, 1) } {
                let siblingSum := calldataload(add(step, 0x20))
                {
                    let isLeft := iszero(iszero(calldataload(add(step, 0x40))))
                    place := or(place, shl(i, isLeft))
                    // Left child at 0x20, right child at 0x60: hash, then sum.
                    isLeft := shl(6, isLeft)
                    let own := add(scratch, add(0x20, isLeft))
                    mstore(own, root)
                    mstore(add(own, 0x20), total)
                    let sibling := add(scratch, sub(0x60, isLeft))
                    mstore(sibling, calldataload(step))
                    mstore(add(sibling, 0x20), siblingSum)
                }
                root := keccak256(scratch, 0xa0)
                let above := add(total, siblingSum)
                // A bit carries where both have it, or one has it and the sum has not.
                carries := or(carries, or(and(total, siblingSum), and(or(total, siblingSum), not(above))))
                total := above
                step := add(step, 0x60)
            }
        }
        // While nothing carries out of the word, sums only grow, so that the last one tells for all.
        if (tree == Tree.Reward ? (carries >> 255) | (total >> 128) != 0 : carries & WEIGHT_TOPS != 0) {
            place = NOWHERE;
        }
    }

    /// @notice The sum of two children, and whether it may stand in the tree.
    function add(Tree tree, uint256 left, uint256 right) internal pure returns (uint256 sum, bool sound) {
        unchecked {
            sum = left + right;
        }
        uint256 carries = (left & right) | ((left | right) & ~sum);
        sound = tree == Tree.Reward ? (carries >> 255) | (sum >> 128) == 0 : carries & WEIGHT_TOPS == 0;
    }
}
