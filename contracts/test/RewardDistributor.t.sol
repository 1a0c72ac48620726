// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IRewardDistributor} from "../interfaces/IRewardDistributor.sol";
import {ITrainingJobs} from "../interfaces/ITrainingJobs.sol";
import {Cid, JobId, JobTerms, Leaf, Phase, ProofStep, Settlement} from "../types/Types.sol";
import {Fixture, Trees} from "./Fixture.t.sol";
import {bound, vm} from "./Vm.t.sol";

abstract contract SettlementFixture is Fixture {
    Cid internal constant EVIDENCE = Cid.wrap(keccak256("evidence"));

    /// @dev One leaf for each of the first `count` nodes, node i with (i + 1) * share cumulative.
    function leavesOf(uint256 count, uint128 share) internal pure returns (Leaf[] memory leaves) {
        leaves = new Leaf[](count);
        for (uint128 i = 0; i < count; ++i) leaves[i] = Leaf(nodeAt(i), 0, 1, (i + 1) * share, (i + 1) * share);
    }

    function settleAs(address settler, JobId job, uint32 round, Leaf[] memory leaves) internal {
        (bytes32 root, uint128 total) = Trees.build(leaves);
        vm.prank(settler);
        distributor.settle(job, round, root, total, EVIDENCE);
    }

    function settleTotal(address settler, JobId job, uint32 round, uint256 total) internal {
        vm.prank(settler);
        distributor.settle(job, round, keccak256("root"), uint128(total), EVIDENCE);
    }

    function claimAt(JobId job, uint32 round, Leaf[] memory leaves, uint256 place) internal returns (uint256) {
        return distributor.claim(job, round, leaves[place], Trees.prove(leaves, place));
    }

    function refuse(address caller, bytes memory reason) internal {
        vm.expectRevert(reason);
        vm.prank(caller);
    }
}

