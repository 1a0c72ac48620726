// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title What a score weighs, packed so that the sums of a ScoreTree add field by field
/// @notice
///
///     bits 0..111     weight in the compute pot: a contribution's score, if positive
///     bits 112..223   weight in the data pot: a data set's worth, if positive
///     bits 224..255   accepted contributions: all that were not refused
library Weights {
    /// @notice The score of what is no valid piece.
    int64 internal constant REFUSED = type(int64).min;

    uint256 private constant FIELD = type(uint112).max;

    /// @notice The weight of a contribution with this score.
    function ofContribution(int64 score) internal pure returns (uint256) {
        return score == REFUSED ? 0 : (1 << 224) | _positive(score);
    }

    /// @notice The weight of a data set of this worth.
    function ofDataset(int64 worth) internal pure returns (uint256) {
        return _positive(worth) << 112;
    }

    /// @notice Weight in the compute pot.
    function compute(uint256 weight) internal pure returns (uint256) {
        return weight & FIELD;
    }

    /// @notice Weight in the data pot.
    function data(uint256 weight) internal pure returns (uint256) {
        return (weight >> 112) & FIELD;
    }

    /// @notice Accepted contributions.
    function accepted(uint256 weight) internal pure returns (uint256) {
        return weight >> 224;
    }

    function _positive(int64 score) private pure returns (uint256) {
        return score > 0 ? uint64(score) : 0;
    }
}
