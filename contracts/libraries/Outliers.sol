// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Weights} from "./Weights.sol";

/// @title When a score is too far from the median
/// @notice Honest evaluators measure on the same rows and differ by rounding only; the tolerance is far wider than that,
/// and relative where scores are large. Twin of ledger/dfl_ledger/median.py.
library Outliers {
    /// @notice What any score may differ by, in 1e-9 of loss.
    uint256 internal constant TOLERANCE_ABS = 1_000_000;

    /// @notice The part of the median that a score may differ by.
    uint256 internal constant TOLERANCE_DIV = 4;

    /// @notice True for a score beyond the tolerance.
    function isOutlier(int64 score, int64 median) internal pure returns (bool) {
        if ((score == Weights.REFUSED) != (median == Weights.REFUSED)) return true;
        uint256 relative = _size(median) / TOLERANCE_DIV;
        return _size(int256(score) - median) > (relative > TOLERANCE_ABS ? relative : TOLERANCE_ABS);
    }

    function _size(int256 value) private pure returns (uint256) {
        return uint256(value < 0 ? -value : value);
    }
}
