// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IAssetRegistry} from "../interfaces/IAssetRegistry.sol";
import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {INodeRegistry} from "../interfaces/INodeRegistry.sol";
import {Settling} from "../libraries/Settling.sol";
import {SumTree} from "../libraries/SumTree.sol";
import {Terms} from "../libraries/Terms.sol";
import {Vote, WeightedMedian} from "../libraries/WeightedMedian.sol";
import {Weights} from "../libraries/Weights.sol";
import {Job} from "../types/Job.sol";
import {Leaf, ProofStep, Tree} from "../types/Rewards.sol";
import {Cid, JobId, JobTerms} from "../types/Types.sol";
import {vm} from "./Vm.t.sol";

/// @notice The accounting, checked by halmos for every input at once: `make halmos`. Only `check_` functions are.
contract AccountingCheck {
    using Settling for Job;
    using Weights for uint256;

    JobId private constant JOB = JobId.wrap(1);

    Job private job;

    /// @notice What Terms asks of the registry.
    uint64 public constant unbondDelay = 1 days;

    // -- calls of their own, so that the arguments are calldata and a refusal can be seen -----------------------------

    function climb(
        Tree tree,
        bytes32 node,
        uint256 sum,
        ProofStep[] calldata proof
    ) public pure returns (bytes32, uint256, uint256) {
        return SumTree.climb(tree, node, sum, proof);
    }

    function escrowOf(JobTerms calldata terms) public view returns (uint112) {
        return Terms.check(terms, INodeRegistry(address(this)), IAssetRegistry(address(0)));
    }

    function release(uint128 total) public returns (uint112) {
        return job.release(JOB, 0, total);
    }

    function leafOf(Leaf calldata leaf) public pure returns (bytes32) {
        return SumTree.hash(leaf);
    }

    // -- the flow of money ---------------------------------------------------------------------------------------------

    /// @notice A settlement takes from what is held, adds at most a budget, and what is spent never shrinks.
    function check_a_settlement_adds_at_most_a_budget(uint112 held, uint112 spent, uint96 budget, uint128 total) public {
        vm.assume(uint256(held) + spent <= type(uint112).max);
        (job.held, job.spent, job.terms.roundBudget) = (held, spent, budget);
        try this.release(total) returns (uint112 amount) {
            vm.assertTrue(amount <= budget && amount <= held);
            vm.assertTrue(uint256(spent) + amount == total);
            vm.assertTrue(job.held == held - amount && job.spent == total);
        } catch (bytes memory reason) {
            vm.assertTrue(bytes4(reason) == IJobRecord.TotalOutOfRange.selector);
            vm.assertTrue(total < spent || total > uint256(spent) + budget || total > uint256(spent) + held);
        }
    }

    /// @notice An overturned settlement leaves the escrow as it was before it.
    function check_an_overturned_settlement_leaves_nothing_behind(
        uint112 held,
        uint112 spent,
        uint96 budget,
        uint128 total
    ) public {
        vm.assume(uint256(held) + spent <= type(uint112).max);
        (job.held, job.spent, job.terms.roundBudget) = (held, spent, budget);
        job.completed = 1;
        job.published[0].round = 7;
        vm.assume(total >= spent && total <= uint256(spent) + budget && total <= uint256(spent) + held);
        uint112 amount = this.release(total);
        vm.assertTrue(job.settled == 1);
        job.retake(JOB, 7, spent, amount);
        vm.assertTrue(job.held == held && job.spent == spent && job.settled == 0);
    }

    /// @notice A job's escrow is exactly its rounds' budgets, or the budget is refused: for any budget, and the counts
    /// of rounds at which 112 bits overflow sooner or later.
    function check_an_escrow_is_every_rounds_budget(uint96 budget) public view {
        uint32[4] memory counts = [uint32(1), 3, 1 << 16, type(uint32).max];
        for (uint256 i = 0; i < counts.length; ++i) {
            JobTerms memory terms;
            terms.spec = Cid.wrap(bytes32(uint256(1)));
            (terms.rounds, terms.quorum, terms.minNodes, terms.roundBudget) = (counts[i], 1, 1, budget);
            (terms.openWindow, terms.commitWindow, terms.revealWindow, terms.scoreWindow) = (1, 1, 1, 1);
            (terms.aggregateWindow, terms.settleWindow, terms.challengeWindow) = (1, 2, 1);
            uint256 whole = uint256(counts[i]) * budget;
            try this.escrowOf(terms) returns (uint112 escrow) {
                vm.assertTrue(escrow == whole && budget > 0);
            } catch (bytes memory reason) {
                vm.assertTrue(bytes4(reason) == IJobRecord.TermOutOfRange.selector);
                vm.assertTrue(budget == 0 || whole > type(uint112).max);
            }
        }
    }

    /// @notice The refund of an ended job leaves the budget of each round that may still be settled, and no more.
    function check_a_refund_leaves_the_budgets_of_open_rounds(uint96 budget, uint40 first, uint40 second) public {
        uint40 time = 1_700_000_000;
        (uint32 settleWindow, uint32 scoreWindow) = (900, 60);
        vm.assume(first <= second && second <= time);
        vm.warp(time);
        job.completed = 2;
        job.terms.roundBudget = budget;
        (job.terms.settleWindow, job.terms.scoreWindow) = (settleWindow, scoreWindow);
        (job.published[0].publishedAt, job.published[1].publishedAt) = (first, second);
        // Settling.check refuses once the window passed, to the second.
        uint256 window = settleWindow + 2 * scoreWindow;
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

    // -- sums ----------------------------------------------------------------------------------------------------------

    /// @notice A leaf alone is its own root, and the sum of its tree is what it is owed.
    function check_a_leaf_alone_is_its_root(Leaf memory leaf) public view {
        bytes32 hash = this.leafOf(leaf);
        (bytes32 root, uint256 total, uint256 place) = this.climb(Tree.Reward, hash, leaf.cumulative, new ProofStep[](0));
        vm.assertTrue(root == hash && total == leaf.cumulative && place == 0);
    }

    /// @notice Whatever leads to a place below a root, its sum is part of the root's: none is owed more than was settled.
    /// @dev Left or right is no variable here: it decides where in memory a step is laid.
    function check_no_leaf_is_owed_more_than_the_total(
        bytes32 node,
        uint128 own,
        ProofStep memory first,
        ProofStep memory second
    ) public view {
        ProofStep[] memory proof = new ProofStep[](2);
        (proof[0], proof[1]) = (first, second);
        for (uint256 sides = 0; sides < 4; ++sides) {
            (first.isLeft, second.isLeft) = (sides % 2 == 1, sides > 1);
            (, uint256 total, uint256 place) = this.climb(Tree.Reward, node, own, proof);
            if (place == SumTree.NOWHERE) continue;
            vm.assertTrue(place == sides);
            vm.assertTrue(total <= type(uint128).max && own <= total);
            // Without a wrap: each part by itself is no more than the whole either.
            vm.assertTrue(first.sum <= total && second.sum <= total && own + first.sum + second.sum == total);
        }
    }

    /// @notice Two children add up, or may not stand together: the climb and the judge of nodes agree on which.
    function check_climbing_and_adding_agree(bytes32 node, uint256 left, ProofStep memory step, bool score) public view {
        Tree tree = score ? Tree.Score : Tree.Reward;
        step.isLeft = false;
        ProofStep[] memory proof = new ProofStep[](1);
        proof[0] = step;
        (, uint256 total, uint256 place) = this.climb(tree, node, left, proof);
        (uint256 sum, bool sound) = SumTree.add(tree, left, step.sum);
        vm.assertTrue(total == sum && sound == (place != SumTree.NOWHERE));
    }

    /// @notice Sound sums of weights add field by field.
    function check_weights_add_field_by_field(uint256 left, uint256 right) public pure {
        (uint256 sum, bool sound) = SumTree.add(Tree.Score, left, right);
        bool fits = left.compute() + right.compute() <= type(uint112).max &&
            left.data() + right.data() <= type(uint112).max &&
            left.accepted() + right.accepted() <= type(uint32).max;
        vm.assertTrue(sound == fits);
        if (!sound) return;
        vm.assertTrue(sum.compute() == left.compute() + right.compute());
        vm.assertTrue(sum.data() == left.data() + right.data());
        vm.assertTrue(sum.accepted() == left.accepted() + right.accepted());
    }

    /// @notice Votes sort as their scores do, then by seat, and keep both.
    function check_votes_sort_by_score_then_seat(int64 a, uint8 seatA, uint96 weightA, int64 b, uint8 seatB) public pure {
        Vote first = WeightedMedian.vote(a, seatA, weightA);
        Vote second = WeightedMedian.vote(b, seatB, 1);
        vm.assertTrue(WeightedMedian.scoreOf(first) == a && WeightedMedian.weightOf(first) == weightA);
        if (a < b || (a == b && seatA < seatB)) vm.assertTrue(Vote.unwrap(first) < Vote.unwrap(second));
    }
}
