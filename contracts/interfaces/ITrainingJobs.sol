// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobDesk} from "./IJobDesk.sol";
import {IJobRounds} from "./IJobRounds.sol";

/// @title Jobs: escrow, rounds, and contributions by commit and reveal
/// @notice A job goes OPEN -> COMMIT -> REVEAL -> AGGREGATE, round after round. A phase takes what belongs to it
/// before its deadline; from the deadline on, anyone may end it with `advance`. It ends earlier once everybody
/// expected has delivered. A round without quorum or without a model is void: it costs nothing and does not count.
///
/// Members: with no target, who reveals is a member of the next round, and all others join again. With a target, who
/// has joined once stays a member, and that many commitments (or those of all members, if they are fewer) end COMMIT.
///
/// In mode Chained a round is a lap: in COMMIT the members hold a lease one after another, in an order drawn anew for
/// each lap, and `hop` takes the place of commit and reveal. Who misses its lease is no member until it joins again. A
/// hop that the next one builds on becomes the job's model at once, and stays it even if the lap is void in the end.
interface ITrainingJobs is IJobRounds, IJobDesk {
    /// @notice How many jobs there are; they are numbered from 1.
    function jobCount() external view returns (uint64);

    /// @notice The contract that settles rounds, pays rewards, and holds the escrow.
    function distributor() external view returns (address);

    /// @notice The contract that scores rounds.
    function board() external view returns (address);
}
