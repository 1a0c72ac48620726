// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ProofStep, Tree} from "../types/Rewards.sol";
import {SumTree} from "./SumTree.sol";

/// @notice A sum tree's root, and how many leaves there are below it.
struct Top {
    bytes32 hash;
    uint256 sum;
    uint256 leaves;
}

/// @title What a node of a sum tree may be
/// @notice A line can be challenged if it can be proven, and that only while every sum on its way is right. So whoever
/// holds a node that no honest tree has shows the node itself.
library Nodes {
    uint256 private constant INNER_BYTES = 128;
    uint256 private constant LEAF_BYTES = 160;
    uint256 private constant SCORE_LEAF_BYTES = 64;

    /// @notice True if the tree has this leaf at this place.
    function isLeafAt(
        Tree tree,
        Top memory top,
        bytes32 hash,
        uint256 sum,
        ProofStep[] calldata proof,
        uint256 place
    ) internal pure returns (bool) {
        (uint256 own, uint256 level) = _placeOf(tree, top, hash, sum, proof);
        return own == place && level == 0;
    }

    /// @notice Judges a node that is somewhere in the tree.
    /// @param preimage what its hash is of, or empty, with nothing said of that
    /// @return shown false if the tree has no such node, or its hash is of something else
    /// @return sound true if an honest tree may have it there, as far as the preimage tells
    /// @return place among the nodes of its level
    function judge(
        Tree tree,
        Top memory top,
        bytes32 hash,
        uint256 sum,
        ProofStep[] calldata proof,
        bytes calldata preimage
    ) internal pure returns (bool shown, bool sound, uint256 place) {
        uint256 level;
        (place, level) = _placeOf(tree, top, hash, sum, proof);
        if (place == SumTree.NOWHERE || !_isOf(tree, hash, preimage)) return (false, false, place);
        if (level != 0) return (true, hash != 0 && (preimage.length == 0 || _isInner(tree, sum, preimage)), place);
        if (place >= top.leaves) return (true, hash == 0 && sum == 0, place);
        return (true, hash != 0 && (preimage.length == 0 || _isLine(tree, sum, preimage)), place);
    }

    function _placeOf(
        Tree tree,
        Top memory top,
        bytes32 hash,
        uint256 sum,
        ProofStep[] calldata proof
    ) private pure returns (uint256 place, uint256 level) {
        uint256 depth = SumTree.depthOf(top.leaves);
        if (proof.length > depth) return (SumTree.NOWHERE, 0);
        level = depth - proof.length;
        bytes32 root;
        uint256 total;
        (root, total, place) = SumTree.climb(tree, hash, sum, proof);
        if (root != top.hash || total != top.sum) place = SumTree.NOWHERE;
    }

    /// @dev The length of a preimage says what it is of: an inner node, or a line of either tree.
    function _isOf(Tree tree, bytes32 hash, bytes calldata preimage) private pure returns (bool) {
        uint256 domain;
        if (preimage.length == 0) return true;
        if (preimage.length == LEAF_BYTES) domain = 0;
        else if (preimage.length == SCORE_LEAF_BYTES) domain = 4;
        else if (preimage.length == INNER_BYTES) domain = tree == Tree.Reward ? 1 : 5;
        else return false;
        return keccak256(abi.encodePacked(domain, preimage)) == hash;
    }

    function _isLine(Tree tree, uint256 sum, bytes calldata preimage) private pure returns (bool) {
        return tree == Tree.Reward ? _isLeaf(sum, preimage) : _isScoreLeaf(sum, preimage);
    }

    function _isInner(Tree tree, uint256 sum, bytes calldata preimage) private pure returns (bool) {
        if (preimage.length != INNER_BYTES) return false;
        (uint256 own, bool sound) = SumTree.add(tree, _word(preimage, 1), _word(preimage, 3));
        return sound && own == sum;
    }

    /// @dev Words too large for their types could neither be claimed nor challenged.
    function _isLeaf(uint256 sum, bytes calldata preimage) private pure returns (bool) {
        if (preimage.length != LEAF_BYTES) return false;
        int256 score = int256(_word(preimage, 2));
        return
            _word(preimage, 0) <= type(uint160).max &&
            score == int128(score) &&
            _word(preimage, 3) <= type(uint128).max &&
            sum <= type(uint128).max &&
            _word(preimage, 4) == sum;
    }

    function _isScoreLeaf(uint256 sum, bytes calldata preimage) private pure returns (bool) {
        if (preimage.length != SCORE_LEAF_BYTES) return false;
        int256 score = int256(_word(preimage, 0));
        return score == int64(score) && _word(preimage, 1) == sum;
    }

    function _word(bytes calldata preimage, uint256 index) private pure returns (uint256) {
        return uint256(bytes32(preimage[32 * index:]));
    }
}
