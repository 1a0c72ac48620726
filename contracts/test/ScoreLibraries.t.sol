// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeRegistry} from "../interfaces/INodeRegistry.sol";
import {Outliers} from "../libraries/Outliers.sol";
import {Cut, Overturns} from "../libraries/Overturns.sol";
import {Rewards} from "../libraries/Rewards.sol";
import {Sortition} from "../libraries/Sortition.sol";
import {SumTree} from "../libraries/SumTree.sol";
import {VectorTree} from "../libraries/VectorTree.sol";
import {Vote, WeightedMedian} from "../libraries/WeightedMedian.sol";
import {Weights} from "../libraries/Weights.sol";
import {Leaf, ProofStep, ScoreLeaf, Tree} from "../types/Rewards.sol";
import {JobId} from "../types/Types.sol";
import {Sum, Trees} from "./Trees.t.sol";
import {bound, vm} from "./Vm.t.sol";

contract SumTreeTest {
    /// @dev Calls of their own, so that the arguments are calldata.
    function climb(
        Tree tree,
        bytes32 node,
        uint256 sum,
        ProofStep[] calldata proof
    ) public pure returns (bytes32, uint256, uint256) {
        return SumTree.climb(tree, node, sum, proof);
    }

    function hash(Leaf calldata leaf) public pure returns (bytes32) {
        return SumTree.hash(leaf);
    }

    function hashScore(ScoreLeaf calldata leaf) public pure returns (bytes32) {
        return SumTree.hash(leaf);
    }

    function nodesOf(Tree tree, uint256 seed, uint256 count) private pure returns (Sum[] memory nodes) {
        nodes = new Sum[](count);
        for (uint256 i = 0; i < count; ++i) {
            bytes32 random = keccak256(abi.encode(seed, i));
            uint256 value = uint256(random) >> 150;
            nodes[i] = Sum(random, tree == Tree.Reward ? value : value | (value << 112) | (1 << 224));
        }
    }

    function testFuzz_each_node_leads_to_the_root(uint256 seed, uint256 count, bool score) public view {
        Tree tree = score ? Tree.Score : Tree.Reward;
        Sum[] memory nodes = nodesOf(tree, seed, bound(count, 1, 33));
        Sum memory top = Trees.topOf(tree, nodes);
        for (uint256 i = 0; i < nodes.length; ++i) {
            ProofStep[] memory proof = Trees.proofOf(tree, nodes, i, 0);
            (bytes32 root, uint256 total, uint256 place) = this.climb(tree, nodes[i].hash, nodes[i].value, proof);
            vm.assertEq(root, top.hash);
            vm.assertEq(total, top.value);
            vm.assertEq(place, i);
            vm.assertEq(proof.length, SumTree.depthOf(nodes.length));
            vm.assertTrue(SumTree.isDepth(nodes.length, proof.length));
        }
    }

    function testFuzz_leaf_hashes_are_those_of_the_abi_encoding(Leaf memory leaf, ScoreLeaf memory score) public view {
        vm.assertEq(this.hash(leaf), Trees.nodeOf(leaf).hash);
        vm.assertEq(this.hashScore(score), Trees.nodeOf(score).hash);
    }

    function testFuzz_depths(uint256 leaves, uint256 depth) public pure {
        leaves = bound(leaves, 0, 5000);
        depth = bound(depth, 0, 20);
        uint256 right = 0;
        while ((1 << right) < leaves) ++right;
        vm.assertEq(SumTree.depthOf(leaves), right);
        vm.assertEq(SumTree.isDepth(leaves, depth), depth == right);
    }

    function testFuzz_an_altered_step_leads_elsewhere(uint256 seed, uint256 count, uint256 place, uint256 how) public view {
        Sum[] memory nodes = nodesOf(Tree.Reward, seed, bound(count, 2, 33));
        place = bound(place, 0, nodes.length - 1);
        Sum memory top = Trees.topOf(Tree.Reward, nodes);
        ProofStep[] memory proof = Trees.proofOf(Tree.Reward, nodes, place, 0);
        ProofStep memory step = proof[seed % proof.length];
        if (how % 3 == 0) step.hash ^= bytes32(uint256(1));
        else if (how % 3 == 1) step.sum ^= 1;
        else step.isLeft = !step.isLeft;
        (bytes32 root, , ) = this.climb(Tree.Reward, nodes[place].hash, nodes[place].value, proof);
        vm.assertTrue(root != top.hash);
    }

    /// @dev Field by field, with numbers that fit: twice the fields, none of which is as wide as its place.
    function testFuzz_sums_that_carry_or_overflow_are_nowhere(uint256 left, uint256 right, bool score) public view {
        Tree tree = score ? Tree.Score : Tree.Reward;
        bool sound;
        if (score) {
            sound =
                (left & type(uint112).max) + (right & type(uint112).max) <= type(uint112).max &&
                ((left << 32) >> 144) + ((right << 32) >> 144) <= type(uint112).max &&
                (left >> 224) + (right >> 224) <= type(uint32).max;
        } else {
            if (left % 3 == 0) (left, right) = (left >> 128, right >> 128);
            if (left % 3 == 1) (left, right) = (left >> 129, right >> 129);
            sound = left <= type(uint128).max && right <= type(uint128).max && left + right <= type(uint128).max;
        }
        ProofStep[] memory proof = new ProofStep[](1);
        proof[0] = ProofStep(0, right, false);
        (, , uint256 place) = this.climb(tree, 0, left, proof);
        vm.assertEq(place == SumTree.NOWHERE, !sound);
        (, bool added) = SumTree.add(tree, left, right);
        vm.assertEq(added, sound);
    }

    function test_a_sum_that_wraps_and_shrinks_again_is_nowhere() public view {
        ProofStep[] memory proof = new ProofStep[](2);
        proof[0] = ProofStep(0, type(uint256).max, false);
        proof[1] = ProofStep(0, 1, false);
        (, uint256 total, uint256 place) = this.climb(Tree.Reward, 0, 7, proof);
        vm.assertEq(total, 7);
        vm.assertEq(place, SumTree.NOWHERE);
    }
}

