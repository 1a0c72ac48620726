// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {IRewardDistributor} from "./interfaces/IRewardDistributor.sol";
import {ITrainingJobs} from "./interfaces/ITrainingJobs.sol";
import {SumTree} from "./libraries/SumTree.sol";
import {Cid, JobId, Leaf, ProofStep, Settlement} from "./types/Types.sol";

/// @title Settles rounds and pays claims
/// @notice See interfaces/IRewardDistributor.sol
contract RewardDistributor is IRewardDistributor {
    using SafeERC20 for IERC20;

    /// @notice The token that rewards are paid in.
    IERC20 public immutable token;

    /// @notice The jobs whose rounds are settled here.
    ITrainingJobs public immutable jobs;

    /// @inheritdoc IRewardDistributor
    mapping(JobId job => uint256) public unclaimed;

    /// @inheritdoc IRewardDistributor
    mapping(JobId job => mapping(address account => mapping(uint256 asset => uint256))) public claimed;

    mapping(JobId job => mapping(uint32 round => Settlement)) private _settlements;

    /// @dev Created by the jobs contract itself, so that the two know each other from birth.
    constructor(IERC20 token_) {
        token = token_;
        jobs = ITrainingJobs(msg.sender);
    }

    /// @inheritdoc IRewardDistributor
    function settle(JobId job, uint32 round, bytes32 root, uint128 total, Cid evidence) external {
        // Whether, when and by whom the round may be settled, and for how much, is decided where the round is kept.
        (uint128 amount, uint64 claimableAt) = jobs.release(job, round, msg.sender, total);
        _settlements[job][round] = Settlement(root, evidence, total, claimableAt);
        unclaimed[job] += amount;
        emit Settled(job, round, msg.sender, root, total, evidence, claimableAt);
    }

    /// @inheritdoc IRewardDistributor
    function claim(
        JobId job,
        uint32 round,
        Leaf calldata leaf,
        ProofStep[] calldata proof
    ) external returns (uint256 amount) {
        _checkLeaf(job, round, leaf, proof);
        amount = _take(job, leaf);
        emit Claimed(job, round, leaf.account, leaf.asset, amount);
        token.safeTransfer(leaf.account, amount);
    }

    /// @inheritdoc IRewardDistributor
    function settlement(JobId job, uint32 round) external view returns (Settlement memory) {
        return _settlements[job][round];
    }

    function _checkLeaf(JobId job, uint32 round, Leaf calldata leaf, ProofStep[] calldata proof) private view {
        Settlement storage settled = _settlements[job][round];
        (uint128 total, uint64 claimableAt) = (settled.total, settled.claimableAt);
        if (claimableAt == 0) revert NotSettled(job, round);
        if (block.timestamp < claimableAt) revert NotClaimableYet(job, round, claimableAt);
        if (!SumTree.verify(leaf, proof, settled.root, total)) {
            revert InvalidProof(job, round, leaf.account, leaf.asset);
        }
    }

    /// @dev A job's claims never exceed its own settlements, even if those contradict each other.
    function _take(JobId job, Leaf calldata leaf) private returns (uint256 amount) {
        mapping(uint256 asset => uint256) storage paid = claimed[job][leaf.account];
        uint256 before = paid[leaf.asset];
        if (leaf.cumulative <= before) revert NothingToClaim(job, leaf.account, leaf.asset);
        amount = leaf.cumulative - before;
        uint256 left = unclaimed[job];
        if (amount > left) revert JobFundsExceeded(job, amount, left);
        unclaimed[job] = left - amount;
        paid[leaf.asset] = leaf.cumulative;
    }
}
