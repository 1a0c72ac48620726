// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Cid, JobId, Kind} from "../types/Types.sol";

/// @notice What a node did in a round, in one storage slot: zero, then a commitment, then what was revealed, or 2 once it
/// was punished for not revealing.
/// @dev Bit 0 tells a commitment from a reveal: it is cleared in the one and set in the other, so that no choice of
/// commitment can pass for a revealed contribution. The other 255 bits of the hash still bind.
///
///     committed  hash[255:1] . 0, more than 2
///     revealed   samples[167:104] . kind[103:96] . index[63:32] . 1
type Entry is uint256;

using Entries for Entry global;

/// @title Commitments and what becomes of them
library Entries {
    /// @notice The entry of a node that did not reveal and was punished for it.
    Entry internal constant PUNISHED = Entry.wrap(2);

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

    /// @notice The entry of a commitment; zero or PUNISHED only for the commitments 0 to 3.
    function seal(bytes32 commitment) internal pure returns (Entry) {
        return Entry.wrap(uint256(commitment) & ~REVEALED);
    }

    /// @notice True for a commitment that can be the hash of something.
    function isHash(bytes32 commitment) internal pure returns (bool) {
        return uint256(commitment) > 3;
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

    /// @notice True while the node has committed and not revealed, and was not punished for that.
    function isSealed(Entry entry) internal pure returns (bool) {
        return Entry.unwrap(entry) > Entry.unwrap(PUNISHED) && !isRevealed(entry);
    }

    /// @notice True if this is the entry of the commitment.
    function seals(Entry entry, bytes32 commitment) internal pure returns (bool) {
        return Entry.unwrap(entry) == Entry.unwrap(seal(commitment));
    }

    /// @notice The place of a revealed contribution in the order of reveals, from 0.
    function index(Entry entry) internal pure returns (uint32) {
        return uint32(Entry.unwrap(entry) >> 32);
    }

    /// @notice The kind of a revealed contribution.
    function kindOf(Entry entry) internal pure returns (Kind) {
        return Kind(uint8(Entry.unwrap(entry) >> 96));
    }

    /// @notice The samples of a revealed contribution.
    function samplesOf(Entry entry) internal pure returns (uint64) {
        return uint64(Entry.unwrap(entry) >> 104);
    }
}
