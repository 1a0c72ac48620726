// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {IRewardDistributor} from "../interfaces/IRewardDistributor.sol";
import {ClaimRequest, Leaf, ProofStep, Settlement} from "../types/Rewards.sol";
import {AssetKind} from "../types/Assets.sol";
import {JobId, JobTerms, Phase} from "../types/Types.sol";
import {SettlementFixture} from "./Settlements.t.sol";
import {Trees} from "./Trees.t.sol";
import {bound, vm} from "./Vm.t.sol";

/// @notice Who may settle what, when, and for how much.
contract SettleTest is SettlementFixture {
    function test_the_contracts_know_each_other() public view {
        vm.assertEq(address(distributor.jobs()), address(jobs));
        vm.assertEq(address(distributor.token()), address(token));
        vm.assertEq(address(distributor.board()), address(board));
        vm.assertEq(jobs.distributor(), address(distributor));
        vm.assertEq(jobs.board(), address(board));
        vm.assertEq(address(board.jobs()), address(jobs));
        vm.assertEq(registry.jobs(), address(jobs));
        vm.assertEq(registry.board(), address(board));
        vm.assertEq(registry.distributor(), address(distributor));
    }

    function test_settle_keeps_the_root_and_hands_the_difference_over() public {
        (JobId job, address publisher) = published(3);
        Leaf[] memory leaves = leavesOf(3, 10 ether);
        (bytes32 root, ) = Trees.build(leaves);
        uint64 claimableAt = uint64(block.timestamp) + 50;
        vm.expectEmit(address(distributor));
        emit IRewardDistributor.Settled(
            job,
            1,
            publisher,
            root,
            60 ether,
            SCORE_ROOT,
            0,
            3,
            EVIDENCE,
            claimableAt
        );
        settleAs(publisher, job, 1, leaves);

        Settlement memory settled = distributor.settlement(job, 1);
        vm.assertEq(settled.root, root);
        vm.assertEq(settled.total, 60 ether);
        vm.assertEq(settled.digest, keccak256(abi.encode(SCORE_ROOT, uint256(0), publisher)));
        vm.assertEq(settled.claimableAt, claimableAt);
        vm.assertEq(settled.payees, 3);
        vm.assertEq(jobs.job(job).spent, 60 ether);
        vm.assertEq(distributor.unclaimed(job), 60 ether);
        assertEscrow(job);
    }

    function test_the_next_round_runs_while_the_last_is_settled() public {
        (JobId job, address first) = published(3);
        address second = playRound(job, 3);
        settleTotal(first, job, 1, BUDGET);
        settleTotal(second, job, 2, 2 * uint256(BUDGET));
        vm.assertEq(jobs.job(job).spent, 2 * uint256(BUDGET));
        vm.assertEq(distributor.unclaimed(job), 2 * uint256(BUDGET));
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
            refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.RoundNotPublished.selector, job, round));
            settleNothing(job, round, 0);
        }
    }

    function test_settle_refuses_a_round_twice() public {
        (JobId job, address publisher) = published(2);
        settleTotal(publisher, job, 1, BUDGET);
        refuse(publisher, abi.encodeWithSelector(IJobRecord.RoundPassed.selector, job, 1, 1));
        settleNothing(job, 1, BUDGET);
    }

    function test_an_earlier_round_in_its_window_goes_first() public {
        (JobId job, ) = published(2);
        uint64 until = uint64(block.timestamp) + 240;
        vm.warp(block.timestamp + 10);
        address second = playRound(job, 2);
        vm.warp(until - 1);
        refuse(second, abi.encodeWithSelector(IJobRecord.EarlierRoundOpen.selector, job, 2, 1, until));
        settleNothing(job, 2, 0);

        vm.warp(until);
        settleTotal(second, job, 2, BUDGET);
        refuse(second, abi.encodeWithSelector(IJobRecord.RoundPassed.selector, job, 1, 2));
        settleNothing(job, 1, 0);
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
        vm.assertEq(jobs.publication(job, 2).publishedAt, 0);
        vm.assertEq(jobs.publication(job, 4).publishedAt, block.timestamp);
        vm.assertEq(nodeAt(jobs.publication(job, 4).publisherIndex), publisher);
    }

    function test_settle_refuses_after_the_window() public {
        (JobId job, address publisher) = published(2);
        uint64 until = uint64(block.timestamp) + 240;
        vm.warp(until);
        refuse(publisher, abi.encodeWithSelector(IJobRecord.SettleWindowPassed.selector, job, 1, until));
        settleNothing(job, 1, 0);
    }

    function test_whoever_has_the_stake_settles() public {
        (JobId job, ) = published(2);
        bytes memory reason = abi.encodeWithSelector(
            IRewardDistributor.SettlerStakeTooLow.selector,
            job,
            nodeAt(7),
            STAKE - 1,
            STAKE
        );
        register(nodeAt(7), STAKE - 1);
        refuse(nodeAt(7), reason);
        settleNothing(job, 1, 0);
        token.transfer(address(this), 0);
        token.approve(address(registry), 1);
        registry.topUp(nodeAt(7), 1);
        settleTotal(nodeAt(7), job, 1, BUDGET);
        vm.assertEq(jobs.job(job).spent, BUDGET);
    }

    function test_who_has_nothing_at_stake_never_settles() public {
        JobTerms memory t = terms();
        (t.requiredStake, t.bond, t.minNodes) = (0, 0, 2);
        JobId job = create(t);
        joinNodes(job, 0, 2);
        playRound(job, 2);
        refuse(
            address(this),
            abi.encodeWithSelector(IRewardDistributor.SettlerStakeTooLow.selector, job, address(this), 0, 0)
        );
        settleNothing(job, 1, 0);
        // Registered without any stake is enough for a job that asks for none.
        register(nodeAt(7), 0);
        settleTotal(nodeAt(7), job, 1, 0);
    }

    function test_a_leaving_node_does_not_settle() public {
        (JobId job, address publisher) = published(2);
        vm.prank(publisher);
        registry.unbond();
        vm.expectPartialRevert(IRewardDistributor.SettlerStakeTooLow.selector);
        settleTotal(publisher, job, 1, 0);
    }

    function test_a_delegate_settles_in_its_nodes_name() public {
        (JobId job, address publisher) = published(2);
        address hot = address(0x407);
        vm.prank(publisher);
        registry.setDelegate(hot);
        vm.prank(hot);
        registry.actFor(publisher);
        vm.expectEmit(address(distributor));
        emit IRewardDistributor.Settled(
            job,
            1,
            publisher,
            keccak256("root"),
            0,
            SCORE_ROOT,
            0,
            2,
            EVIDENCE,
            uint64(block.timestamp) + 50
        );
        settleTotal(hot, job, 1, 0);
    }

    function test_pay_is_the_jobs_contracts() public {
        refuse(nodeAt(0), abi.encodeWithSelector(IRewardDistributor.NotJobs.selector, nodeAt(0)));
        distributor.pay(nodeAt(0), 1);
        refuse(nodeAt(0), abi.encodeWithSelector(IRewardDistributor.NotJobs.selector, nodeAt(0)));
        distributor.enroll(JobId.wrap(1));
    }

    function testFuzz_a_round_earns_at_most_its_budget(uint128 first, uint128 second) public {
        (JobId job, address publisher) = published(2);
        address next = playRound(job, 2);
        if (first > BUDGET) {
            refuse(
                publisher,
                abi.encodeWithSelector(IJobRecord.TotalOutOfRange.selector, job, first, 0, BUDGET)
            );
            settleNothing(job, 1, first);
            first = uint128(bound(first, 0, BUDGET));
        }
        settleTotal(publisher, job, 1, first);
        uint256 most = uint256(first) + BUDGET;
        if (second < first || second > most) {
            refuse(
                next,
                abi.encodeWithSelector(IJobRecord.TotalOutOfRange.selector, job, second, first, most)
            );
            settleNothing(job, 2, second);
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
        assertEscrow(job);
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
        Leaf[] memory first = new Leaf[](2);
        first[0] = Leaf(nodeAt(0), 0, 0, BUDGET, BUDGET);
        settleAs(publisher, job, 1, first);
        Leaf[] memory second = new Leaf[](2);
        second[1] = Leaf(nodeAt(1), 0, 0, 2 * BUDGET, 2 * BUDGET);
        settleAs(playRound(job, 2), job, 2, second);
        vm.warp(block.timestamp + 50);

        claimAt(job, 1, first, 0);
        ProofStep[] memory proof = Trees.prove(second, 1);
        vm.expectRevert(
            abi.encodeWithSelector(IRewardDistributor.JobFundsExceeded.selector, job, 2 * uint256(BUDGET), BUDGET)
        );
        distributor.claim(job, 2, second[1], proof);
        vm.assertEq(distributor.unclaimed(other), 90 ether);
    }

    function test_whoever_owns_an_asset_is_paid_for_it() public {
        vm.prank(nodeAt(0));
        uint64 asset = assets.mint(AssetKind.Dataset, SPEC, 0, 1, 0, new uint64[](0));
        (JobId job, address publisher) = published(2);
        Leaf[] memory leaves = new Leaf[](2);
        leaves[0] = Leaf(nodeAt(0), 0, -5, 1 ether, 1 ether);
        leaves[1] = Leaf(address(0), asset, 5, 2 ether, 2 ether);
        settleAs(publisher, job, 1, leaves);
        vm.warp(block.timestamp + 50);
        claimAt(job, 1, leaves, 0);
        vm.prank(nodeAt(0));
        assets.transferFrom(nodeAt(0), address(0xca5e), asset);
        vm.expectEmit(address(distributor));
        emit IRewardDistributor.Claimed(job, 1, address(0xca5e), asset, 2 ether);
        claimAt(job, 1, leaves, 1);
        vm.assertEq(distributor.claimed(job, nodeAt(0), 0), 1 ether);
        vm.assertEq(distributor.claimed(job, address(0), asset), 2 ether);
        vm.assertEq(token.balanceOf(address(0xca5e)), 2 ether);
    }

    function test_one_call_claims_for_many() public {
        (JobId job, Leaf[] memory leaves) = settled(3, 10 ether);
        ClaimRequest[] memory requests = new ClaimRequest[](3);
        for (uint256 i = 0; i < 3; ++i) requests[i] = ClaimRequest(job, 1, leaves[i], Trees.prove(leaves, i));
        vm.assertEq(distributor.claimMany(requests), 60 ether);
        for (uint256 i = 0; i < 3; ++i) vm.assertEq(token.balanceOf(nodeAt(i)), (i + 1) * 10 ether);

        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.TooManyClaims.selector, 33, 32));
        distributor.claimMany(new ClaimRequest[](33));
    }

    function test_one_refused_claim_stops_them_all() public {
        (JobId job, Leaf[] memory leaves) = settled(2, 10 ether);
        ClaimRequest[] memory requests = new ClaimRequest[](2);
        for (uint256 i = 0; i < 2; ++i) requests[i] = ClaimRequest(job, 1, leaves[0], Trees.prove(leaves, 0));
        vm.expectPartialRevert(IRewardDistributor.NothingToClaim.selector);
        distributor.claimMany(requests);
        vm.assertEq(distributor.unclaimed(job), 30 ether);
    }

    function test_a_leaf_deeper_than_the_tree_is_not_paid() public {
        // Two payees, and a tree of four leaves: node 1 stands for two hidden ones.
        (JobId job, address publisher) = published(2);
        Leaf[] memory leaves = leavesOf(4, 10 ether);
        settleAs(publisher, job, 1, leaves);
        vm.warp(block.timestamp + 50);
        ProofStep[] memory proof = Trees.prove(leaves, 3);
        vm.expectRevert(abi.encodeWithSelector(IRewardDistributor.InvalidProof.selector, job, 1, nodeAt(3), 0));
        distributor.claim(job, 1, leaves[3], proof);
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
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.NothingToRefund.selector, job));
        jobs.refund(job);

        settleTotal(publishers[0], job, 1, 40 ether);
        // The settlement may still be overturned, and another one earn more.
        vm.warp(end + 49);
        vm.assertEq(jobs.refundable(job), 0);
        vm.warp(end + 50);
        vm.assertEq(jobs.refundable(job), 60 ether);
        vm.assertEq(jobs.refund(job), 60 ether);
        assertEscrow(job);

        // Round 2 was published 20 seconds before round 3; its window of 240 ends first.
        vm.warp(end + 219);
        vm.assertEq(jobs.refundable(job), 0);
        vm.warp(end + 220);
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
        emit IJobRecord.Refunded(job, requester, BUDGET);
        jobs.refund(job);
        vm.warp(block.timestamp + 240);
        uint256 before = token.balanceOf(requester);
        jobs.refund(job);
        vm.assertEq(token.balanceOf(requester) - before, 2 * uint256(BUDGET));
        vm.assertEq(token.balanceOf(address(distributor)), 0);
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
            try distributor.settle(job, round, 0, uint128(total + more), 0, 0, EVIDENCE) {
                total += more;
            } catch {}
        }
        while (jobs.job(job).spent + jobs.job(job).refunded < 6 * uint256(BUDGET)) {
            if (jobs.refundable(job) != 0) jobs.refund(job);
            assertEscrow(job);
            vm.warp(block.timestamp + 7);
        }
        vm.assertEq(jobs.job(job).spent, total);
        vm.assertEq(token.balanceOf(address(distributor)), total);
    }
}
