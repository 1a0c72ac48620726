// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Panel} from "../types/Panel.sol";
import {PanelPhase} from "../types/Scores.sol";

/// @title Where a panel stands, and what it judges
/// @notice A function of time and of who has delivered, so that nothing need be called for a panel to go on.
library Panels {
    /// @notice The phase of a panel whose clock started at `startedAt`.
    /// @param window of commitments, and as long again of reveals, in seconds
    function phase(Panel storage panel, uint256 startedAt, uint256 window) internal view returns (PanelPhase) {
        bool early = block.timestamp < startedAt + window;
        if (!isDrawn(panel)) return early ? PanelPhase.Commit : PanelPhase.Done;
        (uint256 committed, uint256 revealed) = (panel.committed, panel.revealed);
        if (early && committed != (1 << panel.seats) - 1) return PanelPhase.Commit;
        bool late = block.timestamp >= startedAt + 2 * window;
        return late || committed == revealed ? PanelPhase.Done : PanelPhase.Reveal;
    }

    /// @notice The phase of a panel that is drawn.
    function phase(Panel storage panel) internal view returns (PanelPhase) {
        return phase(panel, panel.startedAt, panel.window);
    }

    /// @notice True once the panel has its seats, if only none.
    function isDrawn(Panel storage panel) internal view returns (bool) {
        return panel.window != 0;
    }

    /// @notice Scores of one of the panel's vectors.
    /// @param number of the panel: 0 scores a round, the others are juries
    function subjects(Panel storage panel, uint8 number) internal view returns (uint32) {
        return number == 0 ? modelSubject(panel) + 1 : 1;
    }

    /// @notice The subject that an audit is, behind contributions and data sets.
    function auditSubject(Panel storage panel, uint8 audit) internal view returns (uint32) {
        return panel.contributions + panel.datasets + audit;
    }

    /// @notice The subject that the model is, behind the audits.
    function modelSubject(Panel storage panel) internal view returns (uint32) {
        return auditSubject(panel, panel.audits);
    }

    /// @notice True if the mask has the seat's bit.
    function has(uint16 mask, uint8 seat) internal pure returns (bool) {
        return (mask >> seat) & 1 == 1;
    }

    /// @notice The mask with the seat's bit.
    function with(uint16 mask, uint8 seat) internal pure returns (uint16) {
        return mask | (uint16(1) << seat);
    }

    /// @notice How many bits the mask has.
    function count(uint16 mask) internal pure returns (uint8 bits) {
        for (; mask != 0; mask &= mask - 1) ++bits;
    }
}
