// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Leaf, ProofStep, ScoreLeaf, Tree} from "../types/Rewards.sol";

/// @notice A node of a sum tree.
struct Sum {
    bytes32 hash;
    uint256 value;
}

/// @notice Builds the trees of a settlement and of score vectors as the specifications in libraries/SumTree.sol and
/// libraries/VectorTree.sol have them, with abi.encode.
library Trees {
    function nodeOf(Leaf memory leaf) internal pure returns (Sum memory) {
        bytes32 hash = keccak256(
            abi.encode(uint256(0), leaf.account, leaf.asset, leaf.score, leaf.reward, leaf.cumulative)
        );
        return Sum(hash, leaf.cumulative);
    }

    function nodeOf(ScoreLeaf memory leaf) internal pure returns (Sum memory) {
        return Sum(keccak256(abi.encode(uint256(4), leaf.score, leaf.weight)), leaf.weight);
    }

    function inner(Tree tree, Sum memory left, Sum memory right) internal pure returns (Sum memory above) {
        uint256 domain = tree == Tree.Reward ? 1 : 5;
        above.hash = keccak256(abi.encode(domain, left.hash, left.value, right.hash, right.value));
        unchecked {
            above.value = left.value + right.value;
        }
    }

    function nodesOf(Leaf[] memory leaves) internal pure returns (Sum[] memory nodes) {
        nodes = new Sum[](leaves.length);
        for (uint256 i = 0; i < leaves.length; ++i) nodes[i] = nodeOf(leaves[i]);
    }

    function nodesOf(ScoreLeaf[] memory leaves) internal pure returns (Sum[] memory nodes) {
        nodes = new Sum[](leaves.length);
        for (uint256 i = 0; i < leaves.length; ++i) nodes[i] = nodeOf(leaves[i]);
    }

    function build(Leaf[] memory leaves) internal pure returns (bytes32 root, uint128 total) {
        Sum memory top = topOf(Tree.Reward, nodesOf(leaves));
        return (top.hash, uint128(top.value));
    }

    function build(ScoreLeaf[] memory leaves) internal pure returns (bytes32 root, uint256 weights) {
        Sum memory top = topOf(Tree.Score, nodesOf(leaves));
        return (top.hash, top.value);
    }

    function prove(Leaf[] memory leaves, uint256 place) internal pure returns (ProofStep[] memory) {
        return proofOf(Tree.Reward, nodesOf(leaves), place, 0);
    }

    function prove(ScoreLeaf[] memory leaves, uint256 place) internal pure returns (ProofStep[] memory) {
        return proofOf(Tree.Score, nodesOf(leaves), place, 0);
    }

    function topOf(Tree tree, Sum[] memory nodes) internal pure returns (Sum memory) {
        Sum[] memory level = padded(nodes);
        while (level.length > 1) level = _above(tree, level);
        return level[0];
    }

    /// @dev The proof of the node at a place of a level above the leaves.
    function proofOf(
        Tree tree,
        Sum[] memory nodes,
        uint256 place,
        uint256 from
    ) internal pure returns (ProofStep[] memory proof) {
        Sum[] memory level = padded(nodes);
        uint256 depth = 0;
        while ((1 << depth) < level.length) ++depth;
        proof = new ProofStep[](depth - from);
        for (uint256 i = 0; i < depth; ++i) {
            if (i >= from) {
                Sum memory sibling = level[place ^ 1];
                proof[i - from] = ProofStep(sibling.hash, sibling.value, place % 2 == 1);
                place /= 2;
            }
            level = _above(tree, level);
        }
    }

    /// @dev The node at a place of a level above the leaves.
    function nodeAt(
        Tree tree,
        Sum[] memory nodes,
        uint256 place,
        uint256 height
    ) internal pure returns (Sum memory) {
        Sum[] memory level = padded(nodes);
        for (uint256 i = 0; i < height; ++i) level = _above(tree, level);
        return level[place];
    }

    function padded(Sum[] memory nodes) internal pure returns (Sum[] memory level) {
        uint256 width = 1;
        while (width < nodes.length) width *= 2;
        level = new Sum[](width);
        for (uint256 i = 0; i < nodes.length; ++i) level[i] = nodes[i];
    }

    function _above(Tree tree, Sum[] memory level) private pure returns (Sum[] memory above) {
        above = new Sum[](level.length / 2);
        for (uint256 i = 0; i < above.length; ++i) above[i] = inner(tree, level[2 * i], level[2 * i + 1]);
    }

    // -- vectors -----------------------------------------------------------------------------------------------

    function vectorOf(int64[] memory scores) internal pure returns (bytes memory vector) {
        for (uint256 i = 0; i < scores.length; ++i) vector = abi.encodePacked(vector, scores[i]);
    }

    function wordsOf(bytes memory vector) internal pure returns (bytes32[] memory words) {
        words = new bytes32[]((vector.length + 31) / 32);
        for (uint256 i = 0; i < vector.length; ++i) {
            words[i / 32] |= bytes32(vector[i]) >> (8 * (i % 32));
        }
    }

    function vectorRoot(bytes memory vector) internal pure returns (bytes32) {
        bytes32[] memory level = _leafHashes(vector);
        while (level.length > 1) level = _aboveHashes(level);
        return level[0];
    }

    function vectorProof(bytes memory vector, uint256 place) internal pure returns (bytes32[] memory proof) {
        bytes32[] memory level = _leafHashes(vector);
        uint256 depth = 0;
        while ((1 << depth) < level.length) ++depth;
        proof = new bytes32[](depth);
        for (uint256 i = 0; i < depth; ++i) {
            proof[i] = level[place ^ 1];
            place /= 2;
            level = _aboveHashes(level);
        }
    }

    function _leafHashes(bytes memory vector) private pure returns (bytes32[] memory level) {
        bytes32[] memory words = wordsOf(vector);
        uint256 width = 1;
        while (width < words.length) width *= 2;
        level = new bytes32[](width);
        for (uint256 i = 0; i < words.length; ++i) level[i] = keccak256(abi.encode(uint256(2), words[i]));
    }

    function _aboveHashes(bytes32[] memory level) private pure returns (bytes32[] memory above) {
        above = new bytes32[](level.length / 2);
        for (uint256 i = 0; i < above.length; ++i) {
            above[i] = keccak256(abi.encode(uint256(3), level[2 * i], level[2 * i + 1]));
        }
    }
}
