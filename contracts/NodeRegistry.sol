// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {BootNode, Node} from "./types/Types.sol";

/// @title The registry of nodes and their stake
/// @notice See interfaces/INodeRegistry.sol
contract NodeRegistry is INodeRegistry {
    using SafeERC20 for IERC20;

    /// @notice Most boot addresses of a node.
    uint256 public constant MAX_BOOT_ADDRS = 8;

    /// @notice Longest boot address, in bytes.
    uint256 public constant MAX_BOOT_ADDR_BYTES = 256;

    /// @notice The token that is staked.
    IERC20 public immutable token;

    /// @inheritdoc INodeRegistry
    uint64 public immutable unbondDelay;

    mapping(address account => Node) private _nodes;
    address[] private _boots;
    mapping(address account => uint256) private _bootPlace; // from 1; 0 for whoever is not among them

    constructor(IERC20 token_, uint64 unbondDelay_) {
        token = token_;
        unbondDelay = unbondDelay_;
    }

    /// @inheritdoc INodeRegistry
    function register(bytes32 peerKey, uint128 addStake, string[] calldata bootAddrs) external {
        if (peerKey == 0) revert InvalidPeerKey(msg.sender);
        _checkBootAddrs(bootAddrs);
        Node storage record = _nodes[msg.sender];
        if (record.unbondAt != 0) revert NodeIsUnbonding(msg.sender, record.unbondAt);

        record.peerKey = peerKey;
        record.stake += addStake;
        delete record.bootAddrs;
        for (uint256 i = 0; i < bootAddrs.length; ++i) record.bootAddrs.push(bootAddrs[i]);
        if (bootAddrs.length == 0) _removeBoot(msg.sender);
        else _addBoot(msg.sender);
        emit NodeRegistered(msg.sender, peerKey, record.stake, bootAddrs);

        if (addStake != 0) token.safeTransferFrom(msg.sender, address(this), addStake);
    }

    /// @inheritdoc INodeRegistry
    function unbond() external {
        Node storage record = _nodes[msg.sender];
        if (record.peerKey == 0) revert NodeUnknown(msg.sender);
        if (record.unbondAt != 0) revert NodeIsUnbonding(msg.sender, record.unbondAt);

        record.unbondAt = uint64(block.timestamp) + unbondDelay;
        _removeBoot(msg.sender);
        emit NodeUnbonding(msg.sender, record.unbondAt);
    }

    /// @inheritdoc INodeRegistry
    function withdraw() external {
        Node storage record = _nodes[msg.sender];
        if (record.unbondAt == 0) revert NodeNotUnbonding(msg.sender);
        if (block.timestamp < record.unbondAt) revert StakeLocked(msg.sender, record.unbondAt);

        uint128 stake = record.stake;
        delete _nodes[msg.sender];
        emit NodeWithdrawn(msg.sender, stake);

        if (stake != 0) token.safeTransfer(msg.sender, stake);
    }

    /// @inheritdoc INodeRegistry
    function node(address account) external view returns (Node memory) {
        return _nodes[account];
    }

    /// @inheritdoc INodeRegistry
    function stakeOf(address account) external view returns (uint256) {
        Node storage record = _nodes[account];
        return record.unbondAt == 0 ? record.stake : 0;
    }

    /// @inheritdoc INodeRegistry
    function isBonded(address account) external view returns (bool) {
        Node storage record = _nodes[account];
        return record.peerKey != 0 && record.unbondAt == 0;
    }

    /// @inheritdoc INodeRegistry
    function bootNodes(uint256 offset, uint256 limit) external view returns (BootNode[] memory page, uint256 total) {
        total = _boots.length;
        uint256 start = offset < total ? offset : total;
        uint256 size = limit < total - start ? limit : total - start;
        page = new BootNode[](size);
        for (uint256 i = 0; i < size; ++i) {
            address account = _boots[start + i];
            Node storage record = _nodes[account];
            page[i] = BootNode(account, record.peerKey, record.bootAddrs);
        }
    }

    function _addBoot(address account) private {
        if (_bootPlace[account] != 0) return;
        _boots.push(account);
        _bootPlace[account] = _boots.length;
    }

    /// @dev The last one takes the place of the one that leaves.
    function _removeBoot(address account) private {
        uint256 place = _bootPlace[account];
        if (place == 0) return;
        address last = _boots[_boots.length - 1];
        _boots[place - 1] = last;
        _bootPlace[last] = place;
        _boots.pop();
        delete _bootPlace[account];
    }

    function _checkBootAddrs(string[] calldata bootAddrs) private pure {
        if (bootAddrs.length > MAX_BOOT_ADDRS) revert TooManyBootAddrs(bootAddrs.length, MAX_BOOT_ADDRS);
        for (uint256 i = 0; i < bootAddrs.length; ++i) {
            uint256 length = bytes(bootAddrs[i]).length;
            if (length == 0 || length > MAX_BOOT_ADDR_BYTES) revert InvalidBootAddr(i, length, MAX_BOOT_ADDR_BYTES);
        }
    }
}
