// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {INodeRegistry} from "../interfaces/INodeRegistry.sol";
import {IScoreBoard} from "../interfaces/IScoreBoard.sol";
import {PanelPhase, PanelState, Word} from "../types/Scores.sol";
import {Cid, JobId, JobTerms} from "../types/Types.sol";
import {ScoringFixture} from "./Scoring.t.sol";
import {Trees} from "./Trees.t.sol";
import {bound, vm} from "./Vm.t.sol";

contract PanelTest is ScoringFixture {
    function assertPanel(JobId job, PanelPhase phase) private view {
        vm.assertEq(uint256(board.panel(job, 1, 0).state), uint256(phase));
        vm.assertEq(board.done(job, 1), phase == PanelPhase.Done);
    }

    function test_a_panel_goes_from_commit_through_reveal_to_done() public {
        (JobId job, ) = toScore();
        uint256 start = block.timestamp;
        PanelState memory state = board.panel(job, 1, 0);
        vm.assertEq(uint256(state.state), uint256(PanelPhase.Commit));
        vm.assertEq(uint256(state.contributions), 3);
        vm.assertEq(uint256(state.audits), 1);
        vm.assertEq(uint256(state.commitUntil), start + 20);
        vm.assertEq(uint256(state.revealUntil), start + 40);
        vm.assertEq(state.seed, 0);

        (address[] memory foreseen, uint96[] memory weights) = board.seats(job, 1, 0);
        vm.expectEmit(address(board));
        emit IScoreBoard.PanelDrawn(job, 1, 0, foreseen, weights, 6);
        board.draw(job, 1, 0);
        (address[] memory drawn_, ) = board.seats(job, 1, 0);
        vm.assertEq(keccak256(abi.encode(drawn_)), keccak256(abi.encode(foreseen)));
        state = board.panel(job, 1, 0);
        vm.assertEq(uint256(state.seats), 3);
        vm.assertEq(uint256(state.subjects), 6);
        vm.assertEq(uint256(state.datasets), 1);
        vm.assertTrue(state.seed != 0);

        int64[][] memory scores = goodScores();
        for (uint8 seat = 0; seat < 3; ++seat) {
            assertPanel(job, PanelPhase.Commit);
            vm.expectEmit(address(board));
            emit IScoreBoard.ScoresCommitted(job, 1, 0, seat, drawn_[seat]);
            commitScoresAs(job, 1, 0, seat, scores[seat]);
        }
        for (uint8 seat = 0; seat < 3; ++seat) {
            assertPanel(job, PanelPhase.Reveal);
            vm.expectEmit(address(board));
            emit IScoreBoard.ScoresRevealed(job, 1, 0, seat, drawn_[seat], vectors[1][0][seat]);
            revealScoresAs(job, 1, 0, seat);
            vm.assertEq(board.seat(job, 1, 0, seat).root, Trees.vectorRoot(vectors[1][0][seat]));
        }
        assertPanel(job, PanelPhase.Done);
        vm.assertEq(uint256(board.panel(job, 1, 0).committed), 3);
        vm.assertEq(uint256(board.panel(job, 1, 0).revealed), 3);
    }

    function test_time_ends_both_phases() public {
        (JobId job, ) = toScore();
        uint256 start = block.timestamp;
        board.draw(job, 1, 0);
        commitScoresAs(job, 1, 0, 1, goodScores()[1]);
        vm.warp(start + 19);
        assertPanel(job, PanelPhase.Commit);
        vm.warp(start + 20);
        assertPanel(job, PanelPhase.Reveal);
        vm.warp(start + 39);
        assertPanel(job, PanelPhase.Reveal);
        vm.warp(start + 40);
        assertPanel(job, PanelPhase.Done);
    }

    function test_a_panel_nobody_serves_on_is_done_after_its_first_window() public {
        (JobId job, ) = toScore();
        uint256 start = block.timestamp;
        vm.warp(start + 20);
        assertPanel(job, PanelPhase.Done);
        vm.assertEq(uint256(board.panel(job, 1, 0).seats), 0);
        (JobId other, ) = toScore();
        board.draw(other, 1, 0);
        vm.warp(start + 40);
        assertPanel(other, PanelPhase.Done);
        vm.assertEq(uint256(board.panel(other, 1, 0).seats), 3);
    }

    function test_without_evaluators_a_panel_is_done_once_drawn() public {
        (JobId job, ) = toScore();
        for (uint256 i = 0; i < 3; ++i) {
            vm.prank(evaluatorAt(i));
            registry.unbond();
        }
        // Those of the seal block still count for this round, not for the next one.
        board.draw(job, 1, 0);
        vm.assertEq(uint256(board.panel(job, 1, 0).seats), 3);
        playRound(job, MEMBERS);
        vm.roll(block.number + 1);
        board.draw(job, 2, 0);
        vm.assertEq(uint256(board.panel(job, 2, 0).seats), 0);
        vm.assertTrue(board.done(job, 2));
    }

    function test_a_job_without_evaluators_has_no_panel() public {
        (JobId job, ) = published(2);
        vm.assertTrue(board.done(job, 1));
        vm.assertEq(uint256(board.panel(job, 1, 0).state), uint256(PanelPhase.Done));
        vm.roll(block.number + 1);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NoPanel.selector, job, 1, 0));
        board.draw(job, 1, 0);
    }

    function test_a_round_without_model_has_no_panel() public {
        (JobId job, ) = toScore();
        vm.assertFalse(board.done(job, 2));
        vm.assertEq(uint256(board.panel(job, 2, 0).state), uint256(PanelPhase.None));
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NoPanel.selector, job, 2, 0));
        board.draw(job, 2, 0);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NoPanel.selector, job, 1, 1));
        board.draw(job, 1, 1);
    }

    // -- the draw ----------------------------------------------------------------------------------------------

    function test_draw_waits_for_the_block_after() public {
        mintAssets();
        enlist(SEATS);
        JobId job = create(scoredTerms());
        joinAll(job);
        playRound(job, MEMBERS);
        uint48 here = uint48(block.number);
        vm.assertEq(uint256(jobs.publication(job, 1).sealBlock), here);
        (address[] memory none, ) = board.seats(job, 1, 0);
        vm.assertEq(none.length, 0);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.DrawBlockAhead.selector, job, 1, 0, here));
        board.draw(job, 1, 0);
        vm.roll(here + 1);
        board.draw(job, 1, 0);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.AlreadyDrawn.selector, job, 1, 0));
        board.draw(job, 1, 0);
    }

    function test_draw_refuses_after_the_first_window() public {
        (JobId job, ) = toScore();
        vm.warp(block.timestamp + 20);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotDrawn.selector, job, 1, 0));
        board.draw(job, 1, 0);
    }

    function test_a_hash_that_is_gone_postpones_the_draw() public {
        (JobId job, ) = toScore();
        uint48 sealed_ = uint48(block.number - 1);
        vm.roll(block.number + 300);
        uint48 here = uint48(block.number);
        (address[] memory none, ) = board.seats(job, 1, 0);
        vm.assertEq(none.length, 0);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.DrawBlockTooOld.selector, job, 1, 0, sealed_));
        board.commitScores(job, 1, 0, 0, SALT);
        vm.expectEmit(address(board));
        emit IScoreBoard.DrawPostponed(job, 1, 0, here);
        board.draw(job, 1, 0);
        vm.assertEq(uint256(board.panel(job, 1, 0).seats), 0);
        vm.roll(here + 1);
        vm.warp(block.timestamp + 19);
        board.draw(job, 1, 0);
        vm.assertEq(uint256(board.panel(job, 1, 0).seats), 3);
    }

    function test_a_draw_is_postponed_in_the_first_half_only() public {
        (JobId job, ) = toScore();
        uint48 sealed_ = uint48(block.number - 1);
        vm.roll(block.number + 300);
        vm.warp(block.timestamp + 10);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.DrawBlockTooOld.selector, job, 1, 0, sealed_));
        board.draw(job, 1, 0);
    }

    function test_stake_moved_after_the_seal_block_moves_nothing() public {
        (JobId job, ) = toScore();
        (address[] memory before, uint96[] memory weights) = board.seats(job, 1, 0);
        register(address(0xbad), 1_000_000 ether);
        vm.prank(address(0xbad));
        registry.enlist();
        vm.prank(before[0]);
        registry.unbond();
        (address[] memory evaluators, uint96[] memory own) = board.seats(job, 1, 0);
        vm.assertEq(keccak256(abi.encode(evaluators, own)), keccak256(abi.encode(before, weights)));
    }

    // -- commit and reveal ---------------------------------------------------------------------------------------

    function test_the_first_commitment_draws() public {
        (JobId job, ) = toScore();
        (address[] memory evaluators, ) = board.seats(job, 1, 0);
        vm.prank(evaluators[2]);
        board.commitScores(job, 1, 0, 2, SALT);
        vm.assertEq(uint256(board.panel(job, 1, 0).seats), 3);
        vm.assertEq(board.seat(job, 1, 0, 2).root, SALT);
    }

    function test_commitScores_refuses_all_but_the_seats_owner_once() public {
        (JobId job, ) = toScore();
        board.draw(job, 1, 0);
        address own = board.seat(job, 1, 0, 0).evaluator;
        refuse(nodeAt(0), abi.encodeWithSelector(IScoreBoard.NotYourSeat.selector, job, 1, 0, 0, nodeAt(0)));
        board.commitScores(job, 1, 0, 0, SALT);
        refuse(own, abi.encodeWithSelector(IScoreBoard.NotYourSeat.selector, job, 1, 0, 3, own));
        board.commitScores(job, 1, 0, 3, SALT);
        refuse(own, abi.encodeWithSelector(IScoreBoard.EmptyCommitment.selector));
        board.commitScores(job, 1, 0, 0, 0);
        vm.prank(own);
        board.commitScores(job, 1, 0, 0, SALT);
        refuse(own, abi.encodeWithSelector(IScoreBoard.AlreadyDone.selector, job, 1, 0, 0));
        board.commitScores(job, 1, 0, 0, SALT);
        own = board.seat(job, 1, 0, 1).evaluator;
        vm.warp(block.timestamp + 20);
        refuse(own, abi.encodeWithSelector(IScoreBoard.CommitOver.selector, job, 1, 0));
        board.commitScores(job, 1, 0, 1, SALT);
    }

    function test_revealScores_refuses_what_was_not_committed() public {
        (JobId job, ) = toScore();
        bytes memory vector = Trees.vectorOf(goodScores()[0]);
        refuse(nodeAt(0), abi.encodeWithSelector(IScoreBoard.NotRevealing.selector, job, 1, 0));
        board.revealScores(job, 1, 0, 0, vector, SCORE_SALT);
        board.draw(job, 1, 0);
        address own = commitScoresAs(job, 1, 0, 0, goodScores()[0]);
        refuse(own, abi.encodeWithSelector(IScoreBoard.NotRevealing.selector, job, 1, 0));
        board.revealScores(job, 1, 0, 0, vector, SCORE_SALT);
        commitScoresAs(job, 1, 0, 1, goodScores()[0]);
        vm.warp(block.timestamp + 20);

        refuse(nodeAt(0), abi.encodeWithSelector(IScoreBoard.NotYourSeat.selector, job, 1, 0, 0, nodeAt(0)));
        board.revealScores(job, 1, 0, 0, vector, SCORE_SALT);
        address idle = board.seat(job, 1, 0, 2).evaluator;
        refuse(idle, abi.encodeWithSelector(IScoreBoard.NothingCommitted.selector, job, 1, 0, 2));
        board.revealScores(job, 1, 0, 2, vector, SCORE_SALT);
        refuse(own, abi.encodeWithSelector(IScoreBoard.WrongLength.selector, job, 1, 0, 40, 48));
        board.revealScores(job, 1, 0, 0, new bytes(40), SCORE_SALT);
        bytes32 computed = keccak256(abi.encode(job, uint32(1), uint8(0), own, keccak256(vector), SALT));
        refuse(own, abi.encodeWithSelector(IScoreBoard.ScoresMismatch.selector, job, 1, 0, 0, computed));
        board.revealScores(job, 1, 0, 0, vector, SALT);

        revealScoresAs(job, 1, 0, 0);
        refuse(own, abi.encodeWithSelector(IScoreBoard.AlreadyDone.selector, job, 1, 0, 0));
        board.revealScores(job, 1, 0, 0, vector, SCORE_SALT);
        vm.warp(block.timestamp + 20);
        own = board.seat(job, 1, 0, 1).evaluator;
        refuse(own, abi.encodeWithSelector(IScoreBoard.NotRevealing.selector, job, 1, 0));
        board.revealScores(job, 1, 0, 1, vector, SCORE_SALT);
    }

    function test_a_copied_commitment_is_worthless() public {
        (JobId job, ) = toScore();
        board.draw(job, 1, 0);
        commitScoresAs(job, 1, 0, 0, goodScores()[0]);
        bytes32 original = board.seat(job, 1, 0, 0).root;
        address copier = board.seat(job, 1, 0, 1).evaluator;
        vm.prank(copier);
        board.commitScores(job, 1, 0, 1, original);
        vm.warp(block.timestamp + 20);
        bytes memory vector = vectors[1][0][0];
        vm.expectPartialRevert(IScoreBoard.ScoresMismatch.selector);
        vm.prank(copier);
        board.revealScores(job, 1, 0, 1, vector, SCORE_SALT);
    }

    function test_a_delegate_serves_for_its_evaluator() public {
        (JobId job, ) = toScore();
        board.draw(job, 1, 0);
        address own = board.seat(job, 1, 0, 0).evaluator;
        vm.prank(own);
        registry.setDelegate(address(0x407));
        vm.prank(address(0x407));
        registry.actFor(own);
        vm.prank(address(0x407));
        board.commitScores(job, 1, 0, 0, SALT);
        vm.assertEq(board.seat(job, 1, 0, 0).root, SALT);
    }

    function test_an_evaluator_is_a_payee_from_its_first_commitment_on() public {
        (JobId job, ) = toScore();
        // The model, the algorithm, a member, its data set, two more members.
        vm.assertEq(uint256(jobs.payeeCount(job)), 6);
        board.draw(job, 1, 0);
        vm.assertEq(uint256(jobs.payeeCount(job)), 6);
        address own = board.seat(job, 1, 0, 2).evaluator;
        vm.expectEmit(address(jobs));
        emit IJobRecord.PayeeAdded(job, 6, own, 0);
        commitScoresAs(job, 1, 0, 2, goodScores()[0]);
        (, uint32 payees) = board.outcome(job, 1, 0, 20);
        vm.assertEq(uint256(payees), 7);
        vm.warp(block.timestamp + 40);
        playRound(job, MEMBERS);
        vm.roll(block.number + 1);
        board.draw(job, 2, 0);
        for (uint8 seat = 0; seat < 3; ++seat) commitScoresAs(job, 2, 0, seat, goodScores()[seat]);
        vm.assertEq(uint256(jobs.payeeCount(job)), 9);
        (bool found, uint32 index) = jobs.payeeOf(job, own);
        vm.assertTrue(found && index == 6);
    }

    function test_seat_is_the_boards() public {
        (JobId job, ) = toScore();
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.NotBoard.selector, nodeAt(0)));
        jobs.seat(job, nodeAt(0));
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.NotBoard.selector, nodeAt(0)));
        jobs.ban(job, nodeAt(0));
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.NotBoard.selector, nodeAt(0)));
        jobs.unban(job, nodeAt(0));
    }
}

