// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobId, JobTerms, Kind, Payee, Publication} from "../types/Types.sol";
import {IJobRecord} from "./IJobRecord.sol";

/// @title Jobs and their members, from the first promise to the last refund
interface IJobDesk is IJobRecord {
    /// @notice Opens a job; pulls rounds * roundBudget wei of VNX, which the caller must have approved.
    function createJob(JobTerms calldata terms) external returns (JobId job);

    /// @notice The same, with the approval (EIP-2612) in the same transaction.
    /// @dev If somebody else has used the permit already, the approval is there all the same.
    function createJobWithPermit(
        JobTerms calldata terms,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external returns (JobId job);

    /// @notice Takes part: in OPEN in the current round, else from the next one on.
    function join(JobId job) external;

    /// @notice The same, and declares what the node trains on: once for a job, it holds for later joins too.
    /// @param datasets assets that the node may use, at most 8, and 64 in the job
    /// @param shard commitment to the rows; must not be 0 in a job with audits
    function joinWith(JobId job, uint64[] calldata datasets, bytes32 shard) external;

    /// @notice Ends the caller's job: at once while its first round is OPEN, else with the current round.
    function cancel(JobId job) external;

    /// @notice Pays back to the requester what no round earned or can still earn. Anyone may, again and again.
    function refund(JobId job) external returns (uint256 amount);

    /// @notice Publishes the key of the next validation shard. Anyone who has it may, once COMMIT of the round that is
    /// to be scored on it has closed. Keys are a chain: each is the preimage of the one before.
    function unseal(JobId job, uint32 position, bytes32 key) external;

    /// @notice Takes the bond of a node that committed and did not reveal while it could. Anyone may, once.
    function punish(JobId job, uint32 round, address node) external;

    /// @notice Ends the membership of a node that has less stake than the job asks for. Anyone may.
    function expel(JobId job, address node) external;

    /// @notice Gives an evaluator a number among the payees, unless it has one. The score board alone may call.
    function seat(JobId job, address account) external returns (uint32 index);

    /// @notice Shuts a node that failed an audit out of the job. The score board alone may call.
    function ban(JobId job, address node) external;

    /// @notice Takes a ban back; once no other stands, the node may join again. The score board alone may call.
    function unban(JobId job, address node) external;

    /// @notice A job's terms; all zero if unknown.
    function terms(JobId job) external view returns (JobTerms memory);

    /// @notice What a node revealed in a round; `index` counts the round's contributions from 0.
    function contribution(
        JobId job,
        uint32 round,
        address node
    ) external view returns (bool revealed, uint32 index, Kind kind, uint64 samples);

    /// @notice A round that ended with a model; all zero if it did not.
    function publication(JobId job, uint32 round) external view returns (Publication memory);

    /// @notice The published round at a position, which counts from 0; all zero beyond the last.
    function publicationAt(JobId job, uint32 position) external view returns (Publication memory);

    /// @notice The position of a round among the published ones.
    function position(JobId job, uint32 round) external view returns (bool found, uint32 position);

    /// @notice Who or what can earn in the job; they are numbered from 0.
    function payeeCount(JobId job) external view returns (uint32);

    /// @notice The payee with this number; all zero if there is none.
    function payee(JobId job, uint32 index) external view returns (Payee memory);

    /// @notice The number of an account among the payees.
    function payeeOf(JobId job, address account) external view returns (bool found, uint32 index);

    /// @notice The number of an asset among the payees.
    function payeeOfAsset(JobId job, uint64 asset) external view returns (bool found, uint32 index);

    /// @notice How many data sets the job's members have declared.
    function datasetCount(JobId job) external view returns (uint32);

    /// @notice The data set at a place, which counts from 0; 0 beyond the last.
    function dataset(JobId job, uint32 place) external view returns (uint64 asset);

    /// @notice The place of an asset among the job's data sets.
    function datasetPlace(JobId job, uint64 asset) external view returns (bool found, uint32 place);

    /// @notice How many shards are unsealed, and the last key: the seal's anchor before the first one.
    function unsealed(JobId job) external view returns (uint32 count, bytes32 key);

    /// @notice Wei of the job's escrow that `refund` would pay back now.
    function refundable(JobId job) external view returns (uint256);
}
