// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Entry} from "../libraries/Entries.sol";
import {LapBook} from "../libraries/Laps.sol";
import {PayeeBook} from "../libraries/Payees.sol";
import {Cid, JobTerms, Phase, Publication} from "./Types.sol";

/// @notice What a job knows of an account. One storage slot.
struct Member {
    uint32 activeRound; // the round it may commit in, 0 if none, BANNED for good
    uint32 payee; // its number among the payees, from 1; 0 for whoever is none
    uint16 bans; // failed audits that stand
    bool declared; // what it trains on
}

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
    uint48 sealBlock; // in which AGGREGATE of the round opened
    // Slot 2
    Cid model;
    // Slot 3: of the escrow, what no round has earned yet and what rounds earned; the rest was refunded.
    uint112 held;
    uint112 spent;
    uint32 settled; // published rounds that are settled or were passed over
    // Slots 4 to 10
    JobTerms terms;
    // Slot 11
    bytes32 key; // of the last validation shard that is unsealed
    // Slot 12: who earns, and what else changes now and then.
    PayeeBook payees;
    uint32 unsealed;
    uint40 reopenedAt; // when a settlement was last overturned
    mapping(uint256 position => Publication) published;
    mapping(address account => Member) members;
    mapping(uint32 round => mapping(address node => Entry)) entries;
    mapping(uint32 round => bool) unrevealed; // rounds that ended in COMMIT: nobody could reveal
    // Chained: the lap's newest hop while it is not accepted, and who hops when.
    Cid candidate;
    LapBook laps;
}