contract VectorTreeTest {
    function rootOf(bytes calldata vector, bytes32) public pure returns (bytes32) {
        return VectorTree.rootOf(vector);
    }

    function holds(
        bytes32 root,
        uint256 subjects,
        uint256 subject,
        bytes32 word,
        bytes32[] calldata proof
    ) public pure returns (bool) {
        return VectorTree.holds(root, subjects, subject, word, proof);
    }

    function scoresOf(uint256 seed, uint256 count) private pure returns (int64[] memory scores) {
        scores = new int64[](count);
        for (uint256 i = 0; i < count; ++i) scores[i] = int64(uint64(uint256(keccak256(abi.encode(seed, i)))));
    }

    function testFuzz_every_score_proves_itself(uint256 seed, uint256 count) public view {
        int64[] memory scores = scoresOf(seed, bound(count, 1, 70));
        bytes memory vector = Trees.vectorOf(scores);
        vm.assertEq(vector.length, 8 * scores.length);
        bytes32 root = this.rootOf(vector, bytes32(type(uint256).max));
        vm.assertEq(root, Trees.vectorRoot(vector));
        bytes32[] memory words = Trees.wordsOf(vector);
        for (uint256 i = 0; i < scores.length; ++i) {
            bytes32[] memory proof = Trees.vectorProof(vector, i / 4);
            vm.assertTrue(this.holds(root, scores.length, i, words[i / 4], proof));
            vm.assertEq(VectorTree.scoreIn(words[i / 4], i), scores[i]);
            if (words.length > 1) {
                uint256 other = (i + 4) % (4 * words.length);
                vm.assertFalse(this.holds(root, scores.length, other, words[i / 4], proof));
            }
        }
    }

    function test_an_empty_vector_has_no_root() public view {
        vm.assertEq(this.rootOf("", bytes32(type(uint256).max)), 0);
    }
}

