// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITrainingJobs} from "../interfaces/ITrainingJobs.sol";
import {Publications} from "../libraries/Publications.sol";
import {Settling} from "../libraries/Settling.sol";
import {SumTree} from "../libraries/SumTree.sol";
import {Terms} from "../libraries/Terms.sol";
import {Job} from "../types/Job.sol";
import {Cid, JobId, JobTerms, Leaf, ProofStep, Publication} from "../types/Types.sol";
import {Trees} from "./Fixture.t.sol";
import {vm} from "./Vm.t.sol";

/// @notice The accounting, checked by halmos for every input at once: `make halmos`. Only `check_` functions are.
contract AccountingCheck {
    using Settling for Job;

    Job private job;

    /// @dev Calls of their own, so that the arguments are calldata and a refusal can be seen.
    function verify(Leaf calldata leaf, ProofStep[] calldata proof, bytes32 root, uint128 total) public pure returns (bool) {
        return SumTree.verify(leaf, proof, root, total);
    }

    function escrowOf(JobTerms calldata terms) public pure returns (uint112) {
        return Terms.check(terms);
    }

    function sound() private pure returns (JobTerms memory terms) {
        terms.spec = Cid.wrap(bytes32(uint256(1)));
        (terms.rounds, terms.quorum, terms.minNodes, terms.roundBudget) = (1, 1, 1, 1);
        (terms.openWindow, terms.commitWindow, terms.revealWindow) = (1, 1, 1);
        (terms.aggregateWindow, terms.settleWindow, terms.challengeWindow) = (1, 2, 1);
    }

    function added(uint128 total) public view returns (uint128) {
        return job.added(JobId.wrap(1), total);
    }

    /// @notice No round adds more than its budget, and what is spent never shrinks.
    function check_a_settlement_adds_at_most_a_budget(uint112 spent, uint96 budget, uint128 total) public {
        job.spent = spent;
        job.terms.roundBudget = budget;
        try this.added(total) returns (uint128 amount) {
            vm.assertTrue(total >= spent);
            vm.assertTrue(amount <= budget);
            vm.assertTrue(uint256(spent) + amount == total);
        } catch (bytes memory reason) {
            vm.assertTrue(bytes4(reason) == ITrainingJobs.TotalOutOfRange.selector);
            vm.assertTrue(total < spent || total > uint256(spent) + budget);
        }
    }

    /// @notice A job's escrow is exactly its rounds' budgets, or the budget is refused: for any budget, and the counts
    /// of rounds at which 112 bits overflow sooner or later.
    function check_an_escrow_is_every_rounds_budget(uint96 budget) public view {
        uint32[4] memory counts = [uint32(1), 3, 1 << 16, type(uint32).max];
        for (uint256 i = 0; i < counts.length; ++i) {
            JobTerms memory terms = sound();
            (terms.rounds, terms.roundBudget) = (counts[i], budget);
            uint256 whole = uint256(counts[i]) * budget;
            try this.escrowOf(terms) returns (uint112 escrow) {
                vm.assertTrue(escrow == whole && budget > 0);
            } catch (bytes memory reason) {
                vm.assertTrue(bytes4(reason) == ITrainingJobs.TermOutOfRange.selector);
                vm.assertTrue(budget == 0 || whole > type(uint112).max);
            }
        }
    }

    /// @notice The refund of an ended job leaves the budget of each round that may still be settled, and no more.
    function check_a_refund_leaves_the_budgets_of_open_rounds(uint96 budget, uint40 first, uint40 second) public {
        uint40 time = 1_700_000_000;
        uint32 window = 900;
        vm.assume(first <= second && second <= time);
        vm.warp(time);
        job.completed = 2;
        job.terms.roundBudget = budget;
        job.terms.settleWindow = window;
        job.published[0] = Publication(address(1), first, 1);
        job.published[1] = Publication(address(1), second, 2);
        // Settling.check refuses once the window passed, to the second.
        uint256 firstOpen = time < uint256(first) + window ? 1 : 0;
        uint256 secondOpen = time < uint256(second) + window ? 1 : 0;
        uint112 held = uint112(2 * uint256(budget));
        job.held = held;
        vm.assertTrue(job.refundable() == held - (firstOpen + secondOpen) * budget);
        // The first is settled, or passed over: its budget is nobody's any more.
        job.settled = 1;
        vm.assertTrue(job.refundable() == held - secondOpen * budget);
        job.settled = 2;
        vm.assertTrue(job.refundable() == held);
    }

    /// @notice A single leaf is its own root, and its total is what it is owed.
    function check_a_leaf_alone_is_its_root(Leaf memory leaf, bytes32 root, uint128 total) public view {
        bool proven = this.verify(leaf, new ProofStep[](0), root, total);
        vm.assertTrue(proven == (root == Trees.hashLeaf(leaf) && total == leaf.cumulative));
    }

    /// @notice Whatever is proven below a root, its sum is part of the total: none is owed more than was settled.
    /// @dev Left or right is no variable here: it decides where in memory a step is laid.
    function check_no_leaf_is_owed_more_than_the_total(
        Leaf memory leaf,
        ProofStep memory first,
        ProofStep memory second,
        bytes32 root,
        uint128 total
    ) public view {
        ProofStep[] memory proof = new ProofStep[](2);
        (proof[0], proof[1]) = (first, second);
        for (uint256 sides = 0; sides < 4; ++sides) {
            (first.isLeft, second.isLeft) = (sides % 2 == 1, sides > 1);
            if (!this.verify(leaf, proof, root, total)) continue;
            vm.assertTrue(uint256(leaf.cumulative) + first.sum + second.sum == total);
        }
    }

    /// @notice Both leaves of a tree of two prove themselves, whatever they hold, unless their sum has over 128 bits.
    function check_each_of_two_leaves_proves_itself(Leaf memory left, Leaf memory right) public view {
        vm.assume(uint256(left.cumulative) + right.cumulative <= type(uint128).max);
        (bytes32 leftHash, bytes32 rightHash) = (Trees.hashLeaf(left), Trees.hashLeaf(right));
        bytes32 root = Trees.hashInner(leftHash, left.cumulative, rightHash, right.cumulative);
        uint128 total = left.cumulative + right.cumulative;
        ProofStep[] memory proof = new ProofStep[](1);
        proof[0] = ProofStep(rightHash, right.cumulative, false);
        vm.assertTrue(this.verify(left, proof, root, total));
        proof[0] = ProofStep(leftHash, left.cumulative, true);
        vm.assertTrue(this.verify(right, proof, root, total));
    }
}