contract MedianTest is ScoringFixture {
    function test_the_median_is_by_stake() public {
        (JobId job, ) = toScore();
        int64[][] memory scores = goodScores();
        for (uint256 seat = 0; seat < 3; ++seat) scores[seat][1] = int64(uint64(seat)) * 7;
        scoreAll(job, 1, 0, scores);
        // Stakes of 10, 11 and 12: any two weigh more than the third.
        vm.assertEq(board.median(job, 1, 0, 1, address(0), wordsOf(job, 1, 0, 1, address(0))), 7);
        vm.assertEq(board.median(job, 1, 0, 0, address(0), wordsOf(job, 1, 0, 0, address(0))), 100_000_000);
        vm.assertEq(board.median(job, 1, 0, 5, address(0), wordsOf(job, 1, 0, 5, address(0))), 1);
    }

    function test_nobody_judges_itself() public {
        (JobId job, ) = toScore();
        int64[][] memory scores = goodScores();
        scores[0][1] = type(int64).max;
        scores[1][1] = 3;
        scores[2][1] = 3;
        scoreAll(job, 1, 0, scores);
        address own = board.seat(job, 1, 0, 0).evaluator;
        vm.assertEq(board.median(job, 1, 0, 1, own, wordsOf(job, 1, 0, 1, own)), 3);
        Word[] memory all = wordsOf(job, 1, 0, 1, address(0));
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.InvalidWord.selector, job, 1, 0, 1));
        board.median(job, 1, 0, 1, own, all);
    }

    function test_without_scores_the_median_is_0() public {
        (JobId job, ) = toScore();
        vm.warp(block.timestamp + 20);
        vm.assertEq(board.median(job, 1, 0, 0, address(0), new Word[](0)), 0);
    }

    function test_every_seat_that_revealed_must_be_heard() public {
        (JobId job, ) = toScore();
        scoreAll(job, 1, 0, goodScores());
        Word[] memory words = wordsOf(job, 1, 0, 0, address(0));
        Word[] memory less = new Word[](2);
        (less[0], less[1]) = (words[0], words[1]);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.WordsMissing.selector, job, 1, 0, 2, 3));
        board.median(job, 1, 0, 0, address(0), less);
        (less[0], less[1]) = (words[0], words[2]);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.InvalidWord.selector, job, 1, 0, 1));
        board.median(job, 1, 0, 0, address(0), less);
        Word[] memory more = new Word[](4);
        for (uint256 i = 0; i < 4; ++i) more[i] = words[i % 3];
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.WordsMissing.selector, job, 1, 0, 4, 3));
        board.median(job, 1, 0, 0, address(0), more);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NoSubject.selector, job, 1, 0, 6));
        board.median(job, 1, 0, 6, address(0), words);
    }

    function testFuzz_an_altered_word_is_refused(uint256 seed, uint8 how) public {
        (JobId job, ) = toScore();
        scoreAll(job, 1, 0, goodScores());
        Word[] memory words = wordsOf(job, 1, 0, 2, address(0));
        uint8 seat = uint8(seed % 3);
        if (how % 3 == 0) words[seat].word ^= bytes32(uint256(1) << (seed % 256));
        else if (how % 3 == 1) words[seat].proof[0] ^= bytes32(uint256(1) << (seed % 256));
        else words[seat].proof = new bytes32[](seed % 2 == 0 ? 0 : 2);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.InvalidWord.selector, job, 1, 0, seat));
        board.median(job, 1, 0, 2, address(0), words);
    }
}