contract WeightedMedianTest {
    function testFuzz_the_median_splits_the_stake(uint256 seed, uint256 count) public pure {
        count = bound(count, 1, 16);
        Vote[] memory votes = new Vote[](count);
        int64[] memory scores = new int64[](count);
        uint96[] memory weights = new uint96[](count);
        uint256 total = 0;
        for (uint8 i = 0; i < count; ++i) {
            uint256 random = uint256(keccak256(abi.encode(seed, i)));
            scores[i] = random % 7 == 0 ? type(int64).min : (int64(int256((random >> 8) % 9)) - 4) * 700_000;
            // Small ones too, so that halves are exact.
            weights[i] = uint96(1 + ((random >> 72) % (seed % 2 == 0 ? 3 : 1000 ether)));
            total += weights[i];
            votes[i] = WeightedMedian.vote(scores[i], i, weights[i]);
            vm.assertEq(WeightedMedian.scoreOf(votes[i]), scores[i]);
            vm.assertEq(WeightedMedian.weightOf(votes[i]), weights[i]);
        }
        (int64 lower, int64 upper) = WeightedMedian.medians(votes, count);
        vm.assertEq(WeightedMedian.median(votes, count), lower);
        assertSplits(scores, weights, total, lower, upper);
        // More than half of the stake says something else than who is an outlier of both; what one of them says is none.
        for (uint256 i = 0; i < count; ++i) {
            if (!Outliers.isOutlier(scores[i], lower) || !Outliers.isOutlier(scores[i], upper)) continue;
            uint256 against = 0;
            for (uint256 j = 0; j < count; ++j) {
                if (Outliers.isOutlier(scores[i], scores[j])) against += weights[j];
            }
            vm.assertTrue(2 * against > total);
        }
    }

    function assertSplits(
        int64[] memory scores,
        uint96[] memory weights,
        uint256 total,
        int64 lower,
        int64 upper
    ) private pure {
        uint256[4] memory sums;
        for (uint256 i = 0; i < scores.length; ++i) {
            if (scores[i] < lower) sums[0] += weights[i];
            if (scores[i] <= lower) sums[1] += weights[i];
            if (scores[i] > upper) sums[2] += weights[i];
            if (scores[i] >= upper) sums[3] += weights[i];
        }
        vm.assertLt(2 * sums[0], total);
        vm.assertGe(2 * sums[1], total);
        vm.assertLt(2 * sums[2], total);
        vm.assertGe(2 * sums[3], total);
    }

    function test_of_two_equals_one_is_the_lower_and_one_the_upper_median() public pure {
        Vote[] memory votes = new Vote[](3);
        votes[0] = WeightedMedian.vote(9, 0, 5);
        votes[1] = WeightedMedian.vote(-9, 1, 5);
        vm.assertEq(WeightedMedian.median(votes, 2), -9);
        vm.assertEq(WeightedMedian.median(votes, 0), 0);
        (int64 lower, int64 upper) = WeightedMedian.medians(votes, 2);
        vm.assertTrue(lower == -9 && upper == 9);
        votes[2] = WeightedMedian.vote(4, 2, 1);
        (lower, upper) = WeightedMedian.medians(votes, 3);
        vm.assertTrue(lower == 4 && upper == 4);
        (lower, upper) = WeightedMedian.medians(votes, 0);
        vm.assertTrue(lower == 0 && upper == 0);
    }
}

contract OutliersTest {
    function test_the_tolerance_is_absolute_for_small_and_relative_for_large_medians() public pure {
        vm.assertFalse(Outliers.isOutlier(1_000_000, 0));
        vm.assertTrue(Outliers.isOutlier(1_000_001, 0));
        vm.assertTrue(Outliers.isOutlier(-1_000_001, 0));
        vm.assertFalse(Outliers.isOutlier(50_000_000, 40_000_000));
        vm.assertTrue(Outliers.isOutlier(50_000_001, 40_000_000));
        vm.assertFalse(Outliers.isOutlier(-50_000_000, -40_000_000));
        vm.assertTrue(Outliers.isOutlier(-50_000_001, -40_000_000));
        vm.assertTrue(Outliers.isOutlier(type(int64).max, -type(int64).max));
    }

    function test_refused_by_only_one_is_an_outlier() public pure {
        int64 refused = Weights.REFUSED;
        vm.assertFalse(Outliers.isOutlier(refused, refused));
        vm.assertTrue(Outliers.isOutlier(refused, refused + 1));
        vm.assertTrue(Outliers.isOutlier(0, refused));
    }
}

contract RewardsTest {
    using Weights for uint256;

    function testFuzz_weights_keep_their_fields(int64 score) public pure {
        uint256 own = Weights.ofContribution(score);
        uint256 data = Weights.ofDataset(score);
        uint256 worth = score > 0 ? uint256(uint64(score)) : 0;
        vm.assertEq(own.compute(), worth);
        vm.assertEq(own.data(), 0);
        vm.assertEq(own.accepted(), score == type(int64).min ? 0 : 1);
        vm.assertEq(data.data(), worth);
        vm.assertEq(data.compute() + data.accepted(), 0);
    }

    function testFuzz_parts_never_exceed_their_pot(uint96 pot, int64[5] memory scores) public pure {
        uint256 all = 0;
        for (uint256 i = 0; i < 5; ++i) all += Weights.ofContribution(scores[i]);
        uint256 paid = 0;
        for (uint256 i = 0; i < 5; ++i) paid += Rewards.ofContribution(pot, Weights.ofContribution(scores[i]), all);
        vm.assertLe(paid, pot);
        bool any = all.accepted() != 0;
        if (any) vm.assertLe(pot, paid + 4);
        else vm.assertEq(paid, 0);
        vm.assertEq(Rewards.ofTool(pot, all), any ? pot : 0);
    }

    function test_data_that_was_worth_nothing_earns_nothing() public pure {
        vm.assertEq(Rewards.ofDataset(100, Weights.ofDataset(-3), 0), 0);
        vm.assertEq(Rewards.ofDataset(100, Weights.ofDataset(3), Weights.ofDataset(12)), 25);
        vm.assertEq(Rewards.ofEvaluator(100, 3), 33);
    }
}

