// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {BootNode, Node} from "../types/Types.sol";

/// @title Who takes part: wallets, their peer keys, their stake
/// @notice A node is a wallet address. That its owner holds the peer key too is proven off chain, peer to peer,
/// by an EIP-712 signature; the registry only says which key the wallet names.
interface INodeRegistry {
    /// @notice A node was registered, or its record changed. `stake` is the whole stake now.
    event NodeRegistered(address indexed node, bytes32 indexed peerKey, uint256 stake, string[] bootAddrs);

    /// @notice A node began to leave; its stake may be withdrawn from `unbondAt` (Unix seconds) on.
    event NodeUnbonding(address indexed node, uint64 unbondAt);

    /// @notice A node left and took its stake with it.
    event NodeWithdrawn(address indexed node, uint256 stake);

    /// @notice The peer key is zero.
    error InvalidPeerKey(address node);

    /// @notice More boot addresses than `most`.
    error TooManyBootAddrs(uint256 count, uint256 most);

    /// @notice The boot address at `index` is empty or longer than `most` bytes.
    error InvalidBootAddr(uint256 index, uint256 length, uint256 most);

    /// @notice The node never registered, or has withdrawn.
    error NodeUnknown(address node);

    /// @notice The node is leaving, with its stake free at `unbondAt`.
    error NodeIsUnbonding(address node, uint64 unbondAt);

    /// @notice The node did not ask to leave.
    error NodeNotUnbonding(address node);

    /// @notice The stake is held until `unbondAt`.
    error StakeLocked(address node, uint64 unbondAt);

    /// @notice Registers the caller as a node, or updates its record and adds to its stake.
    /// @dev Pulls `addStake` from the caller, who must have approved it. Refused while unbonding.
    /// @param peerKey the raw Ed25519 public key of the peer; need not be unique
    /// @param addStake wei of VNX to add to the stake, may be 0
    /// @param bootAddrs multiaddrs to dial first, at most 8 of at most 256 bytes; empty unless a boot node
    function register(bytes32 peerKey, uint128 addStake, string[] calldata bootAddrs) external;

    /// @notice Begins to leave: the node counts as gone at once, the stake is free after the delay.
    function unbond() external;

    /// @notice Pays the stake back to the caller after the delay and forgets the node.
    function withdraw() external;

    /// @notice A node's record; all zero if unknown.
    function node(address account) external view returns (Node memory);

    /// @notice Wei of VNX at stake; 0 if unknown or unbonding.
    function stakeOf(address account) external view returns (uint256);

    /// @notice True for a registered node that is not unbonding.
    function isBonded(address account) external view returns (bool);

    /// @notice A page of the bonded boot nodes, in no particular order, and how many there are in all.
    function bootNodes(uint256 offset, uint256 limit) external view returns (BootNode[] memory page, uint256 total);

    /// @notice Seconds between `unbond` and `withdraw`.
    function unbondDelay() external view returns (uint64);
}
