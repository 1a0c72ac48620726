// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SumTree} from "./SumTree.sol";

/// @title The Merkle tree of a score vector
/// @notice Four scores make a word, the last one padded with zero bytes.
///
///     leaf    H(2, word)
///     inner   H(3, left, right)
///
/// H is keccak256(abi.encode(..)). The tree is perfect, with hash 0 at each place from the number of words up to the next
/// power of two. Twin of ledger/dfl_ledger/vectors.py.
library VectorTree {
    /// @notice Scores of a word.
    uint256 internal constant SCORES = 4;

    /// @notice Bytes of a score.
    uint256 internal constant SCORE_BYTES = 8;

    /// @notice The root over a vector; 0 for an empty one.
    /// @dev In memory, level by level, each written over the one below.
    function rootOf(bytes calldata vector) internal pure returns (bytes32 root) {
        assembly ("memory-safe") {
            let count := div(add(vector.length, 31), 32)
            let scratch := mload(0x40)
            let nodes := add(scratch, 0x60)
            mstore(scratch, 2)
            for { let i := 0 } lt(i, count) { i := add(i, 1) } {
                mstore(add(scratch, 0x20), calldataload(add(vector.offset, shl(5, i))))
                // Behind the vector, calldata goes on with something else.
                let end := sub(vector.length, shl(5, i))
                if lt(end, 32) {
                    let padding := shl(3, sub(32, end))
                    mstore(add(scratch, 0x20), shl(padding, shr(padding, mload(add(scratch, 0x20)))))
                }
                mstore(add(nodes, shl(5, i)), keccak256(scratch, 0x40))
            }
            mstore(scratch, 3)
            // What an absent node's hash is at this level.
            let absent := 0
            for {} gt(count, 1) {} {
                if and(count, 1) {
                    mstore(add(nodes, shl(5, count)), absent)
                    count := add(count, 1)
                }
                count := shr(1, count)
                for { let i := 0 } lt(i, count) { i := add(i, 1) } {
                    mcopy(add(scratch, 0x20), add(nodes, shl(6, i)), 0x40)
                    mstore(add(nodes, shl(5, i)), keccak256(scratch, 0x60))
                }
                mstore(add(scratch, 0x20), absent)
                mstore(add(scratch, 0x40), absent)
                absent := keccak256(scratch, 0x60)
            }
            if count { root := mload(nodes) }
        }
    }

    /// @notice True if `word` holds the score of `subject` in the vector of so many subjects with this root.
    function holds(
        bytes32 root,
        uint256 subjects,
        uint256 subject,
        bytes32 word,
        bytes32[] calldata proof
    ) internal pure returns (bool) {
        if (proof.length != SumTree.depthOf((subjects + SCORES - 1) / SCORES)) return false;
        uint256 place = subject / SCORES;
        bytes32 node;
        assembly ("memory-safe") {
            mstore(0x00, 2)
            mstore(0x20, word)
            node := keccak256(0x00, 0x40)
            let scratch := mload(0x40)
            mstore(scratch, 3)
            for { let i := 0 } lt(i, proof.length) { i := add(i, 1) } {
                let own := shl(5, and(shr(i, place), 1))
                mstore(add(add(scratch, 0x20), own), node)
                mstore(sub(add(scratch, 0x40), own), calldataload(add(proof.offset, shl(5, i))))
                node := keccak256(scratch, 0x60)
            }
        }
        return node == root;
    }

    /// @notice The score of a subject, in its word.
    function scoreIn(bytes32 word, uint256 subject) internal pure returns (int64) {
        return int64(uint64(uint256(word) >> (64 * (SCORES - 1 - (subject % SCORES)))));
    }
}
