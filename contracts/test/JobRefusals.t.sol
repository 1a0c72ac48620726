// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {Cid, JobId, JobTerms, Kind, Phase} from "../types/Types.sol";
import {Fixture} from "./Fixture.t.sol";
import {vm} from "./Vm.t.sol";

/// @notice What TrainingJobs refuses, call by call.
contract JobRefusalsTest is Fixture {
    function refuse(address caller, bytes memory reason) private {
        vm.expectRevert(reason);
        vm.prank(caller);
    }

    function wrongPhase(JobId job, Phase phase) private pure returns (bytes memory) {
        return abi.encodeWithSelector(IJobRecord.WrongPhase.selector, job, phase);
    }

    function deadlinePassed(JobId job) private view returns (bytes memory) {
        return abi.encodeWithSelector(IJobRecord.DeadlinePassed.selector, job, jobs.job(job).deadline);
    }

    function test_an_unknown_job_is_refused_everywhere() public {
        JobId none = JobId.wrap(7);
        bytes memory reason = abi.encodeWithSelector(IJobRecord.JobUnknown.selector, none);
        refuse(nodeAt(0), reason);
        jobs.join(none);
        refuse(nodeAt(0), reason);
        jobs.commit(none, 1, SALT);
        refuse(nodeAt(0), reason);
        jobs.reveal(none, 1, Kind.Update, SPEC, BASE_MODEL, 1, SALT);
        refuse(nodeAt(0), reason);
        jobs.publishModel(none, 1, SPEC);
        refuse(nodeAt(0), reason);
        jobs.advance(none);
        refuse(nodeAt(0), reason);
        jobs.cancel(none);
        refuse(nodeAt(0), reason);
        jobs.refund(none);
        refuse(address(distributor), reason);
        jobs.release(none, 1, 0);
    }

    // -- join --------------------------------------------------------------------------------------------------

    function test_join_refuses_who_is_not_bonded() public {
        JobTerms memory t = terms();
        (t.requiredStake, t.bond) = (0, 0);
        JobId job = create(t);
        bytes memory reason = abi.encodeWithSelector(IJobRecord.NodeNotBonded.selector, nodeAt(0));
        refuse(nodeAt(0), reason);
        jobs.join(job);

        register(nodeAt(0), STAKE);
        vm.prank(nodeAt(0));
        registry.unbond();
        refuse(nodeAt(0), reason);
        jobs.join(job);
    }

    function test_join_refuses_too_low_a_stake() public {
        JobId job = create(terms());
        register(nodeAt(0), STAKE - 1);
        refuse(
            nodeAt(0),
            abi.encodeWithSelector(IJobRecord.StakeTooLow.selector, nodeAt(0), STAKE - 1, STAKE)
        );
        jobs.join(job);
    }

    function test_join_refuses_who_takes_part_already() public {
        JobId job = create(terms());
        joinNodes(job, 0, 1);
        bytes memory reason = abi.encodeWithSelector(IJobRecord.AlreadyJoined.selector, job, nodeAt(0), 1);
        refuse(nodeAt(0), reason);
        jobs.join(job);
        joinNodes(job, 1, 3);
        refuse(nodeAt(0), reason);
        jobs.join(job);

        joinNodes(job, 3, 4);
        refuse(nodeAt(3), abi.encodeWithSelector(IJobRecord.AlreadyJoined.selector, job, nodeAt(3), 2));
        jobs.join(job);
    }

    function test_join_refuses_after_the_open_deadline() public {
        JobId job = create(terms());
        register(nodeAt(0), STAKE);
        toDeadline(job);
        refuse(nodeAt(0), deadlinePassed(job));
        jobs.join(job);
    }

    function test_an_ended_job_takes_nothing() public {
        JobId job = create(terms());
        vm.prank(requester);
        jobs.cancel(job);
        register(nodeAt(0), STAKE);
        bytes memory reason = wrongPhase(job, Phase.Cancelled);
        refuse(nodeAt(0), reason);
        jobs.join(job);
        refuse(nodeAt(0), reason);
        jobs.commit(job, 1, SALT);
        refuse(nodeAt(0), reason);
        jobs.advance(job);
        refuse(requester, reason);
        jobs.cancel(job);
    }

    // -- commit ------------------------------------------------------------------------------------------------

    function test_commit_refuses_another_phase_or_round() public {
        JobId job = create(terms());
        refuse(nodeAt(0), wrongPhase(job, Phase.Open));
        jobs.commit(job, 1, SALT);
        joinNodes(job, 0, 3);
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.WrongRound.selector, job, 2, 1));
        jobs.commit(job, 2, SALT);
    }

    function test_commit_refuses_after_the_deadline() public {
        JobId job = inCommit(2);
        toDeadline(job);
        refuse(nodeAt(0), deadlinePassed(job));
        jobs.commit(job, 1, SALT);
    }

    function test_commit_refuses_strangers_and_seconds() public {
        JobId job = inCommit(2);
        refuse(nodeAt(9), abi.encodeWithSelector(IJobRecord.NotActive.selector, job, 1, nodeAt(9)));
        jobs.commit(job, 1, SALT);
        vm.assertFalse(jobs.committed(job, 1, nodeAt(0)));
        commitAs(job, nodeAt(0));
        vm.assertTrue(jobs.committed(job, 1, nodeAt(0)));
        vm.assertFalse(jobs.revealed(job, 1, nodeAt(0)));
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.AlreadyCommitted.selector, job, 1, nodeAt(0)));
        jobs.commit(job, 1, SALT);
    }

    function test_commit_refuses_what_cannot_be_a_hash() public {
        JobId job = inCommit(2);
        for (uint256 i = 0; i < 4; ++i) {
            refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.InvalidCommitment.selector, bytes32(i)));
            jobs.commit(job, 1, bytes32(i));
        }
    }

    // -- reveal ------------------------------------------------------------------------------------------------

    function test_reveal_refuses_another_phase_and_after_the_deadline() public {
        JobId job = inCommit(2);
        refuse(nodeAt(0), wrongPhase(job, Phase.Commit));
        jobs.reveal(job, 1, Kind.Update, SPEC, BASE_MODEL, 64, SALT);
        commitNodes(job, 2);
        toDeadline(job);
        refuse(nodeAt(0), deadlinePassed(job));
        jobs.reveal(job, 1, Kind.Update, SPEC, BASE_MODEL, 64, SALT);
    }

    function test_reveal_refuses_who_did_not_commit_or_has_revealed() public {
        JobId job = inReveal(2);
        refuse(nodeAt(9), abi.encodeWithSelector(IJobRecord.NotCommitted.selector, job, 1, nodeAt(9)));
        jobs.reveal(job, 1, Kind.Update, SPEC, BASE_MODEL, 64, SALT);
        revealAs(job, nodeAt(0));
        vm.assertTrue(jobs.committed(job, 1, nodeAt(0)));
        vm.assertTrue(jobs.revealed(job, 1, nodeAt(0)));
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.AlreadyRevealed.selector, job, 1, nodeAt(0)));
        jobs.reveal(job, 1, Kind.Update, updateOf(1, nodeAt(0)), BASE_MODEL, 64, SALT);
    }

    function testFuzz_reveal_refuses_anything_but_what_was_committed(
        uint8 kind,
        bytes32 update,
        uint64 samples,
        bytes32 salt
    ) public {
        JobId job = inReveal(2);
        Kind kind_ = Kind(kind % 3);
        vm.assume(update != Cid.unwrap(updateOf(1, nodeAt(0))));
        bytes32 computed = keccak256(
            abi.encode(job, uint32(1), BASE_MODEL, update, kind_, samples, nodeAt(0), salt)
        );
        refuse(
            nodeAt(0),
            abi.encodeWithSelector(IJobRecord.CommitmentMismatch.selector, job, 1, nodeAt(0), computed)
        );
        jobs.reveal(job, 1, kind_, Cid.wrap(update), BASE_MODEL, samples, salt);
    }

    function test_a_copied_commitment_cannot_be_revealed() public {
        JobId job = inCommit(2);
        bytes32 original = commitmentOf(job, 1, nodeAt(0));
        commitAs(job, nodeAt(0));
        vm.prank(nodeAt(1));
        jobs.commit(job, 1, original);
        revealAs(job, nodeAt(0));
        Cid stolen = updateOf(1, nodeAt(0));
        vm.expectPartialRevert(IJobRecord.CommitmentMismatch.selector);
        vm.prank(nodeAt(1));
        jobs.reveal(job, 1, Kind.Update, stolen, BASE_MODEL, 64, SALT);
    }

    function test_a_forged_entry_makes_nobody_aggregator() public {
        // The word that storage holds once node 0 has revealed at index 0, sent as a commitment.
        bytes32 forged = bytes32((uint256(64) << 104) | 1);
        JobId job = inCommit(3);
        vm.prank(nodeAt(2));
        jobs.commit(job, 1, forged);
        commitNodes(job, 2);
        revealNodes(job, 2);
        toDeadline(job);
        jobs.advance(job);
        assertPhase(job, Phase.Aggregate);
        vm.assertFalse(jobs.revealed(job, 1, nodeAt(2)));
        refuse(nodeAt(2), abi.encodeWithSelector(IJobRecord.NotAggregator.selector, job, 1, nodeAt(2)));
        jobs.publishModel(job, 1, SPEC);
    }

    // -- publish, advance, cancel, refund ----------------------------------------------------------------------

    function test_publish_refuses_another_phase_and_after_the_deadline() public {
        JobId job = inReveal(2);
        refuse(nodeAt(0), wrongPhase(job, Phase.Reveal));
        jobs.publishModel(job, 1, SPEC);
        revealNodes(job, 2);
        address aggregator = drawn(job);
        toDeadline(job);
        refuse(aggregator, deadlinePassed(job));
        jobs.publishModel(job, 1, SPEC);
    }

    function test_advance_refuses_before_the_deadline() public {
        JobId job = create(terms());
        uint64 deadline = jobs.job(job).deadline;
        vm.warp(deadline - 1);
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.DeadlineAhead.selector, job, deadline));
        jobs.advance(job);
    }

    function test_cancel_is_the_requesters_once() public {
        JobId job = inCommit(2);
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.NotRequester.selector, job, nodeAt(0)));
        jobs.cancel(job);
        vm.prank(requester);
        jobs.cancel(job);
        refuse(requester, abi.encodeWithSelector(IJobRecord.CancelAlreadyRequested.selector, job));
        jobs.cancel(job);
    }

    function test_refund_refuses_a_running_job_and_a_second_time() public {
        JobId job = create(terms());
        refuse(requester, wrongPhase(job, Phase.Open));
        jobs.refund(job);
        vm.prank(requester);
        jobs.cancel(job);
        jobs.refund(job);
        refuse(requester, abi.encodeWithSelector(IJobRecord.NothingToRefund.selector, job));
        jobs.refund(job);
    }

    function test_release_is_the_distributors() public {
        (JobId job, address publisher) = published(2);
        refuse(publisher, abi.encodeWithSelector(IJobRecord.NotDistributor.selector, publisher));
        jobs.release(job, 1, 1);
        refuse(publisher, abi.encodeWithSelector(IJobRecord.NotDistributor.selector, publisher));
        jobs.retake(job, 1, 0, 0);
    }
}
