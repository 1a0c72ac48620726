// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Cid, JobId, Kind} from "../types/Types.sol";

/// @notice What a node did in a round, in one storage slot: zero, then a commitment, then what was revealed.
/// @dev Bit 0 tells the last two apart: it is cleared in a commitment and set once revealed, so that no choice of
/// commitment can pass for a revealed contribution. The other 255 bits of the hash still bind.
///
///     committed  hash[255:1] . 0
///     revealed   samples[167:104] . kind[103:96] . index[63:32] . 1
type Entry is uint256;

using Entries for Entry global;

/// @title Commitments and what becomes of them
library Entries {
    uint256 private constant REVEALED = 1;

    /// @notice The hash a node commits to. The node's address is inside: a copied commitment is worthless.
    function hash(
        JobId job,
        uint32 round,
        Cid parent,
        Cid update,
        Kind kind,
        uint64 samples,
        address node,
        bytes32 salt
    ) internal pure returns (bytes32) {
        return keccak256(abi.encode(job, round, parent, update, kind, samples, node, salt));
    }

    /// @notice The entry of a commitment; zero only for the commitments 0 and 1.
    function seal(bytes32 commitment) internal pure returns (Entry) {
        return Entry.wrap(uint256(commitment) & ~REVEALED);
    }

    /// @notice The entry of a revealed contribution.
    function open(Kind kind, uint32 place, uint64 samples) internal pure returns (Entry) {
        return Entry.wrap((uint256(samples) << 104) | (uint256(kind) << 96) | (uint256(place) << 32) | REVEALED);
    }

    /// @notice True before the node did anything.
    function isEmpty(Entry entry) internal pure returns (bool) {
        return Entry.unwrap(entry) == 0;
    }

    /// @notice True once the node revealed.
    function isRevealed(Entry entry) internal pure returns (bool) {
        return Entry.unwrap(entry) & REVEALED != 0;
    }

    /// @notice True if this is the entry of the commitment.
    function seals(Entry entry, bytes32 commitment) internal pure returns (bool) {
        return Entry.unwrap(entry) == Entry.unwrap(seal(commitment));
    }

    /// @notice The place of a revealed contribution in the order of reveals, from 0.
    function index(Entry entry) internal pure returns (uint32) {
        return uint32(Entry.unwrap(entry) >> 32);
    }
}
