// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeRegistry} from "../NodeRegistry.sol";
import {VnxToken} from "../VnxToken.sol";
import {INodeRegistry} from "../interfaces/INodeRegistry.sol";
import {StakeTree, StakeTrees} from "../libraries/StakeTrees.sol";
import {bound, vm} from "./Vm.t.sol";

/// @notice The library on its own, so that reverts come from a call.
contract StakeTreeHolder {
    using StakeTrees for StakeTree;

    StakeTree private tree;

    function set(address owner, uint96 weight) external {
        tree.set(owner, weight);
    }

    function fill() external {
        tree.used = StakeTrees.CAPACITY;
    }

    function totalAt(uint48 blockNumber) external view returns (uint256) {
        return tree.totalAt(blockNumber);
    }

    function ownerAt(uint256 point, uint48 blockNumber) external view returns (address, uint256, uint96) {
        return tree.ownerAt(point, blockNumber);
    }
}

contract StakeTreeTest {
    uint256 private constant OWNERS = 20;
    uint256 private constant BLOCKS = 6;

    StakeTreeHolder private tree;
    uint96[OWNERS][BLOCKS] private history;

    function setUp() public {
        tree = new StakeTreeHolder();
    }

    function owner(uint256 i) private pure returns (address) {
        return address(uint160(0x7000 + i));
    }

    /// @dev Plays BLOCKS blocks of random changes, places left and taken again among them.
    function play(uint256 seed) private {
        vm.roll(100);
        uint96[OWNERS] memory weights;
        for (uint256 b = 0; b < BLOCKS; ++b) {
            for (uint256 c = 0; c < 12; ++c) {
                uint256 random = uint256(keccak256(abi.encode(seed, b, c)));
                uint256 i = random % OWNERS;
                weights[i] = (random >> 8) % 3 == 0 ? 0 : uint96((random >> 16) % 1000 ether);
                tree.set(owner(i), weights[i]);
            }
            history[b] = weights;
            vm.roll(101 + b);
        }
    }

    function testFuzz_every_block_keeps_its_own_weights(uint256 seed) public {
        play(seed);
        for (uint256 b = 0; b < BLOCKS; ++b) {
            uint256 sum = 0;
            for (uint256 i = 0; i < OWNERS; ++i) sum += history[b][i];
            vm.assertEq(tree.totalAt(uint48(100 + b)), sum);
        }
        vm.assertEq(tree.totalAt(99), 0);
    }

    function testFuzz_each_owner_holds_an_interval_as_long_as_its_weight(uint256 seed, uint256 b) public {
        play(seed);
        b = bound(b, 0, BLOCKS - 1);
        uint48 at = uint48(100 + b);
        uint256 total = tree.totalAt(at);
        uint256 covered = 0;
        bool[OWNERS] memory seen;
        while (covered < total) {
            (address who, uint256 start, uint96 weight) = tree.ownerAt(covered, at);
            uint256 i = uint160(who) - 0x7000;
            vm.assertEq(start, covered);
            vm.assertEq(weight, history[b][i]);
            vm.assertFalse(seen[i]);
            seen[i] = true;
            (address last, , ) = tree.ownerAt(covered + weight - 1, at);
            vm.assertEq(last, who);
            covered += weight;
        }
        for (uint256 i = 0; i < OWNERS; ++i) vm.assertEq(seen[i], history[b][i] != 0);
    }

    function test_a_point_beyond_all_weights_is_nobody_s() public {
        tree.set(owner(0), 5);
        vm.expectRevert(abi.encodeWithSelector(StakeTrees.PointOutOfRange.selector, 5, 5));
        tree.ownerAt(5, uint48(block.number));
    }

    function test_a_full_tree_takes_nobody_until_somebody_leaves() public {
        tree.set(owner(0), 5);
        tree.fill();
        vm.expectRevert(abi.encodeWithSelector(StakeTrees.StakeTreeFull.selector, 8 ** 5));
        tree.set(owner(1), 7);
        tree.set(owner(0), 0);
        tree.set(owner(1), 7);
        vm.assertEq(tree.totalAt(uint48(block.number)), 7);
    }

    function test_places_fill_in_more_than_one_leaf_node() public {
        for (uint256 i = 0; i < 70; ++i) tree.set(owner(i), 1);
        for (uint256 i = 0; i < 70; ++i) {
            (address who, uint256 start, ) = tree.ownerAt(i, uint48(block.number));
            vm.assertEq(who, owner(i));
            vm.assertEq(start, i);
        }
    }
}

