// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {IRewardDistributor} from "../interfaces/IRewardDistributor.sol";
import {Fault, Leaf, Opening, ProofStep, ScoreLeaf, Settlement, Tree} from "../types/Rewards.sol";
import {Word} from "../types/Scores.sol";
import {JobId, JobTerms} from "../types/Types.sol";
import {BooksFixture} from "./Books.t.sol";
import {SettlementFixture} from "./Settlements.t.sol";
import {Sum, Trees} from "./Trees.t.sol";
import {vm} from "./Vm.t.sol";

/// @notice Trees that are none, and challenges that prove nothing.
contract NodesTest is BooksFixture {
    Sum[] private nodes;

    /// @dev A settlement whose reward tree has these nodes as its leaves.
    function settleNodes(JobId job) private {
        Sum memory top = Trees.topOf(Tree.Reward, nodes);
        settleRoot(job, 1, top.hash, uint128(top.value));
    }

    function fill() private {
        delete nodes;
        Sum[] memory own = Trees.nodesOf(leaves);
        for (uint256 i = 0; i < own.length; ++i) nodes.push(own[i]);
    }

    function show(JobId job, uint256 height, uint256 place, bytes memory preimage) private {
        Sum memory node = Trees.nodeAt(Tree.Reward, nodes, place, height);
        ProofStep[] memory proof = Trees.proofOf(Tree.Reward, nodes, place, height);
        Opening memory own = opening();
        vm.expectEmit(address(distributor));
        emit IRewardDistributor.Overturned(job, 1, CHALLENGER, nodeAt(1), Fault.Tree);
        vm.prank(CHALLENGER);
        distributor.challengeNode(job, 1, own, Tree.Reward, node.hash, node.value, proof, preimage);
    }

    function test_a_leaf_whose_sum_is_not_its_own_is_overturned() public {
        JobId job = scored(goodScores());
        fill();
        nodes[2].value += 1;
        settleNodes(job);
        show(job, 0, 2, abi.encode(leaves[2]));
    }

    function test_a_missing_leaf_is_overturned() public {
        JobId job = scored(goodScores());
        fill();
        nodes[2] = Sum(0, 0);
        settleNodes(job);
        show(job, 0, 2, "");
    }

    function test_a_sum_where_no_leaf_belongs_is_overturned() public {
        JobId job = scored(goodScores());
        fill();
        nodes.push(Sum(0, 1));
        settleNodes(job);
        show(job, 0, 9, "");
    }

    function test_a_node_where_no_leaf_belongs_is_overturned() public {
        JobId job = scored(goodScores());
        fill();
        nodes.push(Sum(keccak256("hidden"), 0));
        settleNodes(job);
        show(job, 0, 9, "");
    }

    function test_an_empty_inner_node_is_overturned() public {
        JobId job = scored(goodScores());
        // Eight payees as one level: the tree has nine leaves, and so four levels; these four are those of level 2.
        for (uint256 i = 0; i < 4; ++i) nodes.push(Trees.nodeAt(Tree.Reward, Trees.nodesOf(leaves), i, 2));
        nodes[1] = Sum(0, 5);
        settleNodes(job);
        showAt2(job, 1, "");
    }

    /// @dev Shows one of four nodes of level 2, of which the tree was built.
    function showAt2(JobId job, uint256 place, bytes memory preimage) private {
        ProofStep[] memory proof = Trees.proofOf(Tree.Reward, nodes, place, 0);
        Opening memory own = opening();
        vm.expectEmit(address(distributor));
        emit IRewardDistributor.Overturned(job, 1, CHALLENGER, nodeAt(1), Fault.Tree);
        vm.prank(CHALLENGER);
        distributor.challengeNode(
            job,
            1,
            own,
            Tree.Reward,
            nodes[place].hash,
            nodes[place].value,
            proof,
            preimage
        );
    }

    function test_an_inner_node_whose_sum_is_not_its_childrens_is_overturned() public {
        JobId job = scored(goodScores());
        for (uint256 i = 0; i < 4; ++i) nodes.push(Trees.nodeAt(Tree.Reward, Trees.nodesOf(leaves), i, 2));
        nodes[1].value += 1;
        settleNodes(job);
        showAt2(job, 1, preimageOf(Tree.Reward, 2, 1));
    }

    function test_a_leaf_above_the_leaves_is_overturned() public {
        JobId job = scored(goodScores());
        for (uint256 i = 0; i < 4; ++i) nodes.push(Trees.nodeAt(Tree.Reward, Trees.nodesOf(leaves), i, 2));
        nodes[2] = Trees.nodeOf(leaves[8]);
        settleNodes(job);
        showAt2(job, 2, abi.encode(leaves[8]));
    }

    function test_a_line_of_the_other_tree_is_overturned() public {
        JobId job = scored(goodScores());
        fill();
        nodes[0] = Trees.nodeOf(scoreLeaves[0]);
        nodes[0].value = 0;
        settleNodes(job);
        show(job, 0, 0, abi.encode(scoreLeaves[0]));
    }

    function test_a_total_that_is_not_the_roots_is_overturned() public {
        JobId job = scored(goodScores());
        (bytes32 root, uint128 total) = Trees.build(leaves);
        settleRoot(job, 1, root, total - 1);
        bytes memory preimage = preimageOf(Tree.Reward, 4, 0);
        Opening memory own = opening();
        vm.expectEmit(address(distributor));
        emit IRewardDistributor.Overturned(job, 1, address(this), nodeAt(1), Fault.Tree);
        distributor.challengeNode(job, 1, own, Tree.Reward, root, total - 1, new ProofStep[](0), preimage);
    }

    /// @dev A word wider than its type makes a leaf that can be neither claimed nor challenged as one.
    function test_a_leaf_too_wide_for_its_types_is_overturned() public {
        for (uint256 word = 0; word < 4; ++word) {
            if (word == 1) continue; // an asset's number may be of any width
            if (word != 0) {
                token.approve(address(registry), BOND);
                registry.topUp(nodeAt(1), BOND);
            }
            JobId job = scored(goodScores());
            fill();
            bytes memory preimage = abi.encode(leaves[1]);
            assembly {
                let at := add(preimage, add(0x20, mul(word, 0x20)))
                mstore(at, or(mload(at), shl(200, 1)))
            }
            nodes[1].hash = keccak256(abi.encodePacked(uint256(0), preimage));
            settleNodes(job);
            show(job, 0, 1, preimage);
        }
    }

    function test_a_score_too_wide_for_its_type_is_overturned() public {
        JobId job = scored(goodScores());
        Sum[] memory own = Trees.nodesOf(scoreLeaves);
        bytes memory preimage = abi.encode(uint256(1) << 70, scoreLeaves[1].weight);
        own[1].hash = keccak256(abi.encodePacked(uint256(4), preimage));
        Sum memory top = Trees.topOf(Tree.Score, own);
        vm.prank(nodeAt(1));
        distributor.settle(job, 1, 0, 0, top.hash, top.value, EVIDENCE);
        ProofStep[] memory proof = Trees.proofOf(Tree.Score, own, 1, 0);
        distributor.challengeNode(
            job,
            1,
            Opening(top.hash, top.value, nodeAt(1)),
            Tree.Score,
            own[1].hash,
            own[1].value,
            proof,
            preimage
        );
        vm.assertEq(uint256(distributor.settlement(job, 1).claimableAt), 0);
    }

    function test_a_weight_that_carries_is_overturned() public {
        JobId job = scored(goodScores());
        // Both fields of compute are full: their sum would be a data weight.
        scoreLeaves[0].weight = (1 << 111) | (1 << 224);
        scoreLeaves[1].weight = (1 << 111) | (1 << 224);
        settleRoot(job, 1, 0, 0);
        Opening memory own = opening();
        Sum[] memory sums = Trees.nodesOf(scoreLeaves);
        Sum memory node = Trees.nodeAt(Tree.Score, sums, 0, 1);
        bytes memory preimage = preimageOf(Tree.Score, 1, 0);
        ProofStep[] memory proof = Trees.proofOf(Tree.Score, sums, 0, 1);
        distributor.challengeNode(job, 1, own, Tree.Score, node.hash, node.value, proof, preimage);
        vm.assertEq(uint256(distributor.settlement(job, 1).claimableAt), 0);
    }

    // -- challenges that prove nothing ----------------------------------------------------------------------------

    function invalid(JobId job, Tree tree, uint256 place) private {
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.InvalidChallenge.selector, job, 1, tree, place));
    }

    function test_what_is_not_in_the_trees_proves_nothing() public {
        JobId job = scored(goodScores());
        settleBooks(job, 1);
        Opening memory own = opening();
        Leaf memory leaf = leaves[2];
        ProofStep[] memory proof = Trees.prove(leaves, 2);
        ScoreLeaf memory scoreLeaf;
        ProofStep[] memory none;
        leaf.reward += 1;
        invalid(job, Tree.Reward, 2);
        distributor.challengeReward(job, 1, own, 2, leaf, proof, scoreLeaf, none);
        invalid(job, Tree.Reward, 3);
        distributor.challengeReward(job, 1, own, 3, leaves[2], proof, scoreLeaf, none);
        // The member's score is in the ScoreTree, and must be shown.
        invalid(job, Tree.Score, 0);
        distributor.challengeReward(job, 1, own, 2, leaves[2], proof, scoreLeaf, none);
        invalid(job, Tree.Reward, 3);
        distributor.challengeCumulative(job, 1, own, 3, leaves[2], proof, leaf, none);
        proof = Trees.prove(scoreLeaves, 1);
        invalid(job, Tree.Score, 0);
        distributor.challengeScore(job, 1, own, 0, scoreLeaves[1], proof, nodeAt(0), new Word[](0));
        proof = Trees.prove(leaves, 2);
        invalid(job, Tree.Reward, 2);
        distributor.challengeNode(job, 1, own, Tree.Reward, leaf2Hash(), leaves[2].cumulative, proof, "x");
        invalid(job, Tree.Reward, 2);
        distributor.challengeNode(job, 1, own, Tree.Reward, leaf2Hash(), leaves[2].cumulative, proof, new bytes(160));
        invalid(job, Tree.Reward, 2);
        distributor.challengeNode(job, 1, own, Tree.Reward, leaf2Hash(), leaves[2].cumulative, proof, new bytes(64));
        invalid(job, Tree.Reward, 2);
        distributor.challengeNode(job, 1, own, Tree.Reward, leaf2Hash(), leaves[2].cumulative, proof, new bytes(128));
        invalid(job, Tree.Reward, type(uint256).max);
        distributor.challengeNode(job, 1, own, Tree.Reward, leaf2Hash(), leaves[2].cumulative + 1, proof, "");
        invalid(job, Tree.Reward, type(uint256).max);
        distributor.challengeNode(job, 1, own, Tree.Reward, 0, 0, new ProofStep[](5), "");
    }

    function leaf2Hash() private view returns (bytes32) {
        return Trees.nodeOf(leaves[2]).hash;
    }

    function test_a_score_is_challenged_in_its_contributors_name() public {
        JobId job = scored(goodScores());
        settleBooks(job, 1);
        Opening memory own = opening();
        ProofStep[] memory proof = Trees.prove(scoreLeaves, 0);
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.NotContributor.selector, job, 1, 0, nodeAt(1)));
        distributor.challengeScore(job, 1, own, 0, scoreLeaves[0], proof, nodeAt(1), new Word[](0));
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.NotContributor.selector, job, 1, 0, address(0)));
        distributor.challengeScore(job, 1, own, 0, scoreLeaves[0], proof, address(0), new Word[](0));
        proof = Trees.prove(scoreLeaves, 3);
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.NotContributor.selector, job, 1, 3, nodeAt(1)));
        distributor.challengeScore(job, 1, own, 3, scoreLeaves[3], proof, nodeAt(1), new Word[](0));
    }

    function test_a_challenge_needs_the_opening_and_its_time() public {
        JobId job = scored(goodScores());
        Opening memory own = opening();
        ProofStep[] memory none;
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.NotSettled.selector, job, 1));
        distributor.challengeNode(job, 1, own, Tree.Reward, 0, 0, none, "");
        settleBooks(job, 1);
        own = opening();
        own.settler = nodeAt(0);
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.WrongOpening.selector, job, 1));
        distributor.challengeNode(job, 1, own, Tree.Reward, 0, 0, none, "");
        uint64 until = distributor.settlement(job, 1).claimableAt;
        vm.warp(until);
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.ChallengeOver.selector, job, 1, until));
        distributor.challengeNode(job, 1, opening(), Tree.Reward, 0, 0, none, "");
    }

    function test_settle_waits_for_the_scores() public {
        (JobId job, ) = toScore();
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.StillScoring.selector, job, 1));
        settleRoot(job, 1, 0, 0);
        vm.warp(block.timestamp + 20);
        settleRoot(job, 1, 0, 0);
    }

    function test_a_settlement_pays_no_fewer_than_the_one_before() public {
        // Round 2 is published before the evaluators of round 1 have their numbers, and nobody scores it.
        (JobId job, ) = toScore();
        playRound(job, MEMBERS);
        scoreAll(job, 1, 0, goodScores());
        keepBooks(job, 1);
        settleBooks(job, 1);
        vm.assertEq(uint256(distributor.settlement(job, 1).payees), 9);
        vm.assertEq(uint256(jobs.publication(job, 2).payees), 6);
        vm.warp(block.timestamp + 20);
        earlier = leaves;
        keepBooks(job, 2);
        settleBooks(job, 2);
        vm.assertEq(uint256(distributor.settlement(job, 2).payees), 9);
        vm.assertEq(uint256(distributor.settlement(job, 2).previousRound), 1);
        uint64 until = distributor.settlement(job, 2).claimableAt;
        vm.warp(until);
        // Who earned in round 1 only is paid by round 2 as well.
        ProofStep[] memory proof = Trees.prove(leaves, 8);
        vm.assertEq(distributor.claim(job, 2, leaves[8], proof), uint256(10 ether) / 3);
    }

    function test_unscored_rounds_pay_equal_parts() public {
        (JobId job, ) = toScore();
        vm.warp(block.timestamp + 20);
        keepBooks(job, 1);
        vm.assertEq(scoreLeaves.length, 3);
        for (uint32 i = 0; i < MEMBERS; ++i) {
            (, uint32 place) = jobs.payeeOf(job, nodeAt(i));
            vm.assertEq(leaves[place].reward, uint256(67 ether) / 3);
        }
        settleBooks(job, 1);
        ProofStep[] memory proof = Trees.prove(scoreLeaves, 0);
        Opening memory own = opening();
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.NotWrong.selector, job, 1, Tree.Score, 0));
        distributor.challengeScore(job, 1, own, 0, scoreLeaves[0], proof, nodeAt(0), new Word[](0));
    }
}