contract OverturnsTest {
    using Overturns for mapping(uint256 => Cut);

    mapping(uint256 index => Cut) private cuts;

    /// @dev Against a list of all cuts, looked through from end to end.
    function testFuzz_a_settlement_is_void_if_any_later_cut_reaches_it(uint256 seed) public {
        uint32[12] memory rounds;
        uint32 length = 0;
        for (uint32 epoch = 1; epoch <= 12; ++epoch) {
            rounds[epoch - 1] = uint32(1 + (uint256(keccak256(abi.encode(seed, epoch))) % 9));
            length = cuts.cut(length, epoch, rounds[epoch - 1]);
            for (uint32 since = 0; since <= epoch; ++since) {
                for (uint32 round = 1; round <= 9; ++round) {
                    bool expected = false;
                    for (uint32 i = since; i < epoch; ++i) expected = expected || rounds[i] <= round;
                    vm.assertEq(cuts.isVoid(length, since, round), expected);
                }
            }
        }
    }
}

/// @notice Evaluators with the stakes given, one after another.
contract Stakes {
    uint96[] private stakes;

    constructor(uint96[] memory stakes_) {
        stakes = stakes_;
    }

    function evaluatorWeightAt(uint48) public view returns (uint256 total) {
        for (uint256 i = 0; i < stakes.length; ++i) total += stakes[i];
    }

    function evaluatorAt(uint256 point, uint48) external view returns (address, uint256 start, uint96) {
        for (uint256 i = 0; i < stakes.length; ++i) {
            if (point < start + stakes[i]) return (address(uint160(i + 1)), start, stakes[i]);
            start += stakes[i];
        }
        revert("beyond");
    }
}

contract SortitionTest {
    function stakesOf(uint256 seed, uint256 count) private pure returns (uint96[] memory stakes) {
        stakes = new uint96[](count);
        for (uint256 i = 0; i < count; ++i) stakes[i] = uint96(1 + (uint256(keccak256(abi.encode(seed, i))) % 100));
    }

    function testFuzz_nobody_is_drawn_twice_and_no_seat_stays_empty(uint256 seed, uint256 count, uint256 most) public {
        count = bound(count, 0, 20);
        most = bound(most, 1, 16);
        uint96[] memory stakes = stakesOf(seed, count);
        INodeRegistry registry = INodeRegistry(address(new Stakes(stakes)));
        (address[] memory evaluators, uint96[] memory weights) = Sortition.draw(registry, bytes32(seed), 1, most);
        vm.assertEq(evaluators.length, count < most ? count : most);
        uint256 seen = 0;
        for (uint256 i = 0; i < evaluators.length; ++i) {
            uint256 own = uint160(evaluators[i]);
            vm.assertEq((seen >> own) & 1, 0);
            seen |= 1 << own;
            vm.assertEq(weights[i], stakes[own - 1]);
        }
    }

    /// @dev The rule as the specification has it: the intervals that are left, laid end to end.
    function testFuzz_each_seat_is_a_point_of_what_is_left(uint256 seed, uint256 count) public {
        count = bound(count, 1, 12);
        uint96[] memory stakes = stakesOf(seed, count);
        INodeRegistry registry = INodeRegistry(address(new Stakes(stakes)));
        (address[] memory evaluators, ) = Sortition.draw(registry, bytes32(seed), 1, 16);
        for (uint256 seat = 0; seat < count; ++seat) {
            uint256 left = 0;
            for (uint256 i = 0; i < count; ++i) left += stakes[i];
            uint256 point = uint256(keccak256(abi.encode(bytes32(seed), seat))) % left;
            uint256 owner = 0;
            while (point >= stakes[owner]) point -= stakes[owner++];
            vm.assertEq(evaluators[seat], address(uint160(owner + 1)));
            stakes[owner] = 0;
        }
    }

    function test_the_seed_depends_on_all_it_is_given() public pure {
        bytes32 seed = Sortition.seedOf(0, JobId.wrap(1), 1, 0);
        vm.assertTrue(seed != Sortition.seedOf(bytes32(uint256(1)), JobId.wrap(1), 1, 0));
        vm.assertTrue(seed != Sortition.seedOf(0, JobId.wrap(2), 1, 0));
        vm.assertTrue(seed != Sortition.seedOf(0, JobId.wrap(1), 2, 0));
        vm.assertTrue(seed != Sortition.seedOf(0, JobId.wrap(1), 1, 1));
    }
}
