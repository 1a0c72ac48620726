// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeRegistry} from "../interfaces/INodeRegistry.sol";
import {BootNode, Node} from "../types/Types.sol";
import {Fixture} from "./Fixture.t.sol";
import {bound, vm} from "./Vm.t.sol";

contract NodeRegistryTest is Fixture {
    bytes32 private constant KEY = keccak256("peer");

    function addrs(uint256 count) private pure returns (string[] memory list) {
        list = new string[](count);
        for (uint256 i = 0; i < count; ++i) list[i] = string.concat("/dns4/node/tcp/400", string(abi.encodePacked(uint8(48 + i))));
    }

    function registerBoot(uint256 i, uint256 count) private {
        vm.prank(nodeAt(i));
        registry.register(bytes32(i + 1), 0, addrs(count));
    }

    function test_register_takes_the_stake_and_keeps_the_record() public {
        token.transfer(nodeAt(0), 7);
        vm.prank(nodeAt(0));
        token.approve(address(registry), 7);
        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeRegistered(nodeAt(0), KEY, 7, addrs(2));
        vm.prank(nodeAt(0));
        registry.register(KEY, 7, addrs(2));

        Node memory node = registry.node(nodeAt(0));
        vm.assertEq(node.peerKey, KEY);
        vm.assertEq(node.stake, 7);
        vm.assertEq(node.unbondAt, 0);
        vm.assertEq(node.bootAddrs.length, 2);
        vm.assertEq(node.bootAddrs[1], "/dns4/node/tcp/4001");
        vm.assertEq(registry.stakeOf(nodeAt(0)), 7);
        vm.assertTrue(registry.isBonded(nodeAt(0)));
        vm.assertEq(token.balanceOf(address(registry)), 7);
    }

    function test_register_again_updates_the_record_and_adds_stake() public {
        register(nodeAt(0), 5);
        register(nodeAt(0), 6);
        registerBoot(0, 3);
        registerBoot(0, 1);
        Node memory node = registry.node(nodeAt(0));
        vm.assertEq(node.stake, 11);
        vm.assertEq(node.peerKey, bytes32(uint256(1)));
        vm.assertEq(node.bootAddrs.length, 1);
    }

    function test_register_refuses_a_zero_key() public {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.InvalidPeerKey.selector, address(this)));
        registry.register(0, 0, addrs(0));
    }

    function test_register_refuses_nine_boot_addresses() public {
        registry.register(KEY, 0, addrs(8));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.TooManyBootAddrs.selector, 9, 8));
        registry.register(KEY, 0, addrs(9));
    }

    function test_register_refuses_an_empty_or_overlong_boot_address() public {
        string[] memory list = addrs(2);
        list[1] = string(new bytes(256));
        registry.register(KEY, 0, list);
        list[1] = string(new bytes(257));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.InvalidBootAddr.selector, 1, 257, 256));
        registry.register(KEY, 0, list);
        list[1] = "";
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.InvalidBootAddr.selector, 1, 0, 256));
        registry.register(KEY, 0, list);
    }

    function test_an_unbonding_node_counts_as_gone_at_once() public {
        register(nodeAt(0), 5);
        registerBoot(0, 1);
        uint64 unbondAt = uint64(block.timestamp) + UNBOND_DELAY;
        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeUnbonding(nodeAt(0), unbondAt);
        vm.prank(nodeAt(0));
        registry.unbond();
        vm.assertEq(registry.stakeOf(nodeAt(0)), 0);
        vm.assertFalse(registry.isBonded(nodeAt(0)));
        vm.assertEq(registry.node(nodeAt(0)).stake, 5);
        (, uint256 boots) = registry.bootNodes(0, 10);
        vm.assertEq(boots, 0);

        bytes memory refusal = abi.encodeWithSelector(
            INodeRegistry.NodeIsUnbonding.selector,
            nodeAt(0),
            unbondAt
        );
        vm.expectRevert(refusal);
        vm.prank(nodeAt(0));
        registry.unbond();
        vm.expectRevert(refusal);
        vm.prank(nodeAt(0));
        registry.register(KEY, 0, addrs(0));
    }

    function test_unbond_needs_a_node() public {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NodeUnknown.selector, address(this)));
        registry.unbond();
    }

    function testFuzz_withdraw_pays_all_the_stake_after_the_delay(uint128 stake, uint64 early) public {
        stake = uint128(bound(stake, 0, 1000 ether));
        register(nodeAt(0), stake);
        vm.prank(nodeAt(0));
        registry.unbond();
        uint256 unbondAt = block.timestamp + UNBOND_DELAY;

        vm.warp(unbondAt - bound(early, 1, UNBOND_DELAY));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.StakeLocked.selector, nodeAt(0), unbondAt));
        vm.prank(nodeAt(0));
        registry.withdraw();

        vm.warp(unbondAt);
        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeWithdrawn(nodeAt(0), stake);
        vm.prank(nodeAt(0));
        registry.withdraw();
        vm.assertEq(token.balanceOf(nodeAt(0)), stake);
        vm.assertEq(registry.node(nodeAt(0)).peerKey, bytes32(0));

        register(nodeAt(0), stake);
        vm.assertTrue(registry.isBonded(nodeAt(0)));
    }

    function test_withdraw_needs_an_unbond() public {
        register(nodeAt(0), 5);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NodeNotUnbonding.selector, nodeAt(0)));
        vm.prank(nodeAt(0));
        registry.withdraw();
    }

    function testFuzz_boot_nodes_are_those_with_addresses(uint256 seed) public {
        bool[5] memory boots;
        for (uint256 i = 0; i < 24; ++i) {
            uint256 random = uint256(keccak256(abi.encode(seed, i)));
            registerBoot(random % 5, (random >> 8) % 2);
            boots[random % 5] = (random >> 8) % 2 == 1;
        }
        (BootNode[] memory page, uint256 total) = registry.bootNodes(0, 10);
        vm.assertEq(page.length, total);
        uint256 expected = 0;
        for (uint256 i = 0; i < 5; ++i) {
            uint256 seen = 0;
            for (uint256 j = 0; j < total; ++j) if (page[j].node == nodeAt(i)) ++seen;
            vm.assertEq(seen, boots[i] ? 1 : 0);
            expected += seen;
        }
        vm.assertEq(total, expected);
    }

    function test_boot_nodes_come_in_pages() public {
        for (uint256 i = 0; i < 5; ++i) registerBoot(i, 1);
        registerBoot(1, 0);
        (BootNode[] memory page, uint256 total) = registry.bootNodes(0, 3);
        vm.assertEq(total, 4);
        vm.assertEq(page.length, 3);
        vm.assertEq(page[0].node, nodeAt(0));
        vm.assertEq(page[0].peerKey, bytes32(uint256(1)));
        vm.assertEq(page[0].addrs[0], "/dns4/node/tcp/4000");
        (page, ) = registry.bootNodes(3, 3);
        vm.assertEq(page.length, 1);
        (page, ) = registry.bootNodes(9, type(uint256).max);
        vm.assertEq(page.length, 0);
    }
}