/// @notice Who may settle what, when, and for how much.
contract SettleTest is SettlementFixture {
    function test_the_contracts_know_each_other() public view {
        vm.assertEq(address(distributor.jobs()), address(jobs));
        vm.assertEq(address(distributor.token()), address(token));
    }

    function test_settle_moves_the_difference_and_keeps_the_root() public {
        (JobId job, address publisher) = published(3);
        Leaf[] memory leaves = leavesOf(3, 10 ether);
        (bytes32 root, ) = Trees.build(leaves);
        uint64 claimableAt = uint64(block.timestamp) + 50;
        vm.expectEmit(address(distributor));
        emit IRewardDistributor.Settled(job, 1, publisher, root, 60 ether, EVIDENCE, claimableAt);
        settleAs(publisher, job, 1, leaves);

        Settlement memory settled = distributor.settlement(job, 1);
        vm.assertEq(settled.root, root);
        vm.assertEq(settled.total, 60 ether);
        vm.assertEq(Cid.unwrap(settled.evidence), Cid.unwrap(EVIDENCE));
        vm.assertEq(settled.claimableAt, claimableAt);
        vm.assertEq(jobs.job(job).spent, 60 ether);
        vm.assertEq(token.balanceOf(address(distributor)), 60 ether);
        vm.assertEq(distributor.unclaimed(job), 60 ether);
        assertEscrow(job);
    }

    function test_the_next_round_runs_while_the_last_is_settled() public {
        (JobId job, address first) = published(3);
        address second = playRound(job, 3);
        settleTotal(first, job, 1, BUDGET);
        settleTotal(second, job, 2, 2 * uint256(BUDGET));
        vm.assertEq(jobs.job(job).spent, 2 * uint256(BUDGET));
        vm.assertEq(token.balanceOf(address(distributor)), 2 * uint256(BUDGET));
    }

    function test_a_round_may_earn_nothing() public {
        (JobId job, address publisher) = published(3);
        settleTotal(publisher, job, 1, 0);
        vm.assertTrue(distributor.settlement(job, 1).claimableAt != 0);
        vm.assertEq(jobs.job(job).spent, 0);
    }

    function test_settle_refuses_a_round_without_model() public {
        JobId job = inAggregate(2);
        for (uint32 round = 0; round < 3; ++round) {
            refuse(nodeAt(0), abi.encodeWithSelector(ITrainingJobs.RoundNotPublished.selector, job, round));
            distributor.settle(job, round, 0, 0, EVIDENCE);
        }
    }

    function test_settle_refuses_a_round_twice() public {
        (JobId job, address publisher) = published(2);
        settleTotal(publisher, job, 1, BUDGET);
        refuse(publisher, abi.encodeWithSelector(ITrainingJobs.RoundPassed.selector, job, 1, 1));
        distributor.settle(job, 1, 0, BUDGET, EVIDENCE);
    }

    function test_an_earlier_round_in_its_window_goes_first() public {
        (JobId job, ) = published(2);
        uint64 until = uint64(block.timestamp) + 200;
        vm.warp(block.timestamp + 10);
        address second = playRound(job, 2);
        vm.warp(until - 1);
        refuse(second, abi.encodeWithSelector(ITrainingJobs.EarlierRoundOpen.selector, job, 2, 1, until));
        distributor.settle(job, 2, 0, 0, EVIDENCE);

        vm.warp(until);
        settleTotal(second, job, 2, BUDGET);
        refuse(second, abi.encodeWithSelector(ITrainingJobs.RoundPassed.selector, job, 1, 2));
        distributor.settle(job, 1, 0, 0, EVIDENCE);
    }

    function test_settle_finds_rounds_behind_void_ones() public {
        JobId job = inCommit(2);
        for (uint256 i = 0; i < 2; ++i) {
            toDeadline(job);
            jobs.advance(job);
            joinNodes(job, 0, 2);
        }
        address publisher = playRound(job, 2);
        settleTotal(publisher, job, 3, BUDGET);
        publisher = playRound(job, 2);
        settleTotal(publisher, job, 4, BUDGET);
        vm.assertEq(jobs.publication(job, 2).publisher, address(0));
        vm.assertEq(jobs.publication(job, 4).publisher, publisher);
    }

    function test_settle_refuses_after_the_window() public {
        (JobId job, address publisher) = published(2);
        uint64 until = uint64(block.timestamp) + 200;
        vm.warp(until);
        refuse(publisher, abi.encodeWithSelector(ITrainingJobs.SettleWindowPassed.selector, job, 1, until));
        distributor.settle(job, 1, 0, 0, EVIDENCE);
    }

    function test_the_publisher_settles_first_then_who_revealed() public {
        (JobId job, address publisher) = published(2);
        address other = publisher == nodeAt(0) ? nodeAt(1) : nodeAt(0);
        uint64 othersFrom = uint64(block.timestamp) + 100;
        bytes memory reason = abi.encodeWithSelector(
            ITrainingJobs.NotSettler.selector,
            job,
            1,
            other,
            othersFrom
        );
        vm.warp(othersFrom - 1);
        refuse(other, reason);
        distributor.settle(job, 1, 0, 0, EVIDENCE);
        vm.warp(othersFrom);
        refuse(
            address(this),
            abi.encodeWithSelector(ITrainingJobs.NotSettler.selector, job, 1, address(this), othersFrom)
        );
        distributor.settle(job, 1, 0, 0, EVIDENCE);
    }

    function test_who_revealed_settles_for_a_silent_publisher() public {
        (JobId job, address publisher) = published(2);
        vm.warp(block.timestamp + 100);
        settleTotal(publisher == nodeAt(0) ? nodeAt(1) : nodeAt(0), job, 1, BUDGET);
        vm.assertEq(jobs.job(job).spent, BUDGET);
    }

    function test_who_did_not_reveal_never_settles() public {
        JobId job = inReveal(3);
        revealNodes(job, 2);
        toDeadline(job);
        jobs.advance(job);
        publishAs(job, drawn(job));
        vm.warp(block.timestamp + 150);
        vm.expectPartialRevert(ITrainingJobs.NotSettler.selector);
        settleTotal(nodeAt(2), job, 1, 0);
    }

    function testFuzz_a_round_earns_at_most_its_budget(uint128 first, uint128 second) public {
        (JobId job, address publisher) = published(2);
        address next = playRound(job, 2);
        if (first > BUDGET) {
            refuse(
                publisher,
                abi.encodeWithSelector(ITrainingJobs.TotalOutOfRange.selector, job, first, 0, BUDGET)
            );
            distributor.settle(job, 1, 0, first, EVIDENCE);
            first = uint128(bound(first, 0, BUDGET));
        }
        settleTotal(publisher, job, 1, first);
        uint256 most = uint256(first) + BUDGET;
        if (second < first || second > most) {
            refuse(
                next,
                abi.encodeWithSelector(ITrainingJobs.TotalOutOfRange.selector, job, second, first, most)
            );
            distributor.settle(job, 2, 0, second, EVIDENCE);
            second = uint128(bound(second, first, most));
        }
        settleTotal(next, job, 2, second);
        vm.assertEq(jobs.job(job).spent, second);
        assertEscrow(job);
    }
}

