// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice A score, its seat and the seat's weight in one word that sorts by score, then by seat.
///
///     score[255:192], moved up so that the least one is 0 . seat[191:184] . weight[95:0]
type Vote is uint256;

/// @title The stake-weighted medians
/// @notice The lower one: of scores in rising order, the first at which twice the weight so far reaches the weight of all.
/// The upper one: the same from above. Less than half of the weight cannot move either beyond the scores of the rest, half
/// of it can move one of the two. Twin of ledger/dfl_ledger/median.py.
library WeightedMedian {
    uint64 private constant SIGN = 1 << 63;

    /// @notice A seat's vote.
    function vote(int64 score, uint8 seat, uint96 weight) internal pure returns (Vote) {
        uint256 rising = uint64(score) ^ SIGN;
        return Vote.wrap((rising << 192) | (uint256(seat) << 184) | weight);
    }

    /// @notice The lower median of the first `count` votes, which it sorts; 0 if there are none.
    function median(Vote[] memory votes, uint256 count) internal pure returns (int64 lower) {
        (lower, ) = medians(votes, count);
    }

    /// @notice The lower and the upper median of the first `count` votes, which it sorts; 0 if there are none.
    /// @dev Insertion sort: there are at most 16. From above the weight reaches half at the same vote as it exceeds half from
    /// below.
    function medians(Vote[] memory votes, uint256 count) internal pure returns (int64 lower, int64 upper) {
        if (count == 0) return (0, 0);
        uint256 total = 0;
        for (uint256 i = 0; i < count; ++i) {
            Vote own = votes[i];
            total += weightOf(own);
            uint256 j = i;
            for (; j > 0 && Vote.unwrap(votes[j - 1]) > Vote.unwrap(own); --j) votes[j] = votes[j - 1];
            votes[j] = own;
        }
        uint256 soFar = weightOf(votes[0]);
        uint256 middle = 0;
        while (2 * soFar < total) soFar += weightOf(votes[++middle]);
        lower = scoreOf(votes[middle]);
        while (2 * soFar <= total && middle + 1 < count) soFar += weightOf(votes[++middle]);
        upper = scoreOf(votes[middle]);
    }

    /// @notice The score of a vote.
    function scoreOf(Vote own) internal pure returns (int64) {
        return int64(uint64(Vote.unwrap(own) >> 192) ^ SIGN);
    }

    /// @notice The weight of a vote.
    function weightOf(Vote own) internal pure returns (uint256) {
        return uint96(Vote.unwrap(own));
    }
}