contract EvaluatorsTest {
    uint96 private constant LEAST = 10 ether;
    uint64 private constant DELAY = 1 days;
    address private constant JOBS = address(0xa1);
    address private constant BOARD = address(0xa2);
    address private constant DISTRIBUTOR = address(0xa3);
    address private constant COLD = address(0xc0);
    address private constant HOT = address(0xc1);
    address private constant REPORTER = address(0xc2);

    VnxToken private token;
    NodeRegistry private registry;

    function setUp() public {
        vm.warp(1_700_000_000);
        vm.roll(1000);
        token = new VnxToken(address(this));
        registry = new NodeRegistry(token, DELAY, LEAST, JOBS, BOARD, DISTRIBUTOR);
        token.approve(address(registry), type(uint256).max);
    }

    function register(address node, uint128 stake) private {
        token.transfer(node, stake);
        vm.prank(node);
        token.approve(address(registry), stake);
        vm.prank(node);
        registry.register(keccak256(abi.encode(node)), stake, new string[](0));
    }

    function enlisted(uint128 stake) private {
        register(COLD, stake);
        vm.prank(COLD);
        registry.enlist();
    }

    function weight() private view returns (uint256) {
        return registry.evaluatorWeightAt(uint48(block.number));
    }

    function test_anyone_tops_up_a_bonded_node() public {
        register(COLD, 5);
        vm.expectEmit(address(registry));
        emit INodeRegistry.StakeAdded(COLD, address(this), 7, 12);
        registry.topUp(COLD, 7);
        vm.assertEq(registry.stakeOf(COLD), 12);
        vm.assertEq(token.balanceOf(address(registry)), 12);

        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NodeUnknown.selector, HOT));
        registry.topUp(HOT, 1);
        vm.prank(COLD);
        registry.unbond();
        vm.expectRevert(
            abi.encodeWithSelector(INodeRegistry.NodeIsUnbonding.selector, COLD, uint64(block.timestamp) + DELAY)
        );
        registry.topUp(COLD, 1);
    }

    function test_a_delegate_acts_once_named_and_willing() public {
        register(COLD, LEAST);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotNamed.selector, COLD, HOT));
        vm.prank(HOT);
        registry.actFor(COLD);

        vm.expectEmit(address(registry));
        emit INodeRegistry.DelegateNamed(COLD, HOT);
        vm.prank(COLD);
        registry.setDelegate(HOT);
        vm.assertEq(registry.principalOf(HOT), HOT);
        vm.assertEq(registry.delegateOf(COLD), address(0));

        vm.expectEmit(address(registry));
        emit INodeRegistry.DelegateAccepted(COLD, HOT);
        vm.prank(HOT);
        registry.actFor(COLD);
        vm.assertEq(registry.principalOf(HOT), COLD);
        vm.assertEq(registry.delegateOf(COLD), HOT);
        vm.assertEq(registry.principalOf(COLD), COLD);

        vm.prank(HOT);
        registry.enlist();
        vm.assertTrue(registry.isEvaluator(COLD));
        vm.prank(HOT);
        registry.delist();

        vm.prank(COLD);
        registry.setDelegate(address(0));
        vm.assertEq(registry.principalOf(HOT), HOT);
        vm.assertEq(registry.delegateOf(COLD), address(0));
    }

    function test_nobody_can_be_made_a_delegate_against_its_will() public {
        register(COLD, 1);
        vm.prank(COLD);
        registry.setDelegate(HOT);
        register(HOT, 1);
        vm.assertTrue(registry.isBonded(HOT));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.DelegateIsNode.selector, HOT));
        vm.prank(HOT);
        registry.actFor(COLD);
    }

    function test_a_delegate_registers_only_after_it_has_left() public {
        register(COLD, 1);
        vm.prank(COLD);
        registry.setDelegate(HOT);
        vm.prank(HOT);
        registry.actFor(COLD);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.IsDelegate.selector, HOT, COLD));
        vm.prank(HOT);
        registry.register(bytes32(uint256(1)), 0, new string[](0));
        vm.prank(HOT);
        registry.actFor(address(0));
        register(HOT, 1);
        vm.assertEq(registry.principalOf(HOT), HOT);
    }

    function test_the_weight_of_an_evaluator_is_its_stake() public {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NodeUnknown.selector, COLD));
        vm.prank(COLD);
        registry.enlist();
        register(COLD, LEAST - 1);
        vm.expectRevert(
            abi.encodeWithSelector(INodeRegistry.EvaluatorStakeTooLow.selector, COLD, LEAST - 1, LEAST)
        );
        vm.prank(COLD);
        registry.enlist();
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotEnlisted.selector, COLD));
        vm.prank(COLD);
        registry.delist();

        registry.topUp(COLD, 1);
        vm.expectEmit(address(registry));
        emit INodeRegistry.EvaluatorWeighed(COLD, LEAST);
        vm.prank(COLD);
        registry.enlist();
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.AlreadyEnlisted.selector, COLD));
        vm.prank(COLD);
        registry.enlist();
        registry.topUp(COLD, 5);
        vm.assertEq(weight(), LEAST + 5);
        register(COLD, 2);
        vm.assertEq(weight(), LEAST + 7);
        (address node, uint256 start, uint96 own) = registry.evaluatorAt(LEAST, uint48(block.number));
        vm.assertEq(node, COLD);
        vm.assertEq(start, 0);
        vm.assertEq(own, LEAST + 7);
        vm.prank(COLD);
        registry.delist();
        vm.assertEq(weight(), 0);
        vm.assertFalse(registry.isEvaluator(COLD));
    }

    function test_who_unbonds_is_no_evaluator_from_that_block_on() public {
        enlisted(LEAST);
        uint48 then = uint48(block.number);
        vm.roll(then + 1);
        vm.prank(COLD);
        registry.unbond();
        vm.assertEq(weight(), 0);
        vm.assertEq(registry.evaluatorWeightAt(then), LEAST);
    }

    function test_without_a_minimum_an_evaluator_still_needs_some_stake() public {
        registry = new NodeRegistry(token, DELAY, 0, JOBS, BOARD, DISTRIBUTOR);
        register(COLD, 0);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.EvaluatorStakeTooLow.selector, COLD, 0, 0));
        vm.prank(COLD);
        registry.enlist();
    }

    function test_only_the_three_contracts_slash() public {
        register(COLD, 100);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotSlasher.selector, address(this)));
        registry.slash(COLD, 1, address(0));
        address[3] memory allowed = [JOBS, BOARD, DISTRIBUTOR];
        for (uint256 i = 0; i < 3; ++i) {
            vm.prank(allowed[i]);
            vm.assertEq(registry.slash(COLD, 1, address(0)), 1);
        }
        vm.assertEq(registry.stakeOf(COLD), 97);
    }

    function testFuzz_a_tenth_of_what_is_slashed_pays_the_reporter_and_the_rest_is_burned(
        uint128 stake,
        uint128 amount
    ) public {
        stake = uint128(bound(stake, 0, 1000 ether));
        register(COLD, stake);
        uint128 taken = amount < stake ? amount : stake;
        uint256 reward = uint256(taken) / 10;
        if (taken != 0) {
            vm.expectEmit(address(registry));
            emit INodeRegistry.Slashed(COLD, REPORTER, taken, reward);
        }
        vm.prank(BOARD);
        vm.assertEq(registry.slash(COLD, amount, REPORTER), taken);
        vm.assertEq(registry.stakeOf(COLD), stake - taken);
        vm.assertEq(token.balanceOf(REPORTER), reward);
        vm.assertEq(token.totalSupply(), token.CAP() - (taken - reward));
        vm.assertEq(token.balanceOf(address(registry)), stake - taken);
    }

    function test_unbonding_does_not_save_a_stake() public {
        register(COLD, 100);
        vm.prank(COLD);
        registry.unbond();
        vm.prank(JOBS);
        vm.assertEq(registry.slash(COLD, 60, address(0)), 60);
        vm.warp(block.timestamp + DELAY);
        vm.prank(COLD);
        registry.withdraw();
        vm.assertEq(token.balanceOf(COLD), 40);
        vm.prank(JOBS);
        vm.assertEq(registry.slash(COLD, 60, address(0)), 0);
    }

    function test_an_evaluator_slashed_below_the_minimum_is_delisted() public {
        enlisted(LEAST + 5);
        vm.prank(BOARD);
        registry.slash(COLD, 5, address(0));
        vm.assertEq(weight(), LEAST);
        vm.prank(BOARD);
        registry.slash(COLD, 1, address(0));
        vm.assertEq(weight(), 0);
        vm.assertFalse(registry.isEvaluator(COLD));
    }
}
