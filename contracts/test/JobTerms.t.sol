// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {Cid, JobId, JobState, JobTerms, Phase} from "../types/Types.sol";
import {Fixture} from "./Fixture.t.sol";
import {bound, vm} from "./Vm.t.sol";

contract JobTermsTest is Fixture {
    uint256 private constant MAX_WINDOW = 30 days - 1;

    function expectOutOfRange(
        JobTerms memory terms_,
        string memory term,
        uint256 value,
        uint256 least,
        uint256 most
    ) private {
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.TermOutOfRange.selector, term, value, least, most));
        create(terms_);
    }

    function test_createJob_escrows_the_budget_of_all_rounds() public {
        JobTerms memory t = terms();
        vm.expectEmit(address(jobs));
        emit IJobRecord.JobCreated(JobId.wrap(1), requester, SPEC, t);
        vm.expectEmit(address(jobs));
        emit IJobRecord.PhaseChanged(JobId.wrap(1), 1, Phase.Open, uint64(block.timestamp) + t.openWindow);
        JobId job = create(t);

        vm.assertEq(uint256(JobId.unwrap(job)), 1);
        vm.assertEq(uint256(jobs.jobCount()), 1);
        vm.assertEq(token.balanceOf(address(distributor)), 3 * uint256(BUDGET));
        JobState memory state = jobs.job(job);
        vm.assertEq(state.requester, requester);
        vm.assertEq(keccak256(abi.encode(state.terms)), keccak256(abi.encode(t)));
        vm.assertEq(Cid.unwrap(state.model), Cid.unwrap(BASE_MODEL));
        vm.assertEq(state.round, 1);
        vm.assertEq(state.spent, 0);
    }

    function test_an_unknown_job_reads_as_none() public view {
        JobState memory state = jobs.job(JobId.wrap(9));
        vm.assertEq(uint256(state.phase), uint256(Phase.None));
        vm.assertEq(state.spent, 0);
        vm.assertEq(jobs.refundable(JobId.wrap(9)), 0);
    }

    function test_terms_out_of_range_are_refused() public {
        JobTerms memory t = terms();
        t.spec = Cid.wrap(0);
        expectOutOfRange(t, "spec", 0, 1, type(uint256).max);
        t = terms();
        t.rounds = 0;
        expectOutOfRange(t, "rounds", 0, 1, type(uint32).max);
        t = terms();
        t.quorum = 0;
        expectOutOfRange(t, "quorum", 0, 1, type(uint32).max);
        t = terms();
        t.minNodes = 1;
        expectOutOfRange(t, "minNodes", 1, 2, type(uint32).max);
        t = terms();
        t.roundBudget = 0;
        expectOutOfRange(t, "roundBudget", 0, 1, uint256(type(uint112).max) / 3);
    }

    function test_windows_out_of_range_are_refused() public {
        JobTerms memory t = terms();
        t.openWindow = 0;
        expectOutOfRange(t, "openWindow", 0, 1, MAX_WINDOW);
        t = terms();
        t.commitWindow = 30 days;
        expectOutOfRange(t, "commitWindow", 30 days, 1, MAX_WINDOW);
        t = terms();
        t.revealWindow = 0;
        expectOutOfRange(t, "revealWindow", 0, 1, MAX_WINDOW);
        t = terms();
        t.aggregateWindow = 30 days;
        expectOutOfRange(t, "aggregateWindow", 30 days, 1, MAX_WINDOW);
        t = terms();
        t.settleWindow = 1;
        expectOutOfRange(t, "settleWindow", 1, 2, MAX_WINDOW);
        t = terms();
        t.challengeWindow = 0;
        expectOutOfRange(t, "challengeWindow", 0, 1, MAX_WINDOW);
    }

    function test_an_escrow_beyond_112_bits_is_refused() public {
        JobTerms memory t = terms();
        t.rounds = type(uint32).max;
        t.roundBudget = type(uint96).max;
        expectOutOfRange(
            t,
            "roundBudget",
            type(uint96).max,
            1,
            uint256(type(uint112).max) / type(uint32).max
        );
    }

    function test_no_money_no_job() public {
        JobTerms memory t = terms();
        t.roundBudget = 10_000_000 ether;
        vm.expectPartialRevert(IERC20Errors.ERC20InsufficientBalance.selector);
        create(t);
        vm.assertEq(uint256(jobs.jobCount()), 0);
    }

    function testFuzz_any_terms_either_escrow_exactly_or_are_refused(
        uint32 rounds,
        uint32 quorum,
        uint32 minNodes,
        uint32[6] memory windows,
        uint96 roundBudget
    ) public {
        JobTerms memory t = terms();
        t.rounds = uint32(bound(rounds, 0, 1000));
        t.quorum = uint32(bound(quorum, 0, 5));
        t.minNodes = uint32(bound(minNodes, 0, 20));
        t.openWindow = uint32(bound(windows[0], 0, 31 days));
        t.commitWindow = uint32(bound(windows[1], 1, 31 days));
        t.revealWindow = uint32(bound(windows[2], 1, 31 days));
        t.aggregateWindow = uint32(bound(windows[3], 1, 31 days));
        t.settleWindow = uint32(bound(windows[4], 1, 31 days));
        t.challengeWindow = uint32(bound(windows[5], 1, 31 days));
        t.roundBudget = uint96(bound(roundBudget, 0, 10_000 ether));
        vm.prank(requester);
        try jobs.createJob(t) returns (JobId job) {
            vm.assertEq(token.balanceOf(address(distributor)), uint256(t.rounds) * t.roundBudget);
            assertPhase(job, Phase.Open);
        } catch (bytes memory reason) {
            vm.assertEq(bytes32(bytes4(reason)), bytes32(IJobRecord.TermOutOfRange.selector));
            vm.assertEq(token.balanceOf(address(distributor)), 0);
        }
    }
}
