// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {Cid, JobId, JobState, JobTerms, Kind, Mode, Phase} from "../types/Types.sol";
import {Fixture} from "./Fixture.t.sol";
import {bound, vm} from "./Vm.t.sol";

/// @notice How a job gets through its rounds, with and without everybody.
contract JobRoundsTest is Fixture {
    function test_a_job_completes_without_a_single_advance() public {
        JobId job = inCommit(3);
        for (uint32 round = 1; round <= 3; ++round) {
            vm.assertEq(jobs.job(job).round, round);
            playRound(job, 3);
            vm.assertEq(Cid.unwrap(jobs.job(job).model), Cid.unwrap(modelOf(round)));
        }
        assertPhase(job, Phase.Completed);
        vm.assertEq(jobs.job(job).deadline, 0);
        vm.assertEq(jobs.job(job).completed, 3);
    }

    function test_the_events_of_a_round_tell_all_of_it() public {
        JobTerms memory t = terms();
        t.minNodes = 2;
        JobId job = create(t);
        joinNodes(job, 0, 1);
        register(nodeAt(1), STAKE);
        uint64 time = uint64(block.timestamp);
        vm.expectEmit(address(jobs));
        emit IJobRecord.NodeJoined(job, nodeAt(1), 1);
        vm.expectEmit(address(jobs));
        emit IJobRecord.PhaseChanged(job, 1, Phase.Commit, time + t.commitWindow);
        vm.expectEmit(address(jobs));
        emit IJobRecord.RoundOpened(job, 1, BASE_MODEL, 2, time + t.commitWindow);
        joinNodes(job, 1, 2);

        commitAs(job, nodeAt(0));
        bytes32 commitment = commitmentOf(job, 1, nodeAt(1));
        vm.expectEmit(address(jobs));
        emit IJobRecord.ContributionCommitted(job, 1, nodeAt(1), commitment);
        vm.expectEmit(address(jobs));
        emit IJobRecord.PhaseChanged(job, 1, Phase.Reveal, time + t.revealWindow);
        commitAs(job, nodeAt(1));

        revealAs(job, nodeAt(1));
        vm.expectEmit(address(jobs));
        emit IJobRecord.ContributionRevealed(
            job,
            1,
            nodeAt(0),
            Kind.Update,
            1,
            updateOf(1, nodeAt(0)),
            BASE_MODEL,
            64
        );
        vm.expectEmit(address(jobs));
        emit IJobRecord.PhaseChanged(job, 1, Phase.Aggregate, time + t.aggregateWindow);
        revealAs(job, nodeAt(0));

        address aggregator = nodeAt(1 - jobs.job(job).draw);
        vm.expectEmit(address(jobs));
        emit IJobRecord.ModelPublished(job, 1, aggregator, modelOf(1));
        vm.expectEmit(address(jobs));
        emit IJobRecord.PhaseChanged(job, 2, Phase.Commit, time + t.commitWindow);
        vm.expectEmit(address(jobs));
        emit IJobRecord.RoundOpened(job, 2, modelOf(1), 2, time + t.commitWindow);
        publishAs(job, aggregator);
    }

    function test_open_starts_with_a_quorum_at_its_deadline() public {
        JobId job = create(terms());
        joinNodes(job, 0, 2);
        assertPhase(job, Phase.Open);
        toDeadline(job);
        jobs.advance(job);
        assertPhase(job, Phase.Commit);
        vm.assertEq(jobs.job(job).expected, 2);
    }

    function test_open_fails_without_a_quorum() public {
        JobId job = create(terms());
        joinNodes(job, 0, 1);
        toDeadline(job);
        vm.expectEmit(address(jobs));
        emit IJobRecord.JobEnded(job, Phase.Failed);
        jobs.advance(job);
        vm.prank(requester);
        vm.assertEq(jobs.refund(job), 3 * uint256(BUDGET));
    }

    function test_a_round_goes_on_without_who_did_not_deliver() public {
        JobId job = inCommit(4);
        commitNodes(job, 3);
        toDeadline(job);
        jobs.advance(job);
        assertPhase(job, Phase.Reveal);
        revealNodes(job, 2);
        toDeadline(job);
        jobs.advance(job);
        assertPhase(job, Phase.Aggregate);
        publishAs(job, drawn(job));
        // The two who revealed are a quorum: the next round begins at once, with them.
        assertPhase(job, Phase.Commit);
        vm.assertEq(jobs.job(job).expected, 2);
        vm.assertEq(uint256(jobs.activeRound(job, nodeAt(1))), 2);
        vm.assertEq(uint256(jobs.activeRound(job, nodeAt(2))), 1);
    }

    function test_a_late_joiner_takes_part_from_the_next_round() public {
        JobId job = inCommit(2);
        joinNodes(job, 2, 3);
        vm.assertEq(uint256(jobs.activeRound(job, nodeAt(2))), 2);
        vm.assertEq(jobs.job(job).expected, 2);
        bytes32 commitment = commitmentOf(job, 1, nodeAt(2));
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.NotActive.selector, job, 1, nodeAt(2)));
        vm.prank(nodeAt(2));
        jobs.commit(job, 1, commitment);
        playRound(job, 2);
        vm.assertEq(jobs.job(job).expected, 3);
        playRound(job, 3);
    }

    function test_who_missed_the_commit_may_join_the_next_round() public {
        JobId job = inCommit(3);
        commitNodes(job, 2);
        toDeadline(job);
        jobs.advance(job);
        joinNodes(job, 2, 3);
        revealNodes(job, 2);
        publishAs(job, drawn(job));
        vm.assertEq(jobs.job(job).expected, 3);
    }

    function test_who_joins_the_next_round_before_its_reveal_counts_once() public {
        JobId job = inReveal(2);
        joinNodes(job, 0, 1);
        revealNodes(job, 2);
        publishAs(job, drawn(job));
        vm.assertEq(jobs.job(job).expected, 2);
    }

    function test_commit_without_quorum_voids_the_round() public {
        JobId job = inCommit(3);
        commitNodes(job, 1);
        toDeadline(job);
        vm.expectEmit(address(jobs));
        emit IJobRecord.RoundVoided(job, 1, Phase.Commit);
        jobs.advance(job);
        JobState memory state = jobs.job(job);
        vm.assertEq(uint256(state.phase), uint256(Phase.Open));
        vm.assertEq(state.round, 2);
        vm.assertEq(state.expected, 0);
        vm.assertEq(state.spent, 0);
        // All join again, and the round counts.
        joinNodes(job, 0, 3);
        playRound(job, 3);
        vm.assertEq(jobs.job(job).completed, 1);
    }

    function test_reveal_without_quorum_voids_the_round_and_keeps_who_revealed() public {
        JobId job = inReveal(3);
        revealNodes(job, 1);
        toDeadline(job);
        jobs.advance(job);
        vm.assertEq(jobs.job(job).expected, 1);
        assertPhase(job, Phase.Open);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.AlreadyJoined.selector, job, nodeAt(0), 2));
        vm.prank(nodeAt(0));
        jobs.join(job);
        joinNodes(job, 1, 3);
        assertPhase(job, Phase.Commit);
    }

    function test_no_model_voids_the_round_and_goes_on_with_all() public {
        JobId job = inAggregate(3);
        toDeadline(job);
        jobs.advance(job);
        assertPhase(job, Phase.Commit);
        vm.assertEq(jobs.job(job).round, 2);
        vm.assertEq(Cid.unwrap(jobs.job(job).model), Cid.unwrap(BASE_MODEL));
    }

    function test_three_voids_in_a_row_fail_the_job() public {
        JobId job = inCommit(2);
        for (uint256 i = 0; i < 3; ++i) {
            assertPhase(job, Phase.Commit);
            commitNodes(job, 2);
            revealNodes(job, 2);
            toDeadline(job);
            jobs.advance(job);
        }
        assertPhase(job, Phase.Failed);
    }

    function test_a_model_forgives_earlier_voids() public {
        JobId job = inCommit(2);
        for (uint256 i = 0; i < 2; ++i) {
            commitNodes(job, 2);
            revealNodes(job, 2);
            toDeadline(job);
            jobs.advance(job);
        }
        playRound(job, 2);
        for (uint256 i = 0; i < 2; ++i) {
            toDeadline(job);
            jobs.advance(job);
            joinNodes(job, 0, 2);
        }
        assertPhase(job, Phase.Commit);
    }

    function testFuzz_the_aggregators_take_turns(bytes32 randao, uint256 count) public {
        count = bound(count, 1, 8);
        vm.prevrandao(randao);
        JobId job = inAggregate(count);
        JobState memory state = jobs.job(job);
        uint64 start = uint64(block.timestamp);
        uint64 slot = uint64(40 / (count < 4 ? count : 4));
        for (uint256 i = 0; i < count; ++i) {
            uint64 rank = uint64((i + count - state.draw) % count);
            vm.assertEq(uint256(jobs.mayAggregateAt(job, nodeAt(i))), start + (rank < 3 ? rank : 3) * slot);
        }
        vm.assertEq(uint256(jobs.mayAggregateAt(job, address(this))), 0);
    }

    function test_the_next_in_line_publishes_for_a_dead_aggregator() public {
        JobId job = inAggregate(3);
        uint32 index = (jobs.job(job).draw + 1) % 3;
        address next = nodeAt(index);
        uint64 from = jobs.mayAggregateAt(job, next);
        vm.assertEq(uint256(from), block.timestamp + 13);
        vm.warp(from - 1);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.NotYourTurn.selector, job, 1, next, from));
        vm.prank(next);
        jobs.publishModel(job, 1, modelOf(1));
        vm.warp(from);
        publishAs(job, next);
        vm.assertEq(uint256(jobs.publication(job, 1).publisherIndex), index);
        vm.assertEq(uint256(jobs.publication(job, 1).publishedAt), from);
    }

    function test_nobody_may_aggregate_outside_of_the_phase() public {
        JobId job = inReveal(2);
        revealNodes(job, 1);
        vm.assertEq(uint256(jobs.mayAggregateAt(job, nodeAt(0))), 0);
    }

    function test_cancel_ends_a_job_that_has_not_begun() public {
        JobId job = create(terms());
        joinNodes(job, 0, 2);
        vm.expectEmit(address(jobs));
        emit IJobRecord.JobCancelRequested(job);
        vm.expectEmit(address(jobs));
        emit IJobRecord.JobEnded(job, Phase.Cancelled);
        vm.prank(requester);
        jobs.cancel(job);
        assertPhase(job, Phase.Cancelled);
    }

    function test_cancel_lets_the_current_round_end_with_its_model() public {
        JobId job = inCommit(2);
        vm.prank(requester);
        jobs.cancel(job);
        assertPhase(job, Phase.Commit);
        playRound(job, 2);
        assertPhase(job, Phase.Cancelled);
        vm.assertEq(jobs.job(job).completed, 1);
    }

    function test_cancel_lets_the_current_round_end_void() public {
        JobId job = inCommit(2);
        vm.prank(requester);
        jobs.cancel(job);
        toDeadline(job);
        jobs.advance(job);
        assertPhase(job, Phase.Cancelled);
    }

    function test_cancel_in_a_later_open_takes_effect_with_its_round() public {
        JobId job = inCommit(2);
        toDeadline(job);
        jobs.advance(job);
        vm.prank(requester);
        jobs.cancel(job);
        assertPhase(job, Phase.Open);
        joinNodes(job, 0, 2);
        playRound(job, 2);
        assertPhase(job, Phase.Cancelled);
    }

    /// @dev Wherever a job stands, its deadline passing is enough to move it, until it has ended.
    function testFuzz_time_alone_ends_every_job(uint256 seed) public {
        JobTerms memory t = terms();
        t.minNodes = 3;
        JobId job = create(t);
        joinNodes(job, 0, bound(seed, 0, 3));
        if (jobs.job(job).phase == Phase.Commit) {
            commitNodes(job, (seed >> 8) % 4);
            if (jobs.job(job).phase == Phase.Reveal) revealNodes(job, (seed >> 16) % 4);
        }
        for (uint256 i = 0; i < 16 && jobs.job(job).phase < Phase.Completed; ++i) {
            toDeadline(job);
            vm.prank(address(uint160(seed)));
            jobs.advance(job);
        }
        assertPhase(job, Phase.Failed);
        jobs.refund(job);
        vm.assertEq(token.balanceOf(address(distributor)), 0);
    }

    /// @dev The same for standing members, of whom some commit and reveal, and for laps, in which some hop.
    function testFuzz_time_alone_ends_jobs_of_every_mode(uint256 seed, bool laps) public {
        JobTerms memory t = terms();
        t.mode = laps ? Mode.Chained : Mode.Async;
        t.target = laps ? 0 : 3;
        JobId job = create(t);
        joinNodes(job, 0, bound(seed, 2, 4));
        for (uint256 i = 0; i < 40 && jobs.job(job).phase < Phase.Completed; ++i) {
            bool acts = (seed >> (8 + i)) % 2 == 0;
            JobState memory state = jobs.job(job);
            if (acts && state.phase == Phase.Commit && laps) {
                (address holder, , ) = jobs.lease(job);
                vm.prank(holder);
                jobs.hop(job, state.round, i % 3 != 0, updateOf(state.round, holder), 64);
            } else if (acts && state.phase == Phase.Commit) {
                commitAs(job, nodeAt(state.commits));
            } else if (acts && state.phase == Phase.Reveal) {
                revealAs(job, nodeAt(state.reveals));
            } else {
                toDeadline(job);
                jobs.advance(job);
            }
        }
        for (uint256 i = 0; i < 40 && jobs.job(job).phase < Phase.Completed; ++i) {
            toDeadline(job);
            jobs.advance(job);
        }
        assertPhase(job, Phase.Failed);
        assertEscrow(job);
        jobs.refund(job);
        vm.assertEq(token.balanceOf(address(distributor)), 0);
    }
}
