// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice What the overturned settlements of a job leave behind: from which round on they made earlier ones void. Both
/// fields rise from entry to entry.
struct Cut {
    uint32 epoch; // that began with it
    uint32 round;
}

/// @title Which settlements an overturned one took with it
/// @notice A settlement falls with every earlier one that falls after it was made. Those may be many, so none is touched:
/// each remembers its epoch, and is void if any later cut lies at or before its round. A cut hides all earlier ones at or
/// beyond its own round, so that those that count rise in both fields, and both searches are bisections.
library Overturns {
    /// @notice Makes void what was settled up to now, from `round` on; `length` entries counted so far.
    /// @return how many count now
    function cut(
        mapping(uint256 index => Cut) storage cuts,
        uint32 length,
        uint32 epoch,
        uint32 round
    ) internal returns (uint32) {
        uint32 low = 0;
        uint32 high = length;
        while (low < high) {
            uint32 middle = low + (high - low) / 2;
            if (cuts[middle].round >= round) high = middle;
            else low = middle + 1;
        }
        cuts[low] = Cut(epoch, round);
        return low + 1;
    }

    /// @notice True if a settlement of this round and epoch fell with another.
    function isVoid(
        mapping(uint256 index => Cut) storage cuts,
        uint32 length,
        uint32 epoch,
        uint32 round
    ) internal view returns (bool) {
        uint32 low = 0;
        uint32 high = length;
        while (low < high) {
            uint32 middle = low + (high - low) / 2;
            if (cuts[middle].epoch > epoch) high = middle;
            else low = middle + 1;
        }
        return low < length && cuts[low].round <= round;
    }
}