/// @notice What becomes of the settlements around one that is overturned.
contract ReopenedTest is SettlementFixture {
    JobId private job;

    /// @dev Two members, three rounds, all published, round 1 settled wrongly if `wrong` says so.
    function play(uint32 rounds) private {
        JobTerms memory t = terms();
        (t.minNodes, t.rounds) = (2, rounds);
        job = create(t);
        joinNodes(job, 0, 2);
        for (uint32 round = 1; round <= rounds; ++round) {
            playRound(job, 2);
            vm.warp(block.timestamp + 1);
        }
    }

    function stale(uint32 round) private view returns (bool) {
        return distributor.settlement(job, round).claimableAt == 0;
    }

    function test_an_overturned_settlement_takes_the_later_ones_with_it() public {
        play(3);
        settleAs(nodeAt(0), job, 1, wrongLeaves(2, 10 ether));
        settleTotal(nodeAt(1), job, 2, 70 ether);
        settleTotal(nodeAt(1), job, 3, 100 ether);
        vm.assertEq(distributor.unclaimed(job), 100 ether);
        vm.expectEmit(address(jobs));
        emit IJobRecord.RoundReopened(job, 1);
        overturn(address(0xc4a1), job, 1, nodeAt(0), wrongLeaves(2, 10 ether));
        for (uint32 round = 1; round <= 3; ++round) vm.assertTrue(stale(round));
        vm.assertEq(distributor.unclaimed(job), 0);
        vm.assertEq(jobs.job(job).spent, 0);
        vm.assertEq(uint256(distributor.finalAt(job)), 0);
        // Only who made the wrong one loses its bond.
        vm.assertEq(registry.node(nodeAt(0)).stake, STAKE - BOND);
        vm.assertEq(registry.node(nodeAt(1)).stake, STAKE);
        assertEscrow(job);
    }

    function test_what_fell_pays_nothing_and_cannot_be_challenged_again() public {
        play(2);
        settleAs(nodeAt(0), job, 1, wrongLeaves(2, 10 ether));
        settleAs(nodeAt(1), job, 2, leavesOf(2, 20 ether));
        overturn(address(this), job, 1, nodeAt(0), wrongLeaves(2, 10 ether));
        vm.warp(block.timestamp + 50);
        Leaf[] memory leaves = leavesOf(2, 20 ether);
        ProofStep[] memory proof = Trees.prove(leaves, 0);
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.NotSettled.selector, job, 2));
        distributor.claim(job, 2, leaves[0], proof);
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.NotSettled.selector, job, 1));
        distributor.challengeNode(job, 1, Opening(SCORE_ROOT, 0, nodeAt(0)), Tree.Reward, 0, 0, new ProofStep[](0), "");
    }

    function test_reopened_rounds_are_settled_again() public {
        play(3);
        uint64 window = 200;
        settleAs(nodeAt(0), job, 1, wrongLeaves(2, 10 ether));
        settleTotal(nodeAt(1), job, 2, 70 ether);
        overturn(address(this), job, 1, nodeAt(0), wrongLeaves(2, 10 ether));
        uint64 until = uint64(block.timestamp) + 240 - 3;
        vm.warp(until - 1);
        // In the last second of its window, wrong again; it opens again for a whole window.
        settleAs(nodeAt(1), job, 1, wrongLeaves(2, 20 ether));
        overturn(address(this), job, 1, nodeAt(1), wrongLeaves(2, 20 ether));
        until = uint64(block.timestamp) + window;
        vm.warp(until - 1);
        register(nodeAt(5), STAKE);
        settleAs(nodeAt(5), job, 1, leavesOf(2, 30 ether));
        vm.expectPartialRevert(IJobRecord.RoundPassed.selector);
        settleTotal(nodeAt(5), job, 1, 0);
        settleAs(nodeAt(5), job, 2, leavesOf(2, 40 ether));
        vm.warp(until);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.SettleWindowPassed.selector, job, 3, until));
        vm.prank(nodeAt(5));
        settleNothing(job, 3, 120 ether);
        vm.warp(until + 50);
        vm.assertEq(claimAt(job, 2, leavesOf(2, 40 ether), 1), 80 ether);
        vm.assertEq(claimAt(job, 1, leavesOf(2, 30 ether), 0), 30 ether);
        vm.assertTrue(stale(3));
        jobs.refund(job);
        assertEscrow(job);
    }

    function test_only_unfinished_settlements_fall() public {
        play(2);
        settleAs(nodeAt(0), job, 1, leavesOf(2, 10 ether));
        vm.warp(block.timestamp + 50);
        claimAt(job, 1, leavesOf(2, 10 ether), 0);
        Leaf[] memory wrong = leavesOf(2, 30 ether);
        wrong[1].reward = 1;
        settleAs(nodeAt(1), job, 2, wrong);
        Leaf[] memory before = leavesOf(2, 10 ether);
        ProofStep[] memory proof = Trees.prove(wrong, 1);
        ProofStep[] memory beforeProof = Trees.prove(before, 1);
        distributor.challengeCumulative(
            job,
            2,
            Opening(SCORE_ROOT, 0, nodeAt(1)),
            1,
            wrong[1],
            proof,
            before[1],
            beforeProof
        );
        vm.assertFalse(stale(1));
        vm.assertTrue(stale(2));
        vm.assertEq(jobs.job(job).spent, 30 ether);
        vm.assertEq(claimAt(job, 1, before, 1), 20 ether);
        vm.assertEq(distributor.unclaimed(job), 0);
        assertEscrow(job);
    }

    /// @dev Rounds 1 and 2 gave the same money to one node each, and nobody objected in time.
    function test_what_was_claimed_twice_saves_no_later_settlement() public {
        play(3);
        Leaf[] memory first = new Leaf[](2);
        first[0] = Leaf(nodeAt(0), 0, 0, BUDGET, BUDGET);
        settleAs(nodeAt(0), job, 1, first);
        Leaf[] memory second = new Leaf[](2);
        second[1] = Leaf(nodeAt(1), 0, 0, 2 * BUDGET, 2 * BUDGET);
        settleAs(nodeAt(0), job, 2, second);
        vm.warp(block.timestamp + 50);
        Leaf[] memory third = new Leaf[](2);
        third[1] = Leaf(nodeAt(1), 0, 0, 0, 3 * BUDGET);
        settleAs(nodeAt(0), job, 3, third);
        claimAt(job, 1, first, 0);
        claimAt(job, 2, second, 1);
        vm.assertEq(distributor.unclaimed(job), 0);

        ProofStep[] memory proof = Trees.prove(third, 1);
        ProofStep[] memory beforeProof = Trees.prove(second, 1);
        Opening memory own = Opening(SCORE_ROOT, 0, nodeAt(0));
        distributor.challengeCumulative(job, 3, own, 1, third[1], proof, second[1], beforeProof);
        vm.assertTrue(stale(3));
        vm.assertEq(registry.node(nodeAt(0)).stake, STAKE - BOND);
        // Nothing of the escrow is left: not for the third round, not for the requester, and none is another job's.
        vm.assertEq(token.balanceOf(address(distributor)), 0);
        vm.assertEq(jobs.refundable(job), 0);
        uint256 spent = 2 * uint256(BUDGET);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.TotalOutOfRange.selector, job, spent + 1, spent, spent));
        settleTotal(nodeAt(1), job, 3, spent + 1);
        settleTotal(nodeAt(1), job, 3, spent);
        vm.warp(block.timestamp + 1000);
        vm.assertEq(jobs.refundable(job), 0);
    }

    function test_a_settlement_is_final_no_earlier_than_the_one_before() public {
        play(3);
        settleAs(nodeAt(0), job, 1, leavesOf(2, 10 ether));
        Settlement memory first = distributor.settlement(job, 1);
        vm.assertEq(uint256(distributor.finalAt(job)), first.claimableAt);
        vm.warp(block.timestamp + 7);
        settleAs(nodeAt(0), job, 2, leavesOf(2, 20 ether));
        vm.assertEq(uint256(distributor.settlement(job, 2).claimableAt), first.claimableAt + 7);
        vm.assertEq(uint256(distributor.settlement(job, 2).previousRound), 1);
        vm.assertEq(uint256(distributor.finalAt(job)), first.claimableAt + 7);
    }

    function test_joining_after_publication_changes_no_settlement() public {
        play(1);
        register(nodeAt(6), STAKE);
        settleAs(nodeAt(0), job, 1, leavesOf(2, 10 ether));
        vm.assertEq(uint256(distributor.settlement(job, 1).payees), 2);
    }

    /// @dev Any order of settling and overturning keeps every wei accounted for.
    function testFuzz_money_stays_accounted_for(uint256 seed) public {
        play(4);
        register(nodeAt(8), 1000 ether);
        uint128[5] memory totals;
        uint32 next = 1;
        for (uint256 i = 0; i < 10 && next <= 4; ++i) {
            uint256 random = uint256(keccak256(abi.encode(seed, i)));
            // Node 0's line is always wrong: its reward is that of nothing.
            uint128 share = (totals[next - 1] + 2) / 3 + uint128((random >> 8) % 30 ether);
            settleAs(nodeAt(8), job, next, wrongLeaves(2, share));
            totals[next] = 3 * share;
            assertAccounts(totals[next], ++next);
            if (random % 3 != 0) continue;
            uint32 target = uint32(1 + ((random >> 16) % (next - 1)));
            overturnAgainst(target, totals);
            next = target;
            assertAccounts(totals[next - 1], next);
        }
        vm.warp(block.timestamp + 1000);
        vm.assertEq(jobs.refund(job), 4 * uint256(BUDGET) - totals[next - 1]);
        assertEscrow(job);
    }

    function assertAccounts(uint256 total, uint32 next) private view {
        vm.assertEq(jobs.job(job).spent, total);
        vm.assertEq(distributor.unclaimed(job), total);
        for (uint32 round = 1; round <= 4; ++round) vm.assertEq(stale(round), round >= next);
        assertEscrow(job);
    }

    function overturnAgainst(uint32 round, uint128[5] memory totals) private {
        Leaf[] memory own = wrongLeaves(2, totals[round] / 3);
        Leaf[] memory before = wrongLeaves(2, totals[round - 1] / 3);
        // The second line adds up only by chance.
        uint256 place = own[0].cumulative != before[0].cumulative ? 0 : 1;
        ProofStep[] memory proof = Trees.prove(own, place);
        ProofStep[] memory beforeProof = Trees.prove(before, place);
        Opening memory opening = Opening(SCORE_ROOT, 0, nodeAt(8));
        distributor.challengeCumulative(job, round, opening, uint32(place), own[place], proof, before[place], beforeProof);
    }
}
