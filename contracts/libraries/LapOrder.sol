// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Who hops when in a lap
/// @notice A swap-or-not shuffle (Hoang, Morris and Rogaway 2012, doi:10.1007/978-3-642-32009-5_1), as in Ethereum's
/// consensus specification (`compute_shuffled_index`): one place of the permutation costs ROUNDS times two hashes,
/// whatever the number of members, and nothing need be stored. ledger/dfl_ledger/lap_order.py is its twin.
library LapOrder {
    /// @notice Enough for laps of up to thousands of members; Ethereum takes 90 for a million validators.
    uint8 internal constant ROUNDS = 24;

    /// @notice The seed of a lap's order.
    /// @param randao the beacon chain's randomness
    /// @param parentHash the previous block's hash, for chains whose randomness is constant
    function seed(uint256 randao, bytes32 parentHash, uint64 job, uint32 round) internal pure returns (bytes32) {
        return keccak256(abi.encode(randao, parentHash, job, round));
    }

    /// @notice The index of the member who comes at `position`, which lies below `n`.
    function indexAt(bytes32 seed_, uint32 position, uint32 n) internal pure returns (uint32) {
        uint256 index = position;
        for (uint8 round = 0; round < ROUNDS; ++round) {
            uint256 pivot = uint256(keccak256(abi.encodePacked(seed_, round))) % n;
            uint256 flip = (pivot + n - index) % n;
            uint256 higher = index > flip ? index : flip;
            // At most n, which has 32 bits.
            bytes32 draw = keccak256(abi.encodePacked(seed_, round, uint32(higher)));
            if (uint256(draw) & 1 == 1) index = flip;
        }
        return uint32(index);
    }
}
