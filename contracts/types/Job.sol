// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Entry} from "../libraries/Entries.sol";
import {LapBook} from "../libraries/Laps.sol";
import {Cid, JobTerms, Phase, Publication} from "./Types.sol";

/// @notice A job as TrainingJobs keeps it. Ordered so that a commit writes one slot of it, and so does a reveal.
struct Job {
    // Slot 0: whatever the course of a round changes.
    Phase phase;
    uint8 voids; // in a row
    bool cancelRequested;
    uint32 round;
    uint32 completed;
    uint40 deadline;
    uint32 expected;
    uint32 commits; // in a lap: places that had their turn
    uint32 reveals;
    uint32 nextExpected; // members of the next round so far; with a target, only those who come in addition
    // Slot 1
    address requester;
    uint32 draw;
    // Slot 2
    Cid model;
    // Slot 3: of the escrow, what is still here and what rounds earned; the rest was refunded.
    uint112 held;
    uint112 spent;
    uint32 settled; // published rounds that are settled or were passed over
    // Slots 4 to 7
    JobTerms terms;
    mapping(uint256 position => Publication) published;
    mapping(address node => uint32) activeRound;
    mapping(uint32 round => mapping(address node => Entry)) entries;
    // Chained: the lap's newest hop while it is not accepted, and who hops when.
    Cid candidate;
    LapBook laps;
}
