// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Seat} from "./Scores.sol";

/// @notice A panel as the ScoreBoard keeps it. Masks have a bit for each seat.
struct Panel {
    // Slot 0
    uint40 startedAt;
    uint40 drawBlock; // before the draw, 0 stands for the round's own
    uint24 window; // 0 before the draw
    uint8 seats;
    uint8 audits;
    uint8 datasets;
    uint32 contributions;
    uint32 payees; // one more than the highest payee number among those who committed
    uint16 committed;
    uint16 revealed;
    uint16 punished;
    uint16 penalized;
    // Slot 1
    bytes32 seed;
    mapping(uint256 seat => Seat) seatAt;
}
