// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {IScoreBoard} from "../interfaces/IScoreBoard.sol";
import {Weights} from "../libraries/Weights.sol";
import {Word} from "../types/Scores.sol";
import {JobId} from "../types/Types.sol";
import {ScoringFixture} from "./Scoring.t.sol";
import {vm} from "./Vm.t.sol";

/// @notice The members are the evaluators, all with the same stake. Whoever is judged has no voice, so that two are left: one
/// of them may lie, and nobody can tell which.
contract DoubtTest is ScoringFixture {
    function stake(address node) private view returns (uint256) {
        return registry.node(node).stake;
    }

    function membersToScore() private returns (JobId job, address publisher) {
        mintAssets();
        for (uint256 i = 0; i < MEMBERS; ++i) {
            register(nodeAt(i), STAKE);
            vm.prank(nodeAt(i));
            registry.enlist();
        }
        (job, publisher) = toScore(scoredTerms());
        board.draw(job, 1, 0);
    }

    function seatOf(JobId job, uint8 panel, address node) private view returns (uint8 seat) {
        (, seat, ) = board.seatOf(job, 1, panel, node);
    }

    /// @dev The one after this member says something of a subject that the one after that does not.
    function tell(
        JobId job,
        int64[][] memory scores,
        uint256 member,
        uint8 panel,
        uint32 subject,
        int64 lie
    ) private view returns (uint8 liar, uint8 honest) {
        liar = seatOf(job, panel, nodeAt((member + 1) % MEMBERS));
        honest = seatOf(job, panel, nodeAt((member + 2) % MEMBERS));
        scores[liar][subject] = lie;
    }

    function show(JobId job, uint8 panel, int64[][] memory scores) private {
        for (uint8 seat = 0; seat < SEATS; ++seat) commitScoresAs(job, 1, panel, seat, scores[seat]);
        for (uint8 seat = 0; seat < SEATS; ++seat) revealScoresAs(job, 1, panel, seat);
    }

    function assertNoOutlier(JobId job, uint8 seat, uint32 subject, int64 score) private {
        address node = nodeAt(subject);
        Word[] memory words = wordsOf(job, 1, 0, subject, node);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NoOutlier.selector, job, 1, seat, subject, score, score));
        board.penalize(job, 1, seat, subject, node, words);
    }

    function test_of_two_who_disagree_neither_loses_its_bond() public {
        (JobId job, ) = membersToScore();
        int64[3] memory lies = [int64(-900_000_000), 900_000_000, Weights.REFUSED];
        uint8[3] memory liars;
        uint8[3] memory honest;
        int64[][] memory scores = goodScores();
        for (uint32 i = 0; i < 3; ++i) (liars[i], honest[i]) = tell(job, scores, i, 0, i, lies[i]);
        show(job, 0, scores);
        for (uint32 i = 0; i < 3; ++i) {
            assertNoOutlier(job, honest[i], i, (int64(uint64(i)) + 1) * 100_000_000);
            assertNoOutlier(job, liars[i], i, lies[i]);
        }
        // What is paid follows the lower one, as before.
        vm.assertEq(board.median(job, 1, 0, 1, nodeAt(1), wordsOf(job, 1, 0, 1, nodeAt(1))), 200_000_000);
    }

    function test_of_three_the_odd_one_loses_its_bond() public {
        (JobId job, ) = membersToScore();
        int64[][] memory scores = goodScores();
        (uint8 liar, ) = tell(job, scores, 0, 0, 3, 900_000_000);
        show(job, 0, scores);
        address own = board.seat(job, 1, 0, liar).evaluator;
        board.penalize(job, 1, liar, 3, address(0), wordsOf(job, 1, 0, 3, address(0)));
        vm.assertEq(stake(own), STAKE - BOND);
    }

    function test_half_of_the_stake_fails_no_audit() public {
        (JobId job, ) = membersToScore();
        uint256 audited = board.auditedIndex(job, 1, 0);
        int64[][] memory scores = goodScores();
        tell(job, scores, audited, 0, 4, -1);
        show(job, 0, scores);
        Word[] memory words = wordsOf(job, 1, 0, 4, nodeAt(audited));
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotFailed.selector, job, 1, 4, 1));
        board.accuse(job, 1, 0, nodeAt(audited), words);
    }

    function test_half_of_the_stake_denounces_no_model() public {
        (JobId job, address publisher) = membersToScore();
        int64[][] memory scores = goodScores();
        (, uint8 honest) = tell(job, scores, jobs.publication(job, 1).publisherIndex, 0, 5, -1);
        // Nor with somebody who cannot tell.
        scores[honest][5] = 0;
        show(job, 0, scores);
        Word[] memory words = wordsOf(job, 1, 0, 5, publisher);
        vm.expectRevert(abi.encodeWithSelector(IScoreBoard.NotFailed.selector, job, 1, 5, 0));
        board.denounce(job, 1, publisher, words);
    }

    /// @dev A ban by two of two, the accused aside, then a jury of the same three.
    function appealed(int64 said, bool byBoth) private returns (JobId job, address node) {
        (job, ) = membersToScore();
        uint256 audited = board.auditedIndex(job, 1, 0);
        node = nodeAt(audited);
        int64[][] memory scores = goodScores();
        for (uint256 seat = 0; seat < SEATS; ++seat) scores[seat][4] = -1;
        show(job, 0, scores);
        board.accuse(job, 1, 0, node, wordsOf(job, 1, 0, 4, node));
        vm.prank(node);
        board.appeal(job, 1, 0);
        vm.roll(block.number + 1);
        board.draw(job, 1, 1);
        scores = verdicts(byBoth ? said : int64(1));
        tell(job, scores, audited, 1, 0, said);
        show(job, 1, scores);
        board.decide(job, 1, 0, wordsOf(job, 1, 1, 0, node));
    }

    function test_half_of_a_jury_upholds_no_ban() public {
        (JobId job, address node) = appealed(-1, false);
        vm.assertEq(stake(node), STAKE);
        vm.assertEq(uint256(jobs.activeRound(job, node)), 0);
    }

    function test_a_jury_that_cannot_tell_upholds_no_ban() public {
        (JobId job, address node) = appealed(0, true);
        vm.assertEq(stake(node), STAKE);
        vm.assertEq(uint256(jobs.activeRound(job, node)), 0);
    }

    function test_a_jury_of_one_mind_upholds_the_ban() public {
        (JobId job, address node) = appealed(-1, true);
        vm.assertEq(stake(node), 0);
        vm.assertEq(uint256(jobs.activeRound(job, node)), type(uint32).max);
        refuse(node, abi.encodeWithSelector(IJobRecord.Banned.selector, job, node));
        jobs.join(job);
    }
}