contract ClaimTest is SettlementFixture {
    function settled(uint256 count, uint128 share) private returns (JobId job, Leaf[] memory leaves) {
        address publisher;
        (job, publisher) = published(count);
        leaves = leavesOf(count, share);
        settleAs(publisher, job, 1, leaves);
        vm.warp(block.timestamp + 50);
    }

    function test_claim_pays_the_account_whoever_sends_it() public {
        (JobId job, Leaf[] memory leaves) = settled(3, 10 ether);
        vm.expectEmit(address(distributor));
        emit IRewardDistributor.Claimed(job, 1, nodeAt(2), 0, 30 ether);
        vm.assertEq(claimAt(job, 1, leaves, 2), 30 ether);
        vm.assertEq(token.balanceOf(nodeAt(2)), 30 ether);
        vm.assertEq(distributor.claimed(job, nodeAt(2), 0), 30 ether);
        vm.assertEq(distributor.unclaimed(job), 30 ether);
    }

    function test_one_claim_pays_for_all_rounds_since_the_last() public {
        (JobId job, Leaf[] memory leaves) = settled(2, 10 ether);
        claimAt(job, 1, leaves, 1);
        for (uint32 round = 2; round <= 3; ++round) {
            leaves = leavesOf(2, uint128(10 ether) * round);
            settleAs(playRound(job, 2), job, round, leaves);
        }
        vm.warp(block.timestamp + 50);
        vm.assertEq(claimAt(job, 3, leaves, 1), 40 ether);
        vm.assertEq(claimAt(job, 3, leaves, 0), 30 ether);
        vm.assertEq(distributor.unclaimed(job), 0);
        vm.assertEq(token.balanceOf(address(distributor)), 0);
    }

    function test_claim_refuses_before_the_challenge_window_ends() public {
        (JobId job, address publisher) = published(2);
        Leaf[] memory leaves = leavesOf(2, 10 ether);
        settleAs(publisher, job, 1, leaves);
        uint64 claimableAt = uint64(block.timestamp) + 50;
        vm.warp(claimableAt - 1);
        ProofStep[] memory proof = Trees.prove(leaves, 0);
        vm.expectRevert(
            abi.encodeWithSelector(IRewardDistributor.NotClaimableYet.selector, job, 1, claimableAt)
        );
        distributor.claim(job, 1, leaves[0], proof);
    }

    function test_claim_refuses_an_unsettled_round() public {
        (JobId job, ) = published(2);
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.NotSettled.selector, job, 1));
        distributor.claim(job, 1, Leaf(nodeAt(0), 0, 0, 1, 1), new ProofStep[](0));
    }

    function testFuzz_claim_refuses_an_altered_leaf(uint128 cumulative, address account) public {
        (JobId job, Leaf[] memory leaves) = settled(3, 10 ether);
        ProofStep[] memory proof = Trees.prove(leaves, 1);
        vm.assume(cumulative != leaves[1].cumulative || account != leaves[1].account);
        Leaf memory forged = Leaf(account, 0, 1, 20 ether, cumulative);
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.InvalidProof.selector, job, 1, account, 0));
        distributor.claim(job, 1, forged, proof);
    }

    function test_claim_refuses_twice_and_an_older_round() public {
        (JobId job, Leaf[] memory first) = settled(2, 10 ether);
        Leaf[] memory second = leavesOf(2, 20 ether);
        settleAs(playRound(job, 2), job, 2, second);
        vm.warp(block.timestamp + 50);
        claimAt(job, 2, second, 0);
        bytes memory reason = abi.encodeWithSelector(
            IRewardDistributor.NothingToClaim.selector,
            job,
            nodeAt(0),
            0
        );
        ProofStep[] memory proof = Trees.prove(second, 0);
        vm.expectRevert(reason);
        distributor.claim(job, 2, second[0], proof);
        proof = Trees.prove(first, 0);
        vm.expectRevert(reason);
        distributor.claim(job, 1, first[0], proof);
    }

    function test_settlements_that_contradict_each_other_cost_their_own_job_only() public {
        (JobId other, ) = settled(2, 30 ether);
        // Round 1 gives all to node 0, round 2 gives the double of it to node 1 and forgets node 0.
        (JobId job, address publisher) = published(2);
        Leaf[] memory first = new Leaf[](1);
        first[0] = Leaf(nodeAt(0), 0, 0, BUDGET, BUDGET);
        settleAs(publisher, job, 1, first);
        Leaf[] memory second = new Leaf[](1);
        second[0] = Leaf(nodeAt(1), 0, 0, 2 * BUDGET, 2 * BUDGET);
        settleAs(playRound(job, 2), job, 2, second);
        vm.warp(block.timestamp + 50);

        claimAt(job, 1, first, 0);
        vm.expectRevert(
            abi.encodeWithSelector(IRewardDistributor.JobFundsExceeded.selector, job, 2 * uint256(BUDGET), BUDGET)
        );
        distributor.claim(job, 2, second[0], new ProofStep[](0));
        vm.assertEq(distributor.unclaimed(other), 90 ether);
        vm.assertEq(token.balanceOf(address(distributor)), 90 ether + BUDGET);
    }

    function test_assets_of_one_account_are_paid_apart() public {
        (JobId job, address publisher) = published(2);
        Leaf[] memory leaves = new Leaf[](2);
        leaves[0] = Leaf(nodeAt(0), 0, -5, 1 ether, 1 ether);
        leaves[1] = Leaf(nodeAt(0), 17, 5, 2 ether, 2 ether);
        settleAs(publisher, job, 1, leaves);
        vm.warp(block.timestamp + 50);
        claimAt(job, 1, leaves, 0);
        claimAt(job, 1, leaves, 1);
        vm.assertEq(distributor.claimed(job, nodeAt(0), 0), 1 ether);
        vm.assertEq(distributor.claimed(job, nodeAt(0), 17), 2 ether);
        vm.assertEq(token.balanceOf(nodeAt(0)), 3 ether);
    }
}

