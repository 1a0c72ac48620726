// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title VNX, the money of dfl
/// @notice The whole supply exists from the first block on. Nobody can mint, pause, freeze or upgrade. Burning only ever
/// makes the supply smaller: that is where slashed stake goes.
contract VnxToken is ERC20, ERC20Burnable, ERC20Permit {
    /// @notice Every wei of VNX that will ever exist.
    uint256 public constant CAP = 1_000_000_000 ether;

    /// @param treasury who receives the whole supply
    constructor(address treasury) ERC20("dfl VNX", "VNX") ERC20Permit("dfl VNX") {
        _mint(treasury, CAP);
    }
}
