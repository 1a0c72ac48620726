// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice A job's number, counted from 1.
type JobId is uint64;

/// @notice The SHA2-256 digest of a UnixFS DAG-PB root; the CIDv1 is 0x01 0x70 0x12 0x20 ‖ digest.
type Cid is bytes32;

enum Mode {
    Sync,
    Async,
    Pipeline,
    Chained
}

enum Phase {
    None,
    Open,
    Commit,
    Reveal,
    Aggregate,
    Completed,
    Failed,
    Cancelled
}

/// @notice What a contribution is: an update, a lap's hop, a pipeline's stage, the record of who fed its round.
enum Kind {
    Update,
    Hop,
    Stage,
    Feed
}

/// @notice What the requester promises. Windows in seconds, money in wei of VNX, shares in basis points of a round's
/// budget. With a `target` so many commitments end COMMIT at once, and who has joined stays a member; with none it takes
/// those of all members.
struct JobTerms {
    Cid spec;
    Cid model;
    Mode mode;
    uint32 rounds;
    uint32 quorum;
    uint32 minNodes;
    uint32 openWindow;
    uint32 commitWindow;
    uint32 revealWindow;
    uint32 aggregateWindow;
    uint24 target;
    uint32 settleWindow;
    uint32 challengeWindow;
    uint96 roundBudget;
    uint96 requiredStake;
    /// What one offence costs: a reveal or a score withheld, an outlying score, a failed audit, a wrong settlement.
    uint96 bond;
    /// Of each of the two phases of scoring.
    uint32 scoreWindow;
    /// Seats of the score board; 0: nobody scores, equal shares.
    uint8 evaluators;
    /// Contributions audited a round; 0: a private job.
    uint8 audits;
    uint16 dataBps;
    uint16 modelBps;
    uint16 algorithmBps;
    uint16 evaluatorBps;
    uint64 modelAsset;
    uint64 algorithmAsset;
    /// 0: validation rows are public, else keccak256 of the first shard's key.
    bytes32 sealAnchor;
}

/// @notice A job as it stands, for readers off chain. `candidate` is a lap's newest hop while nobody has built on it,
/// zero if there is none.
struct JobState {
    address requester;
    JobTerms terms;
    Phase phase;
    uint32 round;
    uint32 completed;
    uint64 deadline;
    Cid model;
    uint32 expected;
    uint32 commits;
    uint32 reveals;
    uint32 draw;
    uint128 spent;
    uint128 refunded;
    Cid candidate;
}

/// @notice A round that ended with a model. One storage slot.
struct Publication {
    uint40 publishedAt;
    uint32 round;
    /// The block in which the last contribution was in: evaluators and audits are drawn from it.
    uint48 sealBlock;
    uint32 contributions;
    /// The publisher's place among the contributions.
    uint32 publisherIndex;
    /// How many payees the job had.
    uint32 payees;
}

/// @notice Who or what earns in a job: an account, or an asset (ERC-721), whose owner is paid. The other is zero.
struct Payee {
    address account;
    uint64 asset;
}

/// @notice A node as registered. `unbondAt` is 0 while bonded, else the second from which the stake may leave.
struct Node {
    bytes32 peerKey;
    uint128 stake;
    uint64 unbondAt;
    string[] bootAddrs;
}

/// @notice A bonded node that others may dial first.
struct BootNode {
    address node;
    bytes32 peerKey;
    string[] addrs;
}

/// @notice Which seats an evaluator takes. One storage slot.
struct SeatLimits {
    uint32 leastWindow;
    uint96 mostBond;
    uint48 since; // the block in which it said so, 0 if never
}
