// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobId} from "../types/Types.sol";
import {LapOrder} from "./LapOrder.sol";

/// @notice The members of a job's laps, by round, and the seed of the current lap's order.
struct LapBook {
    bytes32 seed;
    mapping(uint32 round => address[]) members;
}

/// @title Laps of a chained job
library Laps {
    /// @notice A node takes part in a lap.
    function add(LapBook storage book, uint32 round, address node) internal {
        book.members[round].push(node);
    }

    /// @notice Draws the order of the lap that opens now.
    function open(LapBook storage book, JobId job, uint32 round) internal {
        bytes32 parentHash = blockhash(block.number - 1);
        book.seed = LapOrder.seed(block.prevrandao, parentHash, JobId.unwrap(job), round);
    }

    /// @notice Who comes at a position of the round's lap.
    function memberAt(LapBook storage book, uint32 round, uint32 position) internal view returns (address) {
        address[] storage members = book.members[round];
        return members[LapOrder.indexAt(book.seed, position, uint32(members.length))];
    }
}
