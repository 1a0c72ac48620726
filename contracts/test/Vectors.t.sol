// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

import {Entries} from "../libraries/Entries.sol";
import {Outliers} from "../libraries/Outliers.sol";
import {SumTree} from "../libraries/SumTree.sol";
import {VectorTree} from "../libraries/VectorTree.sol";
import {Vote, WeightedMedian} from "../libraries/WeightedMedian.sol";
import {Weights} from "../libraries/Weights.sol";
import {Leaf, ProofStep, ScoreLeaf, Tree} from "../types/Rewards.sol";
import {Cid, JobId, Kind} from "../types/Types.sol";
import {Sum, Trees} from "./Trees.t.sol";
import {vm} from "./Vm.t.sol";

/// @notice Random numbers that another language can draw too: the n-th of a case is keccak256(abi.encode(kind, index, n)).
struct Dice {
    uint256 kind;
    uint256 index;
    uint256 drawn;
}

using Dices for Dice;

library Dices {
    function next(Dice memory dice) internal pure returns (uint256) {
        return uint256(keccak256(abi.encode(dice.kind, dice.index, dice.drawn++)));
    }
}

/// @notice What the libraries find in CASES random cases of each kind, rolled into one hash:
/// rolled = keccak256(abi.encode(rolled, found ..)), from zero. tests/ledger/test_twins.py reads the hashes from here
/// and finds the same with the Python twins.
contract VectorsTest {
    uint256 private constant CASES = 10_000;

    /// @dev Of a call: what cases leave in memory makes the following ones dearer.
    uint256 private constant AT_ONCE = 100;

    bytes32 private constant REWARD_TREES =
        0x2c2fe169080440cb33f5066d9a3e7c5cfbf097805a486e932685bc45ebb0aeb4;
    bytes32 private constant SCORE_TREES =
        0x962ff9da60fbb2048934490257d9adfc205cb9e0e076c0ba2bb150be72c8fe0e;
    bytes32 private constant VECTOR_TREES =
        0xa10933e87af4f19eca5b6b3846ba442d461aafb77255033e9bcff014c477a7a3;
    bytes32 private constant MEDIANS =
        0x10cd4e39b20456a8eede4e003d8c7245dfd058d79a365008d974d486349b378b;
    bytes32 private constant PERMITS =
        0x14e559fc473033b764de5a8f0f6838468c35eddcfc53dec11180459a5cb6f830;
    bytes32 private constant COMMITMENTS =
        0x92553adb6a45bb4abfc697ab437fd4d906cf4544bd2a24b85144ba4270616c68;

    bytes32 private constant DOMAIN_TYPE =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant PERMIT_TYPE =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");

    function test_reward_trees() public view {
        vm.assertEq(_rolled(this.rewardTrees), REWARD_TREES);
    }

    function test_score_trees() public view {
        vm.assertEq(_rolled(this.scoreTrees), SCORE_TREES);
    }

    function test_vector_trees() public view {
        vm.assertEq(_rolled(this.vectorTrees), VECTOR_TREES);
    }

    function test_medians() public view {
        vm.assertEq(_rolled(this.medians), MEDIANS);
    }

    function test_permits() public view {
        vm.assertEq(_rolled(this.permits), PERMITS);
    }

    function test_commitments() public view {
        vm.assertEq(_rolled(this.commitments), COMMITMENTS);
    }

    // -- cases of a kind ---------------------------------------------------------------------------------------

    function rewardTrees(bytes32 rolled, uint256 first) external view returns (bytes32) {
        for (uint256 i = first; i < first + AT_ONCE; ++i) {
            Dice memory dice = Dice(0, i, 0);
            Leaf[] memory leaves = new Leaf[](1 + (dice.next() % 9));
            for (uint256 j = 0; j < leaves.length; ++j) leaves[j] = _leaf(dice);
            uint256 place = dice.next() % leaves.length;
            ProofStep[] memory proof = Trees.prove(leaves, place);
            (bytes32 root, uint256 total, uint256 found) = this.climb(leaves[place], proof);
            vm.assertEq(found, place);
            rolled = keccak256(abi.encode(rolled, root, total, place));
        }
        return rolled;
    }

    function scoreTrees(bytes32 rolled, uint256 first) external view returns (bytes32) {
        for (uint256 i = first; i < first + AT_ONCE; ++i) {
            Dice memory dice = Dice(1, i, 0);
            ScoreLeaf[] memory leaves = new ScoreLeaf[](1 + (dice.next() % 9));
            for (uint256 j = 0; j < leaves.length; ++j) leaves[j] = _scoreLeaf(dice);
            uint256 place = dice.next() % leaves.length;
            ProofStep[] memory proof = Trees.prove(leaves, place);
            (bytes32 root, uint256 total, uint256 found) = this.climbScores(leaves[place], proof);
            vm.assertEq(found, place);
            rolled = keccak256(abi.encode(rolled, root, total, place));
        }
        return rolled;
    }

    function vectorTrees(bytes32 rolled, uint256 first) external view returns (bytes32) {
        for (uint256 i = first; i < first + AT_ONCE; ++i) {
            Dice memory dice = Dice(2, i, 0);
            int64[] memory scores = new int64[](1 + (dice.next() % 20));
            for (uint256 j = 0; j < scores.length; ++j) scores[j] = int64(uint64(dice.next()));
            uint256 subject = dice.next() % scores.length;
            bytes memory vector = Trees.vectorOf(scores);
            bytes32 root = this.rootOf(vector);
            bytes32 word = Trees.wordsOf(vector)[subject / 4];
            bytes32[] memory proof = Trees.vectorProof(vector, subject / 4);
            vm.assertTrue(this.holds(root, scores.length, subject, word, proof));
            rolled = keccak256(abi.encode(rolled, root, word, proof, VectorTree.scoreIn(word, subject)));
        }
        return rolled;
    }

    function medians(bytes32 rolled, uint256 first) external pure returns (bytes32) {
        for (uint256 i = first; i < first + AT_ONCE; ++i) {
            Dice memory dice = Dice(3, i, 0);
            Vote[] memory votes = new Vote[](1 + (dice.next() % 16));
            int64 judged = 0;
            for (uint8 seat = 0; seat < votes.length; ++seat) {
                int64 score = _score(dice);
                if (seat == 0) judged = score;
                // Small ones too, so that halves are exact.
                uint256 weight = dice.next();
                votes[seat] = WeightedMedian.vote(score, seat, uint96(weight % 3 == 0 ? weight % 5 : weight));
            }
            int64 median = WeightedMedian.median(votes, votes.length);
            rolled = keccak256(abi.encode(rolled, median, Outliers.isOutlier(judged, median)));
        }
        return rolled;
    }

    /// @notice EIP-712: what a wallet signs to let a contract take its VNX.
    function permits(bytes32 rolled, uint256 first) external pure returns (bytes32) {
        for (uint256 i = first; i < first + AT_ONCE; ++i) {
            Dice memory dice = Dice(4, i, 0);
            uint256 chainId = uint64(dice.next());
            address token = _address(dice);
            bytes32 domain = keccak256(
                abi.encode(DOMAIN_TYPE, keccak256("dfl VNX"), keccak256("1"), chainId, token)
            );
            bytes32 permit = keccak256(
                abi.encode(PERMIT_TYPE, _address(dice), _address(dice), dice.next(), dice.next(), dice.next())
            );
            rolled = keccak256(abi.encode(rolled, MessageHashUtils.toTypedDataHash(domain, permit)));
        }
        return rolled;
    }

    /// @notice Of contributions, and of scores.
    function commitments(bytes32 rolled, uint256 first) external pure returns (bytes32) {
        for (uint256 i = first; i < first + AT_ONCE; ++i) {
            Dice memory dice = Dice(5, i, 0);
            JobId job = JobId.wrap(uint64(dice.next()));
            uint32 round = uint32(dice.next());
            address node = _address(dice);
            bytes32 salt = bytes32(dice.next());
            bytes32 contribution = Entries.hash(
                job,
                round,
                Cid.wrap(bytes32(dice.next())),
                Cid.wrap(bytes32(dice.next())),
                Kind(dice.next() % 4),
                uint64(dice.next()),
                node,
                salt
            );
            // As ScoreBoard has it.
            bytes32 vector = keccak256(abi.encode(dice.next()));
            bytes32 scores = keccak256(abi.encode(job, round, uint8(dice.next()), node, vector, salt));
            rolled = keccak256(abi.encode(rolled, contribution, scores));
        }
        return rolled;
    }

    // -- libraries that read calldata --------------------------------------------------------------------------

    function climb(
        Leaf calldata leaf,
        ProofStep[] calldata proof
    ) external pure returns (bytes32, uint256, uint256) {
        return SumTree.climb(Tree.Reward, SumTree.hash(leaf), leaf.cumulative, proof);
    }

    function climbScores(
        ScoreLeaf calldata leaf,
        ProofStep[] calldata proof
    ) external pure returns (bytes32, uint256, uint256) {
        return SumTree.climb(Tree.Score, SumTree.hash(leaf), leaf.weight, proof);
    }

    function rootOf(bytes calldata vector) external pure returns (bytes32) {
        return VectorTree.rootOf(vector);
    }

    function holds(
        bytes32 root,
        uint256 subjects,
        uint256 subject,
        bytes32 word,
        bytes32[] calldata proof
    ) external pure returns (bool) {
        return VectorTree.holds(root, subjects, subject, word, proof);
    }

    function _rolled(
        function(bytes32, uint256) external view returns (bytes32) find
    ) private view returns (bytes32 rolled) {
        for (uint256 first = 0; first < CASES; first += AT_ONCE) rolled = find(rolled, first);
    }

    // -- what is drawn -----------------------------------------------------------------------------------------

    function _leaf(Dice memory dice) private pure returns (Leaf memory leaf) {
        leaf.account = _address(dice);
        uint256 asset = dice.next();
        leaf.asset = asset % 4 == 0 ? asset : 0;
        leaf.score = int128(uint128(dice.next()));
        leaf.reward = uint128(dice.next());
        leaf.cumulative = uint120(dice.next());
    }

    function _scoreLeaf(Dice memory dice) private pure returns (ScoreLeaf memory leaf) {
        leaf.score = _score(dice);
        leaf.weight = dice.next() % 3 == 0 ? Weights.ofDataset(leaf.score) : Weights.ofContribution(leaf.score);
    }

    /// @dev Any score, often one of a few, so that some are alike, and now and then REFUSED.
    function _score(Dice memory dice) private pure returns (int64) {
        uint256 value = dice.next();
        if (value % 8 == 0) return Weights.REFUSED;
        return value % 2 == 0 ? int64(int256((value >> 8) % 7) - 3) : int64(uint64(value >> 8));
    }

    function _address(Dice memory dice) private pure returns (address) {
        return address(uint160(dice.next()));
    }
}
