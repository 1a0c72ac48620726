// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Leaf, ProofStep} from "../types/Types.sol";

/// @title The Merkle-sum tree of a settlement
/// @notice Each node carries the sum of the cumulative rewards below it, bound into the hash of its parent.
///
///     leaf   H(0, account, asset, score, reward, cumulative)      sum = cumulative
///     inner  H(1, leftHash, leftSum, rightHash, rightSum)         sum = leftSum + rightSum
///
/// H is keccak256(abi.encode(..)). Leaves are sorted by (account, asset); an odd node at the end of a level moves up
/// as it is; a single leaf is its own root. Twin of ledger/dfl_ledger/merkle.py.
library SumTree {
    /// @notice Longest proof: 2^32 leaves.
    uint256 internal constant MAX_DEPTH = 32;

    /// @notice True if `proof` leads from `leaf` to exactly this root and total.
    /// @dev Every claim walks here, so each step is a hash over one piece of scratch memory: a quarter of the gas that
    /// abi.encode takes. The layout is that of abi.encode all the same; the tests build their trees with it.
    function verify(
        Leaf calldata leaf,
        ProofStep[] calldata proof,
        bytes32 root,
        uint128 total
    ) internal pure returns (bool) {
        if (proof.length > MAX_DEPTH) return false;
        bytes32 hash;
        uint256 sum = leaf.cumulative;
        uint256 overflow = 0;
        assembly ("memory-safe") {
            let scratch := mload(0x40)
            mstore(scratch, 0)
            calldatacopy(add(scratch, 0x20), leaf, 0xa0)
            hash := keccak256(scratch, 0xc0)

            mstore(scratch, 1)
            let end := add(proof.offset, mul(proof.length, 0x60))
            for { let step := proof.offset } lt(step, end) { step := add(step, 0x60) } {
                let siblingSum := calldataload(add(step, 0x20))
                // Left child at 0x20, right child at 0x60: hash, then sum.
                let isLeft := shl(6, iszero(iszero(calldataload(add(step, 0x40)))))
                let sibling := add(scratch, sub(0x60, isLeft))
                let own := add(scratch, add(0x20, isLeft))
                mstore(sibling, calldataload(step))
                mstore(add(sibling, 0x20), siblingSum)
                mstore(own, hash)
                mstore(add(own, 0x20), sum)
                hash := keccak256(scratch, 0xa0)
                sum := add(sum, siblingSum)
                // Neither a sum given nor one computed may have more than 128 bits.
                overflow := or(overflow, shr(128, or(siblingSum, sum)))
            }
        }
        return overflow == 0 && hash == root && sum == total;
    }
}
