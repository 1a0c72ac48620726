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

/// @notice What the requester promises. Windows in seconds, money in wei of VNX. With a `target` so many commitments
/// end COMMIT at once, and who has joined stays a member; with none it takes those of all members.
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
    address publisher;
    uint40 publishedAt;
    uint32 round;
}

/// @notice What a round paid: the root and the sum of the Merkle-sum tree over its leaves. Three storage slots.
struct Settlement {
    bytes32 root;
    Cid evidence;
    uint128 total;
    uint64 claimableAt;
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

/// @notice One line of a settlement. `cumulative` covers the job up to and including the round.
struct Leaf {
    address account;
    uint256 asset;
    int128 score;
    uint128 reward;
    uint128 cumulative;
}

/// @notice A sibling on the way from a leaf to the root of a Merkle-sum tree.
struct ProofStep {
    bytes32 hash;
    uint128 sum;
    bool isLeft;
}
