// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {Job} from "../types/Job.sol";
import {JobId, JobTerms, Publication} from "../types/Types.sol";
import {Publications} from "./Publications.sol";

/// @title Which round may be settled when, and what of an escrow is nobody's any more
library Settling {
    using Publications for mapping(uint256 => Publication);

    /// @notice Returns the round's position among the published ones, if it may be settled now, but for its scores.
    function check(
        Job storage job,
        JobId id,
        uint32 round
    ) internal view returns (uint32 position, Publication memory own) {
        position = find(job, id, round);
        uint32 settled = job.settled;
        if (position < settled) revert IJobRecord.RoundPassed(id, round, job.published[settled - 1].round);
        if (position > settled) {
            // Times rise: if the round just before is past its window, all earlier ones are.
            Publication storage previous = job.published[position - 1];
            uint64 ahead = _until(job, previous.publishedAt);
            if (block.timestamp < ahead) revert IJobRecord.EarlierRoundOpen(id, round, previous.round, ahead);
        }
        own = job.published[position];
        uint64 until = _until(job, own.publishedAt);
        if (block.timestamp >= until) revert IJobRecord.SettleWindowPassed(id, round, until);
    }

    /// @notice Hands a settled round's money over.
    /// @param total the job's cumulative rewards up to and including this round, in wei
    function release(Job storage job, JobId id, uint32 position, uint128 total) internal returns (uint112 amount) {
        uint112 spent = job.spent;
        uint112 held = job.held;
        uint96 budget = job.terms.roundBudget;
        // Never less than the budget, but where more was claimed than was settled.
        uint256 most = uint256(spent) + (held < budget ? held : budget);
        if (total < spent || total > most) revert IJobRecord.TotalOutOfRange(id, total, spent, most);
        // Both at most the escrow, which has 112 bits.
        amount = uint112(total) - spent;
        job.settled = position + 1;
        job.held = held - amount;
        job.spent = uint112(total);
    }

    /// @notice Takes back what a round and those after it were handed; they may be settled again.
    /// @param amount what is left of it
    function retake(Job storage job, JobId id, uint32 round, uint112 previousTotal, uint112 amount) internal {
        job.settled = find(job, id, round);
        job.held += amount;
        job.spent = previousTotal;
        job.reopenedAt = uint40(block.timestamp);
    }

    /// @notice What is held, but for the budget of each published round that may still be settled.
    function refundable(Job storage job) internal view returns (uint256) {
        JobTerms storage terms = job.terms;
        uint32 count = job.completed;
        uint32 first = job.settled;
        uint256 reopened = job.reopenedAt;
        if (reopened == 0 || block.timestamp >= reopened + terms.settleWindow) {
            uint256 window = 2 * uint256(terms.scoreWindow) + terms.settleWindow;
            uint256 time = block.timestamp > window ? block.timestamp - window : 0;
            first = job.published.firstAfter(first, count, time);
        }
        uint256 reserved = uint256(count - first) * terms.roundBudget;
        uint256 held = job.held;
        return held < reserved ? 0 : held - reserved;
    }

    /// @notice The position of a round among the published ones.
    function find(Job storage job, JobId id, uint32 round) internal view returns (uint32 position) {
        bool found;
        (found, position) = job.published.find(job.completed, round);
        if (!found) revert IJobRecord.RoundNotPublished(id, round);
    }

    /// @dev When a round's window ends: after its scoring, or after what was settled before was overturned.
    function _until(Job storage job, uint40 publishedAt) private view returns (uint64 until) {
        uint32 window = job.terms.settleWindow;
        until = uint64(publishedAt) + 2 * uint64(job.terms.scoreWindow) + window;
        uint64 reopened = job.reopenedAt;
        if (reopened != 0 && reopened + window > until) until = reopened + window;
    }
}