contract RefundTest is SettlementFixture {
    function test_unsettled_rounds_stay_reserved_until_their_window_ends() public {
        JobId job = inCommit(2);
        address[3] memory publishers;
        for (uint32 round = 1; round <= 3; ++round) {
            if (round > 1) vm.warp(block.timestamp + 20);
            publishers[round - 1] = playRound(job, 2);
        }
        uint256 end = block.timestamp;
        vm.assertEq(jobs.refundable(job), 0);
        vm.expectRevert(abi.encodeWithSelector(ITrainingJobs.NothingToRefund.selector, job));
        jobs.refund(job);

        settleTotal(publishers[0], job, 1, 40 ether);
        vm.assertEq(jobs.refundable(job), 60 ether);
        vm.assertEq(jobs.refund(job), 60 ether);
        assertEscrow(job);

        // Round 2 was published 20 seconds before round 3; its window of 200 ends first.
        vm.warp(end + 179);
        vm.assertEq(jobs.refundable(job), 0);
        vm.warp(end + 180);
        vm.assertEq(jobs.refund(job), BUDGET);
        settleTotal(publishers[2], job, 3, 140 ether);
        vm.assertEq(jobs.refundable(job), 0);
        vm.assertEq(jobs.job(job).spent + jobs.job(job).refunded, 3 * uint256(BUDGET));
        assertEscrow(job);
    }

    function test_everything_unearned_goes_back_after_the_last_window() public {
        (JobId job, ) = published(2);
        vm.prank(requester);
        jobs.cancel(job);
        playRound(job, 2);
        assertPhase(job, Phase.Cancelled);
        vm.expectEmit(address(jobs));
        emit ITrainingJobs.Refunded(job, requester, BUDGET);
        jobs.refund(job);
        vm.warp(block.timestamp + 200);
        uint256 before = token.balanceOf(requester);
        jobs.refund(job);
        vm.assertEq(token.balanceOf(requester) - before, 2 * uint256(BUDGET));
        vm.assertEq(token.balanceOf(address(jobs)), 0);
    }

    function test_a_running_job_refunds_nothing() public {
        (JobId job, ) = published(2);
        vm.assertEq(jobs.refundable(job), 0);
    }

    function testFuzz_earned_and_refunded_add_up_to_the_escrow(uint256 seed) public {
        JobTerms memory t = terms();
        t.minNodes = 2;
        t.rounds = 6;
        t.settleWindow = uint32(bound(seed, 2, 120));
        JobId job = create(t);
        joinNodes(job, 0, 2);
        uint256 total = 0;
        for (uint32 round = 1; round <= 6; ++round) {
            uint256 random = uint256(keccak256(abi.encode(seed, round)));
            vm.warp(block.timestamp + (random % 50));
            address publisher = playRound(job, 2);
            uint256 more = (random >> 64) % (BUDGET + 1);
            vm.prank(publisher);
            try distributor.settle(job, round, 0, uint128(total + more), EVIDENCE) {
                total += more;
            } catch {}
        }
        while (jobs.job(job).spent + jobs.job(job).refunded < 6 * uint256(BUDGET)) {
            if (jobs.refundable(job) != 0) jobs.refund(job);
            assertEscrow(job);
            vm.warp(block.timestamp + 7);
        }
        vm.assertEq(jobs.job(job).spent, total);
        vm.assertEq(token.balanceOf(address(jobs)), 0);
        vm.assertEq(token.balanceOf(address(distributor)), total);
    }
}
