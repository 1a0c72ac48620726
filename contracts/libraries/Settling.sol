// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITrainingJobs} from "../interfaces/ITrainingJobs.sol";
import {Job} from "../types/Job.sol";
import {JobId, Publication} from "../types/Types.sol";
import {Publications} from "./Publications.sol";

/// @title Who may settle which round when, and what of an escrow is nobody's any more
library Settling {
    using Publications for mapping(uint256 => Publication);

    /// @notice Returns the round's position among the published ones, if `settler` may settle it now.
    function check(
        Job storage job,
        JobId id,
        uint32 round,
        address settler
    ) internal view returns (uint32 position) {
        bool found;
        (found, position) = job.published.find(job.completed, round);
        if (!found) revert ITrainingJobs.RoundNotPublished(id, round);
        uint32 settled = job.settled;
        if (position < settled) revert ITrainingJobs.RoundPassed(id, round, job.published[settled - 1].round);
        uint32 window = job.terms.settleWindow;
        if (position > settled) {
            // Times rise: if the round just before is past its window, all earlier ones are.
            Publication storage previous = job.published[position - 1];
            uint64 until = previous.publishedAt + window;
            if (block.timestamp < until) {
                revert ITrainingJobs.EarlierRoundOpen(id, round, previous.round, until);
            }
        }
        _checkSettler(id, job, round, settler, job.published[position], window);
    }

    /// @notice Returns what `total` adds to earlier settlements.
    function added(Job storage job, JobId id, uint128 total) internal view returns (uint128) {
        uint112 spent = job.spent;
        uint256 most = uint256(spent) + job.terms.roundBudget;
        if (total < spent || total > most) revert ITrainingJobs.TotalOutOfRange(id, total, spent, most);
        return total - spent;
    }

    /// @notice What is held, but for the budget of each published round that may still be settled.
    function refundable(Job storage job) internal view returns (uint256) {
        uint32 count = job.completed;
        uint256 window = job.terms.settleWindow;
        uint256 time = block.timestamp > window ? block.timestamp - window : 0;
        uint256 open = count - job.published.firstAfter(job.settled, count, time);
        return job.held - open * job.terms.roundBudget;
    }

    function _checkSettler(
        JobId id,
        Job storage job,
        uint32 round,
        address settler,
        Publication memory own,
        uint32 window
    ) private view {
        uint64 until = own.publishedAt + window;
        if (block.timestamp >= until) revert ITrainingJobs.SettleWindowPassed(id, round, until);
        if (settler == own.publisher) return;
        uint64 othersFrom = own.publishedAt + window / 2;
        if (block.timestamp < othersFrom || !job.entries[round][settler].isRevealed()) {
            revert ITrainingJobs.NotSettler(id, round, settler, othersFrom);
        }
    }
}
