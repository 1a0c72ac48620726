// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITrainingJobs} from "../interfaces/ITrainingJobs.sol";
import {Cid, JobTerms, Mode} from "../types/Types.sol";

/// @title What a requester may promise
library Terms {
    /// @notice Longest window, in seconds.
    uint256 internal constant MAX_WINDOW = 30 days - 1;

    /// @notice Checks a job's terms.
    /// @return escrow rounds * roundBudget, in wei
    function check(JobTerms calldata terms) internal pure returns (uint112 escrow) {
        if (Cid.unwrap(terms.spec) == 0) revert ITrainingJobs.TermOutOfRange("spec", 0, 1, type(uint256).max);
        _within("rounds", terms.rounds, 1, type(uint32).max);
        _within("quorum", terms.quorum, 1, type(uint32).max);
        _within("minNodes", terms.minNodes, terms.quorum, type(uint32).max);
        if (terms.mode == Mode.Chained || (terms.mode == Mode.Sync && terms.target == 0)) {
            _within("target", terms.target, 0, 0);
        } else {
            uint256 most = terms.minNodes < type(uint24).max ? terms.minNodes : type(uint24).max;
            _within("target", terms.target, terms.quorum, most);
        }
        _within("openWindow", terms.openWindow, 1, MAX_WINDOW);
        _within("commitWindow", terms.commitWindow, 1, MAX_WINDOW);
        _within("revealWindow", terms.revealWindow, 1, MAX_WINDOW);
        _within("aggregateWindow", terms.aggregateWindow, 1, MAX_WINDOW);
        // Two, so that the publisher has a second of its own, and so have the others.
        _within("settleWindow", terms.settleWindow, 2, MAX_WINDOW);
        _within("challengeWindow", terms.challengeWindow, 1, MAX_WINDOW);
        _within("roundBudget", terms.roundBudget, 1, type(uint112).max / terms.rounds);
        return uint112(terms.rounds) * terms.roundBudget;
    }

    function _within(string memory term, uint256 value, uint256 least, uint256 most) private pure {
        if (value < least || value > most) revert ITrainingJobs.TermOutOfRange(term, value, least, most);
    }
}
