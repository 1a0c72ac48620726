// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {BootNode, Node} from "../types/Types.sol";

/// @title Who takes part: wallets, their peer keys, their stake
/// @notice A node is a wallet address. That its owner holds the peer key too is proven off chain, peer to peer,
/// by an EIP-712 signature; the registry only says which key the wallet names. The wallet may stay cold: a delegate, a
/// hot key, acts for it, while stake and rewards are the wallet's.
///
/// Evaluators are nodes that enlisted. Their stakes stand in a tree that remembers its past, from which the score board
/// draws its seats. Three contracts may slash: jobs, score board and distributor, each for offences that it has proof of.
interface INodeRegistry {
    /// @notice A node was registered, or its record changed. `stake` is the whole stake now.
    event NodeRegistered(address indexed node, bytes32 indexed peerKey, uint256 stake, string[] bootAddrs);

    /// @notice A node began to leave; its stake may be withdrawn from `unbondAt` (Unix seconds) on.
    event NodeUnbonding(address indexed node, uint64 unbondAt);

    /// @notice A node left and took its stake with it.
    event NodeWithdrawn(address indexed node, uint256 stake);

    /// @notice Somebody added to a node's stake, which is `stake` now.
    event StakeAdded(address indexed node, address indexed from, uint256 amount, uint256 stake);

    /// @notice A node named a key that may act for it; zero: none any more. It may once it has accepted.
    event DelegateNamed(address indexed node, address indexed delegate);

    /// @notice A hot key accepted to act for a node; for the zero node: it acts for nobody any more.
    event DelegateAccepted(address indexed node, address indexed delegate);

    /// @notice A node is an evaluator with this weight from this block on; 0: it is none any more.
    event EvaluatorWeighed(address indexed node, uint256 weight);

    /// @notice A node lost stake for an offence. `reward` of it went to who reported it, the rest was burned.
    event Slashed(address indexed node, address indexed reporter, uint256 slashed, uint256 reward);

    /// @notice An evaluator said which seats it takes.
    event SeatsLimited(address indexed node, uint32 leastWindow, uint96 mostBond);

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

    /// @notice The key acts for `node`, and so can be no node itself, nor act for another.
    error IsDelegate(address delegate, address node);

    /// @notice A registered node acts for itself alone.
    error DelegateIsNode(address delegate);

    /// @notice The node did not name this key.
    error NotNamed(address node, address delegate);

    /// @notice An evaluator needs more stake.
    error EvaluatorStakeTooLow(address node, uint256 stake, uint256 least);

    /// @notice An evaluator takes seats of `mostWindow` seconds and of a bond of `leastBond`, at least.
    error SeatLimitOutOfRange(uint32 leastWindow, uint32 mostWindow, uint96 mostBond, uint96 leastBond);

    /// @notice The node did not enlist.
    error NotEnlisted(address node);

    /// @notice The node has enlisted before.
    error AlreadyEnlisted(address node);

    /// @notice Only the three contracts that hold proofs of offences may slash.
    error NotSlasher(address caller);

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

    /// @notice Adds to the stake of a node that is not unbonding. Anyone may; the stake is the node's.
    /// @dev Pulls `amount` from the caller, who must have approved it.
    function topUp(address node, uint128 amount) external;

    /// @notice Names the key that may act for the caller, once it accepts; zero takes the right away at once.
    function setDelegate(address delegate) external;

    /// @notice The caller, a key that `node` named, acts for it from now on; zero: for nobody.
    /// @dev Consent, so that nobody can make another's key its own and bar it from registering.
    function actFor(address node) external;

    /// @notice The caller's node may be drawn as an evaluator. Needs `minEvaluatorStake`.
    function enlist() external;

    /// @notice The caller's node is not drawn any more, from this block on.
    function delist() external;

    /// @notice The caller's node leaves seats empty, unpunished, of panels that are drawn from now on and give less time
    /// than `leastWindow` seconds or take more than `mostBond` for an offence: anybody may create a job whose scoring
    /// nobody could be in time for. (0, 2^96 - 1): it takes every seat, as all do at first.
    /// @param leastWindow at most MAX_LEAST_WINDOW
    /// @param mostBond at least `minEvaluatorStake`
    function limitSeats(uint32 leastWindow, uint96 mostBond) external;

    /// @notice Takes at most `amount` of a node's stake, unbonding or not: a tenth for who reported the offence, which
    /// pays the transaction and no more, and the rest is burned. Jobs, score board and distributor alone may call.
    /// @param reporter zero: all is burned
    /// @return slashed what was taken: less than `amount` if the stake was less
    function slash(address node, uint128 amount, address reporter) external returns (uint128 slashed);

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

    /// @notice The key that acts for a node; zero if it named none, or if that one has not accepted.
    function delegateOf(address node) external view returns (address);

    /// @notice The node that `sender` acts for, else `sender` itself.
    function principalOf(address sender) external view returns (address);

    /// @notice True for an evaluator.
    function isEvaluator(address node) external view returns (bool);

    /// @notice True if an evaluator drawn from this block need not take a seat with this window and bond.
    function mayDecline(address node, uint48 drawBlock, uint32 window, uint96 bond) external view returns (bool);

    /// @notice Least stake of an evaluator, in wei of VNX. One that falls below it is delisted.
    function minEvaluatorStake() external view returns (uint96);

    /// @notice The stake of all evaluators as of the end of a block.
    function evaluatorWeightAt(uint48 blockNumber) external view returns (uint256);

    /// @notice The evaluator whose interval holds `point`, as of the end of a block. The intervals of all evaluators, as
    /// long as their stakes, lie one after another from 0 to evaluatorWeightAt.
    function evaluatorAt(
        uint256 point,
        uint48 blockNumber
    ) external view returns (address node, uint256 start, uint96 weight);
}
