// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Publication} from "../types/Types.sol";

/// @title A job's published rounds, in order
/// @notice Rounds and times only rise, so that both are found by bisection: no walk over the rounds of a job.
/// Positions count from 0 to the number of published rounds.
library Publications {
    /// @notice Finds the position of a round among the first `count` published ones.
    /// @return found false if the round was not published
    function find(
        mapping(uint256 position => Publication) storage published,
        uint32 count,
        uint32 round
    ) internal view returns (bool found, uint32 position) {
        // The n-th published round is round n or later: without a void round, the first look hits.
        uint32 high = round < count ? round : count;
        if (high == 0) return (false, 0);
        if (published[high - 1].round == round) return (true, high - 1);
        uint32 low = 0;
        while (low < high) {
            uint32 middle = low + (high - low) / 2;
            uint32 seen = published[middle].round;
            if (seen == round) return (true, middle);
            if (seen < round) low = middle + 1;
            else high = middle;
        }
        return (false, 0);
    }

    /// @notice The first position, from `start` on, published after `time`; `count` if none was.
    function firstAfter(
        mapping(uint256 position => Publication) storage published,
        uint32 start,
        uint32 count,
        uint256 time
    ) internal view returns (uint32) {
        uint32 low = start;
        uint32 high = count;
        while (low < high) {
            uint32 middle = low + (high - low) / 2;
            if (published[middle].publishedAt > time) high = middle;
            else low = middle + 1;
        }
        return low;
    }
}
