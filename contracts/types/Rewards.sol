// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobId} from "./Types.sol";

/// @notice What a round paid. Three storage slots.
struct Settlement {
    /// Of the RewardTree, see libraries/SumTree.sol.
    bytes32 root;
    /// keccak256 of the ABI encoding of the Opening.
    bytes32 digest;
    /// The RewardTree's sum.
    uint112 total;
    uint40 claimableAt;
    /// Leaves of the RewardTree.
    uint32 payees;
    /// The round settled before this one, 0 if none was: this one's rewards add to that one's.
    uint32 previousRound;
    /// One more than how many settlements of the job had been overturned by then.
    uint32 epoch;
}

/// @notice What a settlement keeps as a hash only, and who challenges it shows.
struct Opening {
    bytes32 scoreRoot;
    uint256 weights;
    address settler;
}

/// @notice One line of a settlement. `cumulative` covers the job up to and including the round.
struct Leaf {
    address account;
    uint256 asset;
    int128 score;
    uint128 reward;
    uint128 cumulative;
}

/// @notice One line of a settlement's ScoreTree: what a contribution or a data set is worth, and its packed weight.
struct ScoreLeaf {
    int64 score;
    uint256 weight;
}

/// @notice A sibling on the way from a leaf to the root of a sum tree.
struct ProofStep {
    bytes32 hash;
    uint256 sum;
    bool isLeft;
}

/// @notice A claim among many.
struct ClaimRequest {
    JobId job;
    uint32 round;
    Leaf leaf;
    ProofStep[] proof;
}

/// @notice Which of a settlement's two trees.
enum Tree {
    Reward,
    Score
}

/// @notice Why a settlement was overturned: a wrong score, a wrong reward, a wrong cumulative reward, a tree that is none,
/// evidence withheld.
enum Fault {
    Score,
    Reward,
    Cumulative,
    Tree,
    Withheld
}
