// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {IRewardDistributor} from "../interfaces/IRewardDistributor.sol";
import {Fault, Leaf, Opening, ProofStep, ScoreLeaf, Tree} from "../types/Rewards.sol";
import {AssetKind} from "../types/Assets.sol";
import {Word} from "../types/Scores.sol";
import {JobId} from "../types/Types.sol";
import {BooksFixture} from "./Books.t.sol";
import {Sum, Trees} from "./Trees.t.sol";
import {bound, vm} from "./Vm.t.sol";

/// @notice A right settlement stands whatever is tried; a wrong one falls.
contract ChallengesTest is BooksFixture {
    function expectOverturned(JobId job, uint32 round, Fault why) private {
        vm.expectEmit(address(distributor));
        emit IRewardDistributor.Overturned(job, round, CHALLENGER, nodeAt(1), why);
    }

    function assertOverturned(JobId job, uint32 round, uint256 stakeBefore) private view {
        vm.assertEq(uint256(distributor.settlement(job, round).claimableAt), 0);
        vm.assertEq(registry.node(nodeAt(1)).stake, stakeBefore - BOND);
        vm.assertEq(token.balanceOf(CHALLENGER), BOND / 10);
    }

    /// @dev Scores of any sign and size, refused ones among them; of three seats that agree more or less.
    function randomScores(uint256 seed) private pure returns (int64[][] memory scores) {
        scores = goodScores();
        for (uint256 subject = 0; subject < 4; ++subject) {
            for (uint256 seat = 0; seat < SEATS; ++seat) {
                uint256 random = uint256(keccak256(abi.encode(seed, subject, seat)));
                if (random % 5 == 0) scores[seat][subject] = type(int64).min;
                else scores[seat][subject] = int64(int256(random >> 8) % 1000) - 300;
            }
        }
    }

    function notWrong(JobId job, Tree tree, uint256 place) private {
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.NotWrong.selector, job, 1, tree, place));
    }

    // -- a right settlement ------------------------------------------------------------------------------------------

    function testFuzz_a_right_settlement_is_never_overturned(uint256 seed) public {
        JobId job = scored(randomScores(seed));
        settleBooks(job, 1);
        for (uint32 subject = 0; subject < scoreLeaves.length; ++subject) {
            address node = subject < MEMBERS ? nodeAt(subject) : address(0);
            Word[] memory words = wordsOf(job, 1, 0, subject, node);
            ProofStep[] memory proof = Trees.prove(scoreLeaves, subject);
            Opening memory own = opening();
            notWrong(job, Tree.Score, subject);
            distributor.challengeScore(job, 1, own, subject, scoreLeaves[subject], proof, node, words);
        }
        for (uint32 place = 0; place < leaves.length; ++place) {
            ProofStep[] memory proof = Trees.prove(leaves, place);
            (ScoreLeaf memory score, ProofStep[] memory scoreProof) = scoreOf(job, 1, jobs.payee(job, place));
            Opening memory own = opening();
            notWrong(job, Tree.Reward, place);
            distributor.challengeReward(job, 1, own, place, leaves[place], proof, score, scoreProof);
            Leaf memory none;
            notWrong(job, Tree.Reward, place);
            distributor.challengeCumulative(job, 1, own, place, leaves[place], proof, none, new ProofStep[](0));
        }
        rightNodes(job, Tree.Reward, Trees.nodesOf(leaves));
        rightNodes(job, Tree.Score, Trees.nodesOf(scoreLeaves));
        vm.assertTrue(distributor.settlement(job, 1).claimableAt != 0);
    }

    /// @dev Every node of a tree, shown as it is, with its preimage and without.
    function rightNodes(JobId job, Tree tree, Sum[] memory nodes) private {
        Opening memory own = opening();
        uint256 width = Trees.padded(nodes).length;
        for (uint256 height = 0; width > 0; (++height, width /= 2)) {
            for (uint256 place = 0; place < width; ++place) {
                Sum memory node = Trees.nodeAt(tree, nodes, place, height);
                ProofStep[] memory proof = Trees.proofOf(tree, nodes, place, height);
                notWrong(job, tree, place);
                distributor.challengeNode(job, 1, own, tree, node.hash, node.value, proof, "");
                if (height == 0 && place >= nodes.length) continue;
                bytes memory preimage = height != 0
                    ? preimageOf(tree, height, place)
                    : tree == Tree.Reward
                    ? abi.encode(leaves[place])
                    : abi.encode(scoreLeaves[place]);
                notWrong(job, tree, place);
                distributor.challengeNode(job, 1, own, tree, node.hash, node.value, proof, preimage);
            }
        }
    }

    function testFuzz_rewards_stay_within_the_budget_and_are_all_paid(uint256 seed) public {
        JobId job = scored(randomScores(seed));
        settleBooks(job, 1);
        (, uint128 total) = Trees.build(leaves);
        vm.assertLe(total, BUDGET);
        vm.warp(block.timestamp + 50);
        for (uint256 i = 0; i < leaves.length; ++i) {
            ProofStep[] memory proof = Trees.prove(leaves, i);
            if (leaves[i].cumulative != 0) distributor.claim(job, 1, leaves[i], proof);
        }
        vm.assertEq(distributor.unclaimed(job), 0);
        assertEscrow(job);
    }

    function test_the_example_of_the_specification() public {
        JobId job = scored(goodScores());
        settleBooks(job, 1);
        // 100 ether: 67 for compute by 1 : 2 : 3, 15 for data, 5 for the model, 3 for the algorithm, 10 for three seats.
        (, uint32 place) = jobs.payeeOf(job, nodeAt(1));
        vm.assertEq(leaves[place].reward, (67 ether * uint256(2)) / 6);
        (, place) = jobs.payeeOfAsset(job, data);
        vm.assertEq(leaves[place].reward, 15 ether);
        (, place) = jobs.payeeOfAsset(job, model);
        vm.assertEq(leaves[place].reward, 5 ether);
        vm.assertEq(uint256(place), 0);
        (, place) = jobs.payeeOfAsset(job, algorithm);
        vm.assertEq(leaves[place].reward, 3 ether);
        (, place) = jobs.payeeOf(job, board.seat(job, 1, 0, 0).evaluator);
        vm.assertEq(leaves[place].reward, uint256(10 ether) / 3);
        vm.assertEq(leaves.length, 9);
    }

    // -- wrong ones ----------------------------------------------------------------------------------------------------

    function testFuzz_a_wrong_score_is_overturned(uint256 seed, uint32 subject) public {
        JobId job = scored(randomScores(seed));
        subject = uint32(bound(subject, 0, 3));
        int64 score = scoreLeaves[subject].score;
        // Its rewards follow from it, so that nothing else is wrong.
        int64 wrong = seed % 2 == 0 ? int64(int256(seed >> 8)) : score == 7 ? int64(8) : int64(7);
        vm.assume(wrong != score && wrong < 1e12 && wrong > -1e12);
        scoreLeaves[subject] = ScoreLeaf(wrong, weightOf(wrong, subject < MEMBERS));
        (, uint256 all) = Trees.build(scoreLeaves);
        keepRewards(job, 1, all);
        settleBooks(job, 1);
        expectOverturned(job, 1, Fault.Score);
        challengeScore(job, 1, subject);
        assertOverturned(job, 1, STAKE);
        vm.assertEq(jobs.job(job).spent, 0);
        assertEscrow(job);
    }

    function testFuzz_a_wrong_weight_is_overturned(uint256 seed, uint32 subject, uint256 weight) public {
        JobId job = scored(randomScores(seed));
        subject = uint32(bound(subject, 0, 3));
        // A weight that carries into the next field is challenged as a node.
        weight = seed % 2 == 0 ? weight & ((1 << 100) - 1) : (weight << 160) >> 32;
        vm.assume(weight != scoreLeaves[subject].weight);
        scoreLeaves[subject].weight = weight;
        settleBooks(job, 1);
        expectOverturned(job, 1, Fault.Score);
        challengeScore(job, 1, subject);
        assertOverturned(job, 1, STAKE);
    }

    function test_a_score_of_no_subject_is_overturned() public {
        JobId job = scored(goodScores());
        // Four subjects need no padding: five have places up to 7.
        secondDataset(job);
        uint32 place = uint32(scoreLeaves.length);
        scoreLeaves.push(ScoreLeaf(9, 9));
        settleBooks(job, 2);
        expectOverturned(job, 2, Fault.Score);
        Opening memory own = opening();
        ProofStep[] memory proof = Trees.prove(scoreLeaves, place);
        vm.prank(CHALLENGER);
        distributor.challengeScore(job, 2, own, place, scoreLeaves[place], proof, address(0), new Word[](0));
    }

    /// @dev A second data set comes, and the second round is scored with it.
    function secondDataset(JobId job) private {
        settleBooks(job, 1);
        uint64 more = mint(AssetKind.Dataset, "more data");
        register(nodeAt(3), STAKE);
        vm.prank(ASSET_OWNER);
        assets.setApprovalForAll(nodeAt(3), true);
        uint64[] memory own = new uint64[](1);
        own[0] = more;
        vm.prank(nodeAt(3));
        jobs.joinWith(job, own, SALT);
        playRound(job, MEMBERS);
        vm.roll(block.number + 1);
        int64[][] memory scores = new int64[][](SEATS);
        for (uint256 seat = 0; seat < SEATS; ++seat) {
            scores[seat] = new int64[](7);
            for (int64 i = 0; i < 5; ++i) scores[seat][uint64(i)] = i + 1;
        }
        scoreAll(job, 2, 0, scores);
        earlier = leaves;
        keepBooks(job, 2);
    }

    function testFuzz_a_wrong_line_is_overturned(uint256 seed, uint32 place, uint8 how) public {
        JobId job = scored(randomScores(seed));
        place = uint32(bound(place, 0, leaves.length - 1));
        Leaf storage leaf = leaves[place];
        how = how % 5;
        uint128 more = uint128(1 + (seed % 1000));
        if (how == 0) leaf.account = address(uint160(leaf.account) + 1);
        else if (how == 1) leaf.asset += 1;
        else if (how == 2) leaf.score += 1;
        else if (how == 3 || leaf.reward < more) (leaf.reward, leaf.cumulative) = (leaf.reward + more, leaf.cumulative + more);
        else (leaf.reward, leaf.cumulative) = (leaf.reward - more, leaf.cumulative - more);
        (, uint128 total) = Trees.build(leaves);
        vm.assume(total <= BUDGET);
        settleBooks(job, 1);
        expectOverturned(job, 1, Fault.Reward);
        challengeReward(job, 1, place);
        assertOverturned(job, 1, STAKE);
    }

    function test_a_line_of_no_payee_is_overturned() public {
        JobId job = scored(goodScores());
        uint32 place = uint32(leaves.length);
        leaves.push(Leaf(CHALLENGER, 0, 0, 0, 0));
        settleBooks(job, 1);
        ProofStep[] memory proof = Trees.prove(leaves, place);
        ScoreLeaf memory none;
        Opening memory own = opening();
        expectOverturned(job, 1, Fault.Reward);
        vm.prank(CHALLENGER);
        distributor.challengeReward(job, 1, own, place, leaves[place], proof, none, new ProofStep[](0));
    }

    function testFuzz_a_wrong_cumulative_reward_is_overturned(uint32 place, uint128 more, bool second) public {
        JobId job = scored(goodScores());
        settleBooks(job, 1);
        uint32 round = 1;
        if (second) {
            vm.warp(block.timestamp + 1);
            secondRound(job);
            round = 2;
        } else {
            // Replaced by a wrong one: the right one is overturned by nobody, so another job.
            job = scored(goodScores());
        }
        place = uint32(bound(place, 0, leaves.length - 1));
        more = uint128(bound(more, 1, 1000));
        leaves[place].cumulative += more;
        if (place != 0 && leaves[place - 1].cumulative >= more) leaves[place - 1].cumulative -= more;
        (, uint128 total) = Trees.build(leaves);
        vm.assume(total <= jobs.job(job).spent + BUDGET);
        settleBooks(job, round);
        expectOverturned(job, round, Fault.Cumulative);
        challengeCumulative(job, round, place);
        assertOverturned(job, round, STAKE);
    }

    function secondRound(JobId job) private {
        playRound(job, MEMBERS);
        vm.roll(block.number + 1);
        scoreAll(job, 2, 0, goodScores());
        earlier = leaves;
        keepBooks(job, 2);
    }
}
