// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice Four scores of a revealed vector, proven against its root.
struct Word {
    uint8 seat;
    bytes32 word;
    bytes32[] proof;
}

enum PanelPhase {
    None,
    Commit,
    Reveal,
    Done
}

/// @notice A panel as it stands, for readers off chain. Before the draw, `contributions` and `audits` are those it would
/// have, and `datasets`, `seats` and `seed` are 0.
struct PanelState {
    PanelPhase state;
    uint8 seats;
    uint16 committed;
    uint16 revealed;
    uint32 subjects;
    uint32 contributions;
    uint32 datasets;
    uint8 audits;
    uint64 commitUntil;
    uint64 revealUntil;
    bytes32 seed;
}

/// @notice A seat of a panel as it stands. `root` is the commitment, and once revealed the Merkle root of the scores.
struct Seat {
    address evaluator;
    uint96 weight;
    bytes32 root;
}

/// @notice A failed audit: who is banned for it, until when it may appeal, and what became of it.
struct Audit {
    address node;
    uint40 appealUntil;
    bool appealed;
    bool decided;
}
