// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Cid, JobId, Leaf, ProofStep, Settlement} from "../types/Types.sol";

/// @title Settlements and claims
/// @notice A round's settlement is one root, however many it pays. Rewards are cumulative over the job, so that one
/// claim pays for every round settled so far.
interface IRewardDistributor {
    /// @notice A round was settled. `total` is the sum of cumulative rewards; `evidence` holds every leaf.
    event Settled(
        JobId indexed job,
        uint32 indexed round,
        address indexed settler,
        bytes32 root,
        uint128 total,
        Cid evidence,
        uint64 claimableAt
    );

    /// @notice An account was paid for its work (asset 0) or for an asset of its own.
    event Claimed(
        JobId indexed job,
        uint32 indexed round,
        address indexed account,
        uint256 asset,
        uint256 amount
    );

    /// @notice The round has no settlement.
    error NotSettled(JobId job, uint32 round);

    /// @notice The settlement may be challenged until `claimableAt`.
    error NotClaimableYet(JobId job, uint32 round, uint64 claimableAt);

    /// @notice The proof does not lead from the leaf to the settlement's root and total.
    error InvalidProof(JobId job, uint32 round, address account, uint256 asset);

    /// @notice The leaf's cumulative reward was paid before.
    error NothingToClaim(JobId job, address account, uint256 asset);

    /// @notice The job's settlements contradict each other and pay out more than they brought in.
    error JobFundsExceeded(JobId job, uint256 amount, uint256 left);

    /// @notice Settles a published round. Rounds are settled in rising order, within the settle window.
    /// @param root of the Merkle-sum tree over the leaves, see libraries/SumTree.sol
    /// @param total the tree's sum: cumulative rewards of the job, in wei, up to and including this round
    /// @param evidence the file with every leaf
    function settle(JobId job, uint32 round, bytes32 root, uint128 total, Cid evidence) external;

    /// @notice Pays leaf.account what its cumulative reward exceeds its earlier claims by. Anyone may send it.
    /// @return amount wei of VNX paid
    function claim(
        JobId job,
        uint32 round,
        Leaf calldata leaf,
        ProofStep[] calldata proof
    ) external returns (uint256 amount);

    /// @notice A round's settlement; all zero if there is none.
    function settlement(JobId job, uint32 round) external view returns (Settlement memory);

    /// @notice Wei of VNX an account has claimed from a job so far, for an asset (0: its own work).
    function claimed(JobId job, address account, uint256 asset) external view returns (uint256);

    /// @notice Wei of VNX of a job's settlements that nobody has claimed yet.
    function unclaimed(JobId job) external view returns (uint256);
}
