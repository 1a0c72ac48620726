// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {IAssetRegistry} from "./interfaces/IAssetRegistry.sol";
import {IJobRecord} from "./interfaces/IJobRecord.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {LapBook, Laps} from "./libraries/Laps.sol";
import {Job} from "./types/Job.sol";
import {JobId, Mode, Phase} from "./types/Types.sol";

/// @title What TrainingJobs and its desk have in common: the storage, who they know, and the steps that both take
abstract contract JobStore is IJobRecord {
    using Laps for LapBook;

    /// @notice The token of escrow and rewards.
    IERC20 public immutable token;

    /// @notice Who may join.
    INodeRegistry public immutable registry;

    /// @notice What jobs may train with.
    IAssetRegistry public immutable assets;

    /// @notice The contract that scores rounds.
    address public immutable board;

    /// @notice The contract that settles rounds, pays rewards, and holds the escrow.
    address public immutable distributor;

    /// @notice How many jobs there are; they are numbered from 1.
    uint64 public jobCount;

    mapping(JobId id => Job) internal _jobs;

    constructor(
        IERC20 token_,
        INodeRegistry registry_,
        IAssetRegistry assets_,
        address board_,
        address distributor_
    ) {
        token = token_;
        registry = registry_;
        assets = assets_;
        board = board_;
        distributor = distributor_;
    }

    /// @dev Takes who was active in this round or the next out of those who are expected there. In COMMIT without a
    /// target, and in a lap, its absence is like that of one who stays silent.
    function _leave(Job storage job_, uint32 active) internal {
        if (active == 0 || job_.terms.mode == Mode.Chained) return;
        uint32 round = job_.round;
        bool counted = job_.terms.target != 0 || (job_.phase == Phase.Open && active == round);
        if (active > round) --job_.nextExpected;
        else if (counted) --job_.expected;
    }

    /// @dev Who acts: the sender, or the node that it is a delegate of.
    function _actor(Job storage job_) internal view returns (address) {
        return job_.members[msg.sender].payee != 0 ? msg.sender : registry.principalOf(msg.sender);
    }

    function _enter(JobId id, Job storage job_, Phase phase, uint32 window) internal {
        uint40 deadline = uint40(block.timestamp) + window;
        job_.phase = phase;
        job_.deadline = deadline;
        emit PhaseChanged(id, job_.round, phase, deadline);
    }

    function _openCommit(JobId id, Job storage job_) internal {
        if (job_.terms.mode == Mode.Chained) job_.laps.open(id, job_.round);
        _enter(id, job_, Phase.Commit, job_.terms.commitWindow);
        emit RoundOpened(id, job_.round, job_.model, job_.expected, job_.deadline);
        if (job_.terms.mode == Mode.Chained) _emitLease(id, job_);
    }

    function _emitLease(JobId id, Job storage job_) internal {
        uint32 position = job_.commits;
        emit HopLeased(id, job_.round, job_.laps.memberAt(job_.round, position), position, job_.deadline);
    }

    function _end(JobId id, Job storage job_, Phase phase) internal {
        job_.phase = phase;
        job_.deadline = 0;
        emit JobEnded(id, phase);
    }

    function _known(JobId id) internal view returns (Job storage job_) {
        job_ = _jobs[id];
        if (job_.phase == Phase.None) revert JobUnknown(id);
    }

    function _running(JobId id) internal view returns (Job storage job_) {
        job_ = _known(id);
        if (_ended(job_.phase)) revert WrongPhase(id, job_.phase);
    }

    function _checkInTime(JobId id, Job storage job_) internal view {
        if (block.timestamp >= job_.deadline) revert DeadlinePassed(id, job_.deadline);
    }

    function _ended(Phase phase) internal pure returns (bool) {
        return phase >= Phase.Completed;
    }
}
