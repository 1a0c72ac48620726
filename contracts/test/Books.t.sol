// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Leaf, Opening, ProofStep, ScoreLeaf, Tree} from "../types/Rewards.sol";
import {Word} from "../types/Scores.sol";
import {Cid, JobId, JobTerms, Payee} from "../types/Types.sol";
import {ScoringFixture} from "./Scoring.t.sol";
import {Sum, Trees} from "./Trees.t.sol";
import {vm} from "./Vm.t.sol";

/// @notice Keeps the books of a scored job as an honest settler does, and what a test made of them.
abstract contract BooksFixture is ScoringFixture {
    Cid internal constant EVIDENCE = Cid.wrap(keccak256("evidence"));
    address internal constant CHALLENGER = address(0xc4a1);

    Leaf[] internal leaves;
    ScoreLeaf[] internal scoreLeaves;
    Leaf[] internal earlier; // of the settlement before
    address internal settler;
    uint32 internal contributions; // of the round

    /// @dev The weight of a score, written out: accepted, data and compute.
    function weightOf(int64 score, bool contribution) internal pure returns (uint256) {
        uint256 worth = score > 0 ? uint256(uint64(score)) : 0;
        if (!contribution) return worth << 112;
        return score == type(int64).min ? 0 : (uint256(1) << 224) + worth;
    }

    /// @dev Who made a contribution; zero for a data set.
    function contributorOf(JobId job, uint32 round, uint32 subject) internal view returns (address) {
        for (uint256 i = 0; i < MEMBERS; ++i) {
            (bool revealed, uint32 index, , ) = jobs.contribution(job, round, nodeAt(i));
            if (revealed && index == subject) return nodeAt(i);
        }
        return address(0);
    }

    function medianOf(JobId job, uint32 round, uint32 subject) internal view returns (int64) {
        address node = contributorOf(job, round, subject);
        return board.median(job, round, 0, subject, node, wordsOf(job, round, 0, subject, node));
    }

    /// @dev Fills the books of a round with what is right.
    function keepBooks(JobId job, uint32 round) internal {
        delete scoreLeaves;
        contributions = jobs.publication(job, round).contributions;
        uint32 subjects = contributions + board.panel(job, round, 0).datasets;
        uint256 all = 0;
        for (uint32 i = 0; i < subjects; ++i) {
            int64 score = medianOf(job, round, i);
            ScoreLeaf memory leaf = ScoreLeaf(score, weightOf(score, i < contributions));
            scoreLeaves.push(leaf);
            all += leaf.weight;
        }
        keepRewards(job, round, all);
    }

    /// @dev Fills the reward leaves from the score leaves as they stand.
    function keepRewards(JobId job, uint32 round, uint256 all) internal {
        delete leaves;
        uint32 count = payeesOf(job, round);
        for (uint32 place = 0; place < count; ++place) {
            Payee memory payee = jobs.payee(job, place);
            (int64 score, uint256 reward) = payee.asset == 0
                ? earnedBy(job, round, payee.account, all)
                : earnedFor(job, payee.asset, all);
            uint128 before = place < earlier.length ? earlier[place].cumulative : 0;
            leaves.push(Leaf(payee.account, payee.asset, score, uint128(reward), before + uint128(reward)));
        }
    }

    function payeesOf(JobId job, uint32 round) internal view returns (uint32 count) {
        count = jobs.publication(job, round).payees;
        (, uint32 seated) = board.outcome(job, round, 0, 0);
        if (seated > count) count = seated;
        if (earlier.length > count) count = uint32(earlier.length);
    }

    function earnedBy(
        JobId job,
        uint32 round,
        address account,
        uint256 all
    ) private view returns (int64 score, uint256 reward) {
        (bool revealed, uint32 index, , ) = jobs.contribution(job, round, account);
        if (revealed) {
            score = scoreLeaves[index].score;
            reward = earnedWith(jobs.terms(job), score, all);
        }
        (, , revealed) = board.seatOf(job, round, 0, account);
        if (!revealed) return (score, reward);
        uint256 pot = (BUDGET * uint256(jobs.terms(job).evaluatorBps)) / 10_000;
        reward += pot / board.panel(job, round, 0).seats;
    }

    function earnedWith(JobTerms memory t, int64 score, uint256 all) private pure returns (uint256) {
        uint256 shares = 10_000 - t.dataBps - t.modelBps - t.algorithmBps - t.evaluatorBps;
        uint256 pot = (t.roundBudget * shares) / 10_000;
        uint256 positive = all & type(uint112).max;
        if (positive != 0) return score > 0 ? (pot * uint64(score)) / positive : 0;
        return score == type(int64).min ? 0 : pot / (all >> 224);
    }

    function earnedFor(
        JobId job,
        uint64 asset,
        uint256 all
    ) private view returns (int64 score, uint256 reward) {
        JobTerms memory t = jobs.terms(job);
        bool any = all >> 224 != 0;
        if (asset == t.modelAsset) return (0, any ? (t.roundBudget * t.modelBps) / 10_000 : 0);
        if (asset == t.algorithmAsset) return (0, any ? (t.roundBudget * t.algorithmBps) / 10_000 : 0);
        (, uint32 place) = jobs.datasetPlace(job, asset);
        if (contributions + place >= scoreLeaves.length) return (0, 0);
        score = scoreLeaves[contributions + place].score;
        uint256 worth = (all >> 112) & type(uint112).max;
        if (score > 0) reward = (((t.roundBudget * t.dataBps) / 10_000) * uint64(score)) / worth;
    }

    // -- the books as trees ----------------------------------------------------------------------------------------

    function opening() internal view returns (Opening memory) {
        (bytes32 root, uint256 weights) = Trees.build(scoreLeaves);
        return Opening(root, weights, settler);
    }

    function settleBooks(JobId job, uint32 round) internal {
        (bytes32 root, uint128 total) = Trees.build(leaves);
        settleRoot(job, round, root, total);
    }

    function settleRoot(JobId job, uint32 round, bytes32 root, uint128 total) internal {
        settler = nodeAt(1);
        Opening memory own = opening();
        vm.prank(settler);
        distributor.settle(job, round, root, total, own.scoreRoot, own.weights, EVIDENCE);
    }

    function challengeScore(JobId job, uint32 round, uint32 subject) internal {
        address node = contributorOf(job, round, subject);
        Word[] memory words = subject < 4 ? wordsOf(job, round, 0, subject, node) : new Word[](0);
        ProofStep[] memory proof = Trees.prove(scoreLeaves, subject);
        ScoreLeaf memory leaf;
        if (subject < scoreLeaves.length) leaf = scoreLeaves[subject];
        vm.prank(CHALLENGER);
        distributor.challengeScore(job, round, opening(), subject, leaf, proof, node, words);
    }

    function challengeReward(JobId job, uint32 round, uint32 place) internal {
        Leaf memory leaf = leaves[place];
        ProofStep[] memory proof = Trees.prove(leaves, place);
        (ScoreLeaf memory scoreLeaf, ProofStep[] memory scoreProof) = scoreOf(job, round, jobs.payee(job, place));
        vm.prank(CHALLENGER);
        distributor.challengeReward(job, round, opening(), place, leaf, proof, scoreLeaf, scoreProof);
    }

    function scoreOf(
        JobId job,
        uint32 round,
        Payee memory payee
    ) internal view returns (ScoreLeaf memory leaf, ProofStep[] memory proof) {
        (bool found, uint32 subject, , ) = jobs.contribution(job, round, payee.account);
        if (payee.asset != 0) {
            (found, subject) = jobs.datasetPlace(job, payee.asset);
            subject += contributions;
        }
        if (found && subject < scoreLeaves.length) {
            return (scoreLeaves[subject], Trees.prove(scoreLeaves, subject));
        }
    }

    function challengeCumulative(JobId job, uint32 round, uint32 place) internal {
        Leaf memory before;
        ProofStep[] memory beforeProof;
        if (place < earlier.length) (before, beforeProof) = (earlier[place], Trees.prove(earlier, place));
        ProofStep[] memory proof = Trees.prove(leaves, place);
        vm.prank(CHALLENGER);
        distributor.challengeCumulative(
            job,
            round,
            opening(),
            place,
            leaves[place],
            proof,
            before,
            beforeProof
        );
    }

    /// @dev Shows a node of either tree as the books have it.
    function challengeNode(
        JobId job,
        uint32 round,
        Tree tree,
        uint256 height,
        uint256 place,
        bytes memory preimage
    ) internal {
        Sum[] memory nodes = tree == Tree.Reward ? Trees.nodesOf(leaves) : Trees.nodesOf(scoreLeaves);
        Sum memory node = Trees.nodeAt(tree, nodes, place, height);
        ProofStep[] memory proof = Trees.proofOf(tree, nodes, place, height);
        vm.prank(CHALLENGER);
        distributor.challengeNode(job, round, opening(), tree, node.hash, node.value, proof, preimage);
    }

    /// @dev What an inner node's hash is of.
    function preimageOf(Tree tree, uint256 height, uint256 place) internal view returns (bytes memory) {
        Sum[] memory nodes = tree == Tree.Reward ? Trees.nodesOf(leaves) : Trees.nodesOf(scoreLeaves);
        Sum memory left = Trees.nodeAt(tree, nodes, 2 * place, height - 1);
        Sum memory right = Trees.nodeAt(tree, nodes, 2 * place + 1, height - 1);
        return abi.encode(left.hash, left.value, right.hash, right.value);
    }

    /// @dev A scored job whose first round is scored by all seats.
    function scored(int64[][] memory scores) internal returns (JobId job) {
        (job, ) = toScore();
        scoreAll(job, 1, 0, scores);
        keepBooks(job, 1);
    }
}
