// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobTerms} from "../types/Types.sol";
import {Weights} from "./Weights.sol";

/// @title What a round pays to whom
/// @notice Each division rounds down on its own, so that no order of payees matters; what is left stays in escrow. Twin
/// of ledger/dfl_ledger/rewards.py.
library Rewards {
    using Weights for uint256;

    uint256 private constant WHOLE_BPS = 10_000;

    /// @notice A pot of so many basis points of a round's budget, in wei.
    function pot(uint256 budget, uint256 bps) internal pure returns (uint256) {
        return (budget * bps) / WHOLE_BPS;
    }

    /// @notice What the other pots leave of the budget: that of the contributions.
    function computePot(JobTerms memory terms) internal pure returns (uint256) {
        uint256 budget = terms.roundBudget;
        return
            budget -
            pot(budget, terms.dataBps) -
            pot(budget, terms.modelBps) -
            pot(budget, terms.algorithmBps) -
            pot(budget, terms.evaluatorBps);
    }

    /// @notice The part of a contribution: by its score, or equal parts if no score is positive.
    /// @param weight its packed weight
    /// @param all the sum of all weights
    function ofContribution(uint256 pot_, uint256 weight, uint256 all) internal pure returns (uint256) {
        if (all.compute() != 0) return (pot_ * weight.compute()) / all.compute();
        return weight.accepted() == 0 || all.accepted() == 0 ? 0 : pot_ / all.accepted();
    }

    /// @notice The part of a data set.
    function ofDataset(uint256 pot_, uint256 weight, uint256 all) internal pure returns (uint256) {
        return all.data() == 0 ? 0 : (pot_ * weight.data()) / all.data();
    }

    /// @notice The part of the model or the algorithm: the whole pot, if anything was accepted that was made with it.
    function ofTool(uint256 pot_, uint256 all) internal pure returns (uint256) {
        return all.accepted() == 0 ? 0 : pot_;
    }

    /// @notice The part of an evaluator that showed its scores.
    function ofEvaluator(uint256 pot_, uint256 seats) internal pure returns (uint256) {
        return pot_ / seats;
    }
}