contract OffencesTest is ScoringFixture {
    function stake(address node) private view returns (uint256) {
        return registry.node(node).stake;
    }

    // -- withheld scores -----------------------------------------------------------------------------------------

    function test_who_shows_no_scores_loses_its_bond_once() public {
        (JobId job, ) = toScore();
        board.draw(job, 1, 0);
        commitScoresAs(job, 1, 0, 0, goodScores()[0]);
        commitScoresAs(job, 1, 0, 1, goodScores()[1]);
        vm.warp(block.timestamp + 20);
        revealScoresAs(job, 1, 0, 0);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotDone.selector, job, 1, 0));
        board.punishSeat(job, 1, 0, 1);
        vm.warp(block.timestamp + 20);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NothingHidden.selector, job, 1, 0, 0));
        board.punishSeat(job, 1, 0, 0);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NothingHidden.selector, job, 1, 0, 3));
        board.punishSeat(job, 1, 0, 3);
        for (uint8 seat = 1; seat < 3; ++seat) {
            address own = board.seat(job, 1, 0, seat).evaluator;
            uint256 before = stake(own);
            vm.expectEmit(address(board));
            emit IScoreBoard.ScoresWithheld(job, 1, 0, seat, own);
            board.punishSeat(job, 1, 0, seat);
            vm.assertEq(stake(own), before - BOND);
            vm.expectRevert(abi.encodeWithSelector(IScoreBoard.AlreadyDone.selector, job, 1, 0, seat));
            board.punishSeat(job, 1, 0, seat);
        }
    }

    /// @dev Whoever creates a job that gives nobody time for its scores must not live on the bonds.
    function test_nobody_is_punished_for_a_seat_it_takes_for_no_such_job() public {
        mintAssets();
        enlist(SEATS);
        // 20 seconds and 8 VNX are what these terms have; the last one says so too late.
        limit(evaluatorAt(0), 21, type(uint96).max);
        vm.expectRevert(
            abi.encodeWithSelector(INodeRegistry.SeatLimitOutOfRange.selector, 601, 600, type(uint96).max, STAKE)
        );
        limit(evaluatorAt(1), 601, type(uint96).max);
        vm.expectRevert(
            abi.encodeWithSelector(INodeRegistry.SeatLimitOutOfRange.selector, 600, 600, STAKE - 1, STAKE)
        );
        limit(evaluatorAt(1), 600, STAKE - 1);
        limit(evaluatorAt(1), 20, STAKE);
        (JobId job, ) = toScore(scoredTerms());
        limit(evaluatorAt(2), 600, STAKE);
        board.draw(job, 1, 0);
        vm.warp(block.timestamp + 20);
        for (uint8 seat = 0; seat < SEATS; ++seat) {
            address own = board.seat(job, 1, 0, seat).evaluator;
            bool declined = own == evaluatorAt(0);
            uint256 before = stake(own);
            if (declined) vm.expectRevert(abi.encodeWithSelector(IScoreBoard.SeatDeclined.selector, job, 1, 0, seat, own));
            board.punishSeat(job, 1, 0, seat);
            vm.assertEq(stake(own), declined ? before : before - BOND);
        }
    }

    function test_whoever_commits_has_taken_its_seat() public {
        (JobId job, ) = toScore();
        vm.roll(block.number + 300);
        for (uint256 i = 0; i < SEATS; ++i) limit(evaluatorAt(i), 600, STAKE);
        // The seal's hash is gone: drawn from here, and so with these limits.
        board.draw(job, 1, 0);
        vm.roll(block.number + 1);
        board.draw(job, 1, 0);
        address own = commitScoresAs(job, 1, 0, 1, goodScores()[1]);
        vm.warp(block.timestamp + 40);
        vm.expectPartialRevert(IScoreBoard.SeatDeclined.selector);
        board.punishSeat(job, 1, 0, 0);
        uint256 before = stake(own);
        board.punishSeat(job, 1, 0, 1);
        vm.assertEq(stake(own), before - BOND);
    }

    function limit(address evaluator, uint32 leastWindow, uint96 mostBond) private {
        vm.prank(evaluator);
        registry.limitSeats(leastWindow, mostBond);
    }

    function test_nobody_is_punished_for_a_panel_never_drawn() public {
        (JobId job, ) = toScore();
        vm.warp(block.timestamp + 40);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotDrawn.selector, job, 1, 0));
        board.punishSeat(job, 1, 0, 0);
    }

    // -- outliers ------------------------------------------------------------------------------------------------

    function penalizeAs(address reporter, JobId job, uint8 seat, uint32 subject, address node) private {
        Word[] memory words = wordsOf(job, 1, 0, subject, node);
        vm.prank(reporter);
        board.penalize(job, 1, seat, subject, node, words);
    }

    function test_a_score_beyond_the_tolerance_costs_a_bond_once() public {
        (JobId job, ) = toScore();
        int64[][] memory scores = goodScores();
        scores[1][2] = 400_000_000; // of 300, with a tolerance of 75
        scores[1][3] = 0; // of 50
        scoreAll(job, 1, 0, scores);
        address own = board.seat(job, 1, 0, 1).evaluator;
        uint256 before = stake(own);
        vm.expectEmit(address(board));
        emit IScoreBoard.OutlierPenalized(job, 1, 1, own, 2, 400_000_000, 300_000_000);
        penalizeAs(address(0xfee), job, 1, 2, nodeAt(2));
        vm.assertEq(stake(own), before - BOND);
        vm.assertEq(token.balanceOf(address(0xfee)), BOND / 10);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.AlreadyDone.selector, job, 1, 0, 1));
        board.penalize(job, 1, 1, 3, address(0), new Word[](0));
    }

    function test_an_outlying_worth_of_a_data_set_costs_too() public {
        (JobId job, ) = toScore();
        int64[][] memory scores = goodScores();
        scores[2][3] = 0;
        scoreAll(job, 1, 0, scores);
        penalizeAs(address(this), job, 2, 3, address(0));
    }

    function test_a_score_within_the_tolerance_costs_nothing() public {
        (JobId job, ) = toScore();
        int64[][] memory scores = goodScores();
        scores[0][2] = 375_000_000;
        scoreAll(job, 1, 0, scores);
        Word[] memory words = wordsOf(job, 1, 0, 2, nodeAt(2));
        vm.expectRevert(
            abi.encodeWithSelector(IScoreBoard.NoOutlier.selector, job, 1, 0, 2, 375_000_000, 300_000_000)
        );
        board.penalize(job, 1, 0, 2, nodeAt(2), words);
    }

    function test_penalize_refuses_verdicts_strangers_and_the_unheard() public {
        (JobId job, ) = toScore();
        int64[][] memory scores = goodScores();
        scores[0][4] = -1;
        scoreAll(job, 1, 0, scores);
        Word[] memory words = wordsOf(job, 1, 0, 4, address(0));
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NoSubject.selector, job, 1, 0, 4));
        board.penalize(job, 1, 0, 4, address(0), words);
        words = wordsOf(job, 1, 0, 2, address(0));
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotContributor.selector, job, 1, 2, nodeAt(1)));
        board.penalize(job, 1, 0, 2, nodeAt(1), words);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotContributor.selector, job, 1, 3, nodeAt(1)));
        board.penalize(job, 1, 0, 3, nodeAt(1), words);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotYourSeat.selector, job, 1, 0, 7, address(0)));
        board.penalize(job, 1, 7, 2, nodeAt(2), words);
    }

    // -- audits --------------------------------------------------------------------------------------------------

    function failAudit() private returns (JobId job, address node) {
        (job, ) = toScore();
        int64[][] memory scores = goodScores();
        for (uint256 seat = 0; seat < 3; ++seat) scores[seat][4] = -1;
        scoreAll(job, 1, 0, scores);
        node = auditedNode(job, 1);
    }

    function accuse(JobId job, address node) private {
        board.accuse(job, 1, 0, node, wordsOf(job, 1, 0, 4, node));
    }

    function test_a_failed_audit_bans_and_slashes_once_nobody_can_appeal() public {
        (JobId job, address node) = failAudit();
        uint64 until = uint64(block.timestamp) + 50;
        vm.expectEmit(address(board));
        emit IScoreBoard.AuditFailed(job, 1, node, 0, until);
        vm.expectEmit(address(jobs));
        emit IJobRecord.NodeBanned(job, node);
        accuse(job, node);
        vm.assertEq(uint256(jobs.activeRound(job, node)), type(uint32).max);
        vm.assertEq(board.audit(job, 1, 0).node, node);
        refuse(node, abi.encodeWithSelector(IJobRecord.NotActive.selector, job, 2, node));
        jobs.commit(job, 2, SALT);
        refuse(node, abi.encodeWithSelector(IJobRecord.Banned.selector, job, node));
        jobs.join(job);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.Banned.selector, job, node));
        jobs.expel(job, node);

        vm.warp(until - 1);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.AppealOpen.selector, job, 1, 0, until));
        board.decide(job, 1, 0, new Word[](0));
        vm.warp(until);
        refuse(node, abi.encodeWithSelector(IScoreBoard.MayNotAppeal.selector, job, 1, 0, node, until));
        board.appeal(job, 1, 0);
        vm.expectEmit(address(board));
        emit IScoreBoard.AuditDecided(job, 1, node, 0, true);
        board.decide(job, 1, 0, new Word[](0));
        vm.assertEq(stake(node), STAKE - BOND);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NothingToDecide.selector, job, 1, 0));
        board.decide(job, 1, 0, new Word[](0));
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.AlreadyJudged.selector, job, 1, 0));
        board.accuse(job, 1, 0, node, new Word[](0));
    }

    function test_accuse_refuses_who_passed_or_was_not_audited() public {
        (JobId job, ) = toScore();
        scoreAll(job, 1, 0, goodScores());
        address node = auditedNode(job, 1);
        Word[] memory words = wordsOf(job, 1, 0, 4, node);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotFailed.selector, job, 1, 4, 1));
        board.accuse(job, 1, 0, node, words);
        uint32 index = board.auditedIndex(job, 1, 0);
        address other = nodeAt((index + 1) % 3);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotContributor.selector, job, 1, index, other));
        board.accuse(job, 1, 0, other, words);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NoSubject.selector, job, 1, 0, 5));
        board.accuse(job, 1, 1, node, words);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NothingToDecide.selector, job, 1, 0));
        board.decide(job, 1, 0, words);
    }

    function test_an_appeal_that_is_won_costs_nothing() public {
        (JobId job, address node) = failAudit();
        accuse(job, node);
        refuse(nodeAt(9), abi.encodeWithSelector(IScoreBoard.MayNotAppeal.selector, job, 1, 0, nodeAt(9), block.timestamp + 50));
        board.appeal(job, 1, 0);
        vm.expectEmit(address(board));
        emit IScoreBoard.Appealed(job, 1, node, 0);
        vm.prank(node);
        board.appeal(job, 1, 0);
        refuse(node, abi.encodeWithSelector(IScoreBoard.MayNotAppeal.selector, job, 1, 0, node, block.timestamp + 50));
        board.appeal(job, 1, 0);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotDone.selector, job, 1, 1));
        board.decide(job, 1, 0, new Word[](0));
        vm.roll(block.number + 1);
        scoreAll(job, 1, 1, verdicts(1));
        vm.expectEmit(address(jobs));
        emit IJobRecord.NodeUnbanned(job, node);
        board.decide(job, 1, 0, wordsOf(job, 1, 1, 0, node));
        vm.assertEq(stake(node), STAKE);
        vm.prank(node);
        jobs.join(job);
        vm.assertTrue(jobs.activeRound(job, node) != 0);
    }

    function test_an_appeal_in_vain_costs_two_bonds() public {
        (JobId job, address node) = failAudit();
        accuse(job, node);
        token.approve(address(registry), 10 ether);
        registry.topUp(node, 10 ether);
        vm.prank(node);
        board.appeal(job, 1, 0);
        vm.roll(block.number + 1);
        scoreAll(job, 1, 1, verdicts(-1));
        vm.assertEq(uint256(board.panel(job, 1, 1).subjects), 1);
        board.decide(job, 1, 0, wordsOf(job, 1, 1, 0, node));
        vm.assertEq(stake(node), STAKE + 10 ether - 2 * BOND);
        vm.assertEq(uint256(jobs.activeRound(job, node)), type(uint32).max);
    }

    function test_a_jury_that_never_sits_upholds_no_ban() public {
        (JobId job, address node) = failAudit();
        accuse(job, node);
        vm.prank(node);
        board.appeal(job, 1, 0);
        vm.warp(block.timestamp + 20);
        board.decide(job, 1, 0, new Word[](0));
        vm.assertEq(stake(node), STAKE);
        vm.assertEq(uint256(jobs.activeRound(job, node)), 0);
    }

    function test_a_node_banned_twice_needs_both_bans_lifted() public {
        (JobId job, ) = failAudit();
        vm.prank(address(board));
        jobs.ban(job, nodeAt(0));
        vm.prank(address(board));
        jobs.ban(job, nodeAt(0));
        vm.prank(address(board));
        jobs.unban(job, nodeAt(0));
        vm.assertEq(uint256(jobs.activeRound(job, nodeAt(0))), type(uint32).max);
        vm.prank(address(board));
        jobs.unban(job, nodeAt(0));
        vm.assertEq(uint256(jobs.activeRound(job, nodeAt(0))), 0);
    }

    function test_an_audited_node_opens_its_shard() public {
        (JobId job, ) = toScore();
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotDrawn.selector, job, 1, 0));
        board.openShard(job, 1, 0, SPEC);
        board.draw(job, 1, 0);
        address node = auditedNode(job, 1);
        vm.expectEmit(address(board));
        emit IScoreBoard.ShardOpened(job, 1, node, 0, SPEC);
        vm.prank(node);
        board.openShard(job, 1, 0, SPEC);
        vm.prank(node);
        registry.setDelegate(address(0x407));
        vm.prank(address(0x407));
        registry.actFor(node);
        vm.expectEmit(address(board));
        emit IScoreBoard.ShardOpened(job, 1, node, 0, SPEC);
        vm.prank(address(0x407));
        board.openShard(job, 1, 0, SPEC);
        uint32 index = board.auditedIndex(job, 1, 0);
        address other = nodeAt((index + 1) % 3);
        refuse(other, abi.encodeWithSelector(IScoreBoard.NotContributor.selector, job, 1, index, other));
        board.openShard(job, 1, 0, SPEC);
    }

    // -- models --------------------------------------------------------------------------------------------------

    function test_a_wrong_model_costs_its_publisher_a_bond_once() public {
        (JobId job, address publisher) = toScore();
        int64[][] memory scores = goodScores();
        for (uint256 seat = 0; seat < 2; ++seat) scores[seat][5] = -1;
        scoreAll(job, 1, 0, scores);
        Word[] memory words = wordsOf(job, 1, 0, 5, publisher);
        uint32 index = jobs.publication(job, 1).publisherIndex;
        address other = nodeAt((index + 1) % 3);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotContributor.selector, job, 1, index, other));
        board.denounce(job, 1, other, words);
        vm.expectEmit(address(board));
        emit IScoreBoard.ModelDenounced(job, 1, publisher);
        board.denounce(job, 1, publisher, words);
        vm.assertEq(stake(publisher), STAKE - BOND);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.AlreadyJudged.selector, job, 1, 0));
        board.denounce(job, 1, publisher, words);
    }

    function test_a_right_model_is_not_denounced() public {
        (JobId job, address publisher) = toScore();
        scoreAll(job, 1, 0, goodScores());
        Word[] memory words = wordsOf(job, 1, 0, 5, publisher);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotFailed.selector, job, 1, 5, 1));
        board.denounce(job, 1, publisher, words);
    }
}
