// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {VnxToken} from "../VnxToken.sol";
import {vm} from "./Vm.t.sol";

contract VnxTokenTest {
    VnxToken private token;

    function setUp() public {
        token = new VnxToken(address(this));
    }

    function test_the_treasury_holds_the_whole_cap() public view {
        vm.assertEq(token.totalSupply(), 1_000_000_000 ether);
        vm.assertEq(token.balanceOf(address(this)), token.CAP());
        vm.assertEq(token.symbol(), "VNX");
        vm.assertEq(uint256(token.decimals()), 18);
    }

    function testFuzz_permit_approves_by_signature(uint256 key, uint256 value) public {
        key = 1 + (key % (type(uint128).max));
        address owner = vm.addr(key);
        address spender = address(0xcafe);
        bytes32 typeHash = keccak256(
            "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
        );
        bytes32 body = keccak256(abi.encode(typeHash, owner, spender, value, 0, block.timestamp));
        bytes32 digest = keccak256(abi.encodePacked("\x19\x01", token.DOMAIN_SEPARATOR(), body));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        token.permit(owner, spender, value, block.timestamp, v, r, s);
        vm.assertEq(token.allowance(owner, spender), value);
    }
}
