// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Cid, JobId, JobState, Kind} from "../types/Types.sol";
import {IJobRecord} from "./IJobRecord.sol";

/// @title The rounds of jobs: contributions by commit and reveal, models, and what settled rounds take of the escrow
interface IJobRounds is IJobRecord {
    /// @notice Binds the caller to a contribution to the current round.
    /// @param commitment keccak256(abi.encode(uint64 job, uint32 round, bytes32 parent, bytes32 update, uint8 kind,
    /// uint64 samples, address node, bytes32 salt)), with what `reveal` is to show
    function commit(JobId job, uint32 round, bytes32 commitment) external;

    /// @notice Shows what the caller committed to, and so makes it a member of the next round.
    /// @param parent the model that the work started from: the job's current one, or in mode Async an earlier one
    function reveal(
        JobId job,
        uint32 round,
        Kind kind,
        Cid update,
        Cid parent,
        uint64 samples,
        bytes32 salt
    ) external;

    /// @notice Chained: passes the model on, while the lease is the caller's. The lap then goes to the next member.
    /// @param accept true if `model` was made from the lap's newest hop, which so becomes the job's model; false if it
    /// was made from the last accepted one
    function hop(JobId job, uint32 round, bool accept, Cid model, uint64 samples) external;

    /// @notice Ends the round with a model; a lap with its last hop's, or with the last accepted one. The drawn
    /// contributor may from the start of AGGREGATE, the next ones in line a quarter of the window later each.
    function publishModel(JobId job, uint32 round, Cid model) external;

    /// @notice Ends a phase whose deadline has come. Anyone may.
    function advance(JobId job) external;

    /// @notice Hands a settled round's money to the distributor, which alone may call.
    /// @param total the job's cumulative rewards up to and including this round, in wei
    /// @return amount what is handed over: total minus what earlier rounds paid
    /// @return claimableAt Unix seconds when the challenge window ends
    /// @return payees the least number of payees that the settlement has to have
    /// @return requiredStake what a settler needs to have at stake, in wei
    function release(
        JobId job,
        uint32 round,
        uint128 total
    ) external returns (uint112 amount, uint40 claimableAt, uint32 payees, uint96 requiredStake);

    /// @notice Takes the money of an overturned settlement, and of those after it, back. The distributor alone may call.
    /// @param previousTotal what the rounds before paid
    /// @param amount what comes back, in wei: less than these settlements were handed if earlier ones, which contradict
    /// each other, were paid out of it
    function retake(JobId job, uint32 round, uint112 previousTotal, uint112 amount) external;

    /// @notice A job as it stands; phase None if unknown.
    function job(JobId id) external view returns (JobState memory);

    /// @notice The round a node may commit in, 0 if it never joined.
    function activeRound(JobId job, address node) external view returns (uint32);

    /// @notice True once a node's commitment, or what it revealed, is recorded for the round.
    function committed(JobId job, uint32 round, address node) external view returns (bool);

    /// @notice True once a node revealed its contribution to the round.
    function revealed(JobId job, uint32 round, address node) external view returns (bool);

    /// @notice Unix seconds from which the node may publish the current round's model, 0 if never.
    function mayAggregateAt(JobId job, address node) external view returns (uint64);

    /// @notice Chained: whose hop is next, at which position of the lap, and until when; all zero if no lap runs.
    function lease(JobId job) external view returns (address node, uint32 position, uint64 until);
}
