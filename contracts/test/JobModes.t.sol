// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {Entries} from "../libraries/Entries.sol";
import {LapOrder} from "../libraries/LapOrder.sol";
import {Cid, JobId, JobState, JobTerms, Kind, Mode, Phase} from "../types/Types.sol";
import {Fixture} from "./Fixture.t.sol";
import {vm} from "./Vm.t.sol";

/// @notice Jobs with standing members and a target, and jobs of laps.
contract JobModesTest is Fixture {
    uint256 private constant NODES = 3;

    function with(Mode mode, uint24 target) private returns (JobId job) {
        JobTerms memory t = terms();
        t.mode = mode;
        t.target = target;
        job = create(t);
        joinNodes(job, 0, NODES);
    }

    function hopNext(JobId job, bool accept, bytes32 name) private returns (address node) {
        (node, , ) = jobs.lease(job);
        uint32 round = jobs.job(job).round;
        vm.prank(node);
        jobs.hop(job, round, accept, Cid.wrap(name), 64);
    }

    function publishDrawn(JobId job, Cid model) private {
        JobState memory state = jobs.job(job);
        for (uint256 i = 0; i < NODES; ++i) {
            uint64 from = jobs.mayAggregateAt(job, nodeAt(i));
            if (from == 0 || from > block.timestamp) continue;
            vm.prank(nodeAt(i));
            jobs.publishModel(job, state.round, model);
            return;
        }
    }

    // -- a target ----------------------------------------------------------------------------------------------

    function test_a_target_ends_COMMIT_without_the_others() public {
        JobId job = with(Mode.Async, 2);
        commitNodes(job, 2);
        vm.assertEq(uint256(jobs.job(job).phase), uint256(Phase.Reveal));
    }

    function test_fewer_members_than_the_target_are_a_full_house() public {
        JobTerms memory t = terms();
        t.mode = Mode.Async;
        t.target = 3;
        JobId job = create(t);
        joinNodes(job, 0, 2);
        toDeadline(job);
        jobs.advance(job);
        commitNodes(job, 2);
        assertPhase(job, Phase.Reveal);
    }

    function test_who_missed_a_round_of_a_job_with_a_target_is_a_member_of_the_next() public {
        JobId job = with(Mode.Sync, 2);
        commitNodes(job, 2);
        revealNodes(job, 2);
        publishAs(job, drawn(job));
        vm.assertEq(jobs.job(job).round, 2);
        vm.assertEq(jobs.job(job).expected, NODES);
        commitAs(job, nodeAt(2));
        vm.assertTrue(jobs.committed(job, 2, nodeAt(2)));
    }

    function test_a_standing_member_joins_once() public {
        JobId job = with(Mode.Async, 2);
        vm.warp(block.timestamp + 60);
        jobs.advance(job);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.AlreadyJoined.selector, job, nodeAt(0), uint32(1)));
        vm.prank(nodeAt(0));
        jobs.join(job);
    }

    function test_a_late_member_commits_from_the_next_round_on() public {
        JobId job = with(Mode.Async, 2);
        register(nodeAt(3), STAKE);
        vm.prank(nodeAt(3));
        jobs.join(job);
        bytes32 commitment = commitmentOf(job, 1, nodeAt(3));
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.NotActive.selector, job, uint32(1), nodeAt(3)));
        vm.prank(nodeAt(3));
        jobs.commit(job, 1, commitment);
        commitNodes(job, 2);
        revealNodes(job, 2);
        publishAs(job, drawn(job));
        vm.assertEq(jobs.job(job).expected, NODES + 1);
        commitAs(job, nodeAt(3));
    }

    function test_ASYNC_alone_takes_work_on_an_earlier_model() public {
        Cid old = Cid.wrap(keccak256("an older model"));
        for (uint256 i = 0; i < 2; ++i) {
            Mode mode = i == 0 ? Mode.Async : Mode.Pipeline;
            JobId job = with(mode, 2);
            for (uint256 n = 0; n < 2; ++n) {
                address node = nodeAt(n);
                bytes32 sealed_ = Entries.hash(job, 1, old, updateOf(1, node), Kind.Update, 64, node, SALT);
                vm.prank(node);
                jobs.commit(job, 1, sealed_);
            }
            if (mode != Mode.Async) {
                vm.expectRevert(abi.encodeWithSelector(IJobRecord.ParentMismatch.selector, job, uint32(1), old));
            }
            vm.prank(nodeAt(0));
            jobs.reveal(job, 1, Kind.Update, updateOf(1, nodeAt(0)), old, 64, SALT);
            vm.assertEq(jobs.revealed(job, 1, nodeAt(0)), mode == Mode.Async);
        }
    }

    function test_a_target_lies_between_quorum_and_members() public {
        uint24[3] memory wrong = [uint24(0), 1, 4];
        for (uint256 i = 0; i < wrong.length; ++i) {
            JobTerms memory t = terms();
            t.mode = Mode.Async;
            t.target = wrong[i];
            vm.expectRevert(
                abi.encodeWithSelector(
                    IJobRecord.TermOutOfRange.selector,
                    "target",
                    uint256(wrong[i]),
                    uint256(2),
                    uint256(3)
                )
            );
            vm.prank(requester);
            jobs.createJob(t);
        }
    }

    // -- laps --------------------------------------------------------------------------------------------------

    function test_a_lap_takes_every_member_once_and_ends_with_the_last_hops_model() public {
        JobId job = with(Mode.Chained, 0);
        address[3] memory order;
        for (uint256 i = 0; i < NODES; ++i) order[i] = hopNext(job, true, bytes32(i + 1));
        vm.assertTrue(order[0] != order[1] && order[1] != order[2] && order[0] != order[2]);
        JobState memory state = jobs.job(job);
        vm.assertEq(uint256(state.phase), uint256(Phase.Aggregate));
        vm.assertEq(Cid.unwrap(state.model), bytes32(uint256(2)));
        vm.assertEq(Cid.unwrap(state.candidate), bytes32(uint256(3)));
        publishDrawn(job, state.candidate);
        state = jobs.job(job);
        vm.assertEq(Cid.unwrap(state.model), bytes32(uint256(3)));
        vm.assertEq(Cid.unwrap(state.candidate), bytes32(0));
        vm.assertEq(state.expected, NODES);
        vm.assertEq(uint256(state.phase), uint256(Phase.Commit));
    }

    function test_a_hop_that_is_not_accepted_is_no_parent() public {
        JobId job = with(Mode.Chained, 0);
        hopNext(job, true, "first");
        hopNext(job, false, "second");
        vm.assertEq(Cid.unwrap(jobs.job(job).model), Cid.unwrap(BASE_MODEL));
        hopNext(job, true, "third");
        vm.assertEq(Cid.unwrap(jobs.job(job).model), bytes32("second"));
    }

    function test_only_the_leaseholder_hops() public {
        JobId job = with(Mode.Chained, 0);
        (address holder, , ) = jobs.lease(job);
        for (uint256 i = 0; i < NODES; ++i) {
            address node = nodeAt(i);
            if (node == holder) continue;
            vm.expectRevert(abi.encodeWithSelector(IJobRecord.NotYourLease.selector, job, uint32(1), node));
            vm.prank(node);
            jobs.hop(job, 1, true, SPEC, 64);
        }
    }

    function test_an_expired_lease_passes_to_the_next_and_its_holder_joins_again() public {
        JobId job = with(Mode.Chained, 0);
        (address dead, , uint64 until) = jobs.lease(job);
        vm.warp(until);
        jobs.advance(job);
        (address next, uint32 position, uint64 later) = jobs.lease(job);
        vm.assertTrue(next != dead);
        vm.assertEq(position, 1);
        vm.assertEq(later, until + 60);
        vm.assertEq(jobs.activeRound(job, dead), 0);
        hopNext(job, true, "one");
        hopNext(job, true, "two");
        vm.prank(dead);
        jobs.join(job);
        publishDrawn(job, Cid.wrap("two"));
        vm.assertEq(jobs.job(job).expected, NODES);
        vm.assertEq(jobs.activeRound(job, dead), 2);
    }

    function test_a_lap_without_quorum_is_void() public {
        JobId job = with(Mode.Chained, 0);
        hopNext(job, true, "one");
        for (uint256 i = 0; i < 2; ++i) {
            vm.warp(block.timestamp + 60);
            jobs.advance(job);
        }
        vm.assertEq(jobs.job(job).round, 2);
        vm.assertEq(uint256(jobs.job(job).phase), uint256(Phase.Open));
        vm.assertEq(Cid.unwrap(jobs.job(job).candidate), bytes32(0));
    }

    function test_a_lap_ends_with_a_model_of_its_own() public {
        JobId job = with(Mode.Chained, 0);
        for (uint256 i = 0; i < NODES; ++i) hopNext(job, true, bytes32(i + 1));
        for (uint256 i = 0; i < NODES; ++i) {
            uint64 from = jobs.mayAggregateAt(job, nodeAt(i));
            if (from > block.timestamp) continue;
            vm.expectRevert(abi.encodeWithSelector(IJobRecord.NotACandidate.selector, job, uint32(1), SPEC));
            vm.prank(nodeAt(i));
            jobs.publishModel(job, 1, SPEC);
        }
    }

    function test_laps_and_commitments_do_not_mix() public {
        JobId laps = with(Mode.Chained, 0);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.WrongMode.selector, laps, Mode.Chained));
        vm.prank(nodeAt(0));
        jobs.commit(laps, 1, bytes32(uint256(7)));
        JobId rounds = with(Mode.Sync, 0);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.WrongMode.selector, rounds, Mode.Sync));
        vm.prank(nodeAt(0));
        jobs.hop(rounds, 1, true, SPEC, 64);
    }

    function test_no_lease_outside_a_lap() public {
        JobId job = create(terms());
        (address holder, , uint64 until) = jobs.lease(job);
        vm.assertEq(holder, address(0));
        vm.assertEq(until, 0);
    }

    // -- the order ---------------------------------------------------------------------------------------------

    function testFuzz_an_order_is_a_permutation(bytes32 seed, uint8 members) public pure {
        uint32 n = uint32(members) + 1;
        bool[] memory seen = new bool[](n);
        for (uint32 i = 0; i < n; ++i) {
            uint32 index = LapOrder.indexAt(seed, i, n);
            vm.assertFalse(seen[index]);
            seen[index] = true;
        }
    }

    /// @dev The same numbers stand in tests/ledger/test_lap_order.py.
    function test_an_order_is_that_of_the_twin() public pure {
        uint32[7] memory order = [uint32(5), 0, 6, 1, 4, 2, 3];
        for (uint32 i = 0; i < 7; ++i) vm.assertEq(LapOrder.indexAt(keccak256("lap"), i, 7), order[i]);
        uint32 most = type(uint32).max;
        vm.assertEq(LapOrder.indexAt(keccak256("lap"), 1000, most), 2097064791);
        vm.assertEq(LapOrder.indexAt(keccak256("lap"), most - 1, most), 4245293599);
    }
}
