// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {VnxToken} from "./VnxToken.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {StakeTree, StakeTrees} from "./libraries/StakeTrees.sol";
import {BootNode, Node, SeatLimits} from "./types/Types.sol";

/// @title The registry of nodes and their stake
/// @notice See interfaces/INodeRegistry.sol
contract NodeRegistry is INodeRegistry {
    using SafeERC20 for IERC20;
    using StakeTrees for StakeTree;

    /// @notice What who reports an offence gets of what is slashed, in basis points. Less than half: nobody can gain by
    /// reporting itself.
    uint256 public constant REPORTER_BPS = 1000;

    /// @notice Most boot addresses of a node.
    uint256 public constant MAX_BOOT_ADDRS = 8;

    /// @notice Longest boot address, in bytes.
    uint256 public constant MAX_BOOT_ADDR_BYTES = 256;

    /// @notice Seconds of a scoring phase that are enough for every evaluator.
    uint32 public constant MAX_LEAST_WINDOW = 10 minutes;

    /// @notice The token that is staked.
    IERC20 public immutable token;

    /// @inheritdoc INodeRegistry
    uint64 public immutable unbondDelay;

    /// @inheritdoc INodeRegistry
    uint96 public immutable minEvaluatorStake;

    /// @notice The contracts that may slash.
    address public immutable jobs;

    /// @notice The contracts that may slash.
    address public immutable board;

    /// @notice The contracts that may slash.
    address public immutable distributor;

    mapping(address account => Node) private _nodes;
    address[] private _boots;
    mapping(address account => uint256) private _bootPlace; // from 1; 0 for whoever is not among them
    mapping(address node => address) private _named;
    mapping(address delegate => address) private _actsFor;
    StakeTree private _evaluators;
    mapping(address node => SeatLimits) private _seatLimits;

    /// @dev The three that may slash do not exist yet; their addresses follow from the deployer's nonce.
    constructor(
        IERC20 token_,
        uint64 unbondDelay_,
        uint96 minEvaluatorStake_,
        address jobs_,
        address board_,
        address distributor_
    ) {
        token = token_;
        unbondDelay = unbondDelay_;
        minEvaluatorStake = minEvaluatorStake_;
        jobs = jobs_;
        board = board_;
        distributor = distributor_;
    }

    /// @inheritdoc INodeRegistry
    function register(bytes32 peerKey, uint128 addStake, string[] calldata bootAddrs) external {
        if (peerKey == 0) revert InvalidPeerKey(msg.sender);
        if (_actsFor[msg.sender] != address(0)) revert IsDelegate(msg.sender, _actsFor[msg.sender]);
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
        if (addStake != 0) _weigh(msg.sender, record.stake);

        if (addStake != 0) token.safeTransferFrom(msg.sender, address(this), addStake);
    }

    /// @inheritdoc INodeRegistry
    function topUp(address node_, uint128 amount) external {
        Node storage record = _bonded(node_);
        record.stake += amount;
        emit StakeAdded(node_, msg.sender, amount, record.stake);
        _weigh(node_, record.stake);
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @inheritdoc INodeRegistry
    function setDelegate(address delegate) external {
        _named[msg.sender] = delegate;
        emit DelegateNamed(msg.sender, delegate);
    }

    /// @inheritdoc INodeRegistry
    function actFor(address node_) external {
        if (node_ != address(0)) {
            if (_nodes[msg.sender].peerKey != 0) revert DelegateIsNode(msg.sender);
            if (_named[node_] != msg.sender) revert NotNamed(node_, msg.sender);
        }
        _actsFor[msg.sender] = node_;
        emit DelegateAccepted(node_, msg.sender);
    }

    /// @inheritdoc INodeRegistry
    function enlist() external {
        address own = principalOf(msg.sender);
        Node storage record = _bonded(own);
        if (_evaluators.holds(own)) revert AlreadyEnlisted(own);
        uint128 stake = record.stake;
        if (stake < minEvaluatorStake || stake == 0) revert EvaluatorStakeTooLow(own, stake, minEvaluatorStake);
        _setWeight(own, stake);
    }

    /// @inheritdoc INodeRegistry
    function delist() external {
        address own = principalOf(msg.sender);
        if (!_evaluators.holds(own)) revert NotEnlisted(own);
        _setWeight(own, 0);
    }

    /// @inheritdoc INodeRegistry
    function limitSeats(uint32 leastWindow, uint96 mostBond) external {
        if (leastWindow > MAX_LEAST_WINDOW || mostBond < minEvaluatorStake) {
            revert SeatLimitOutOfRange(leastWindow, MAX_LEAST_WINDOW, mostBond, minEvaluatorStake);
        }
        address own = principalOf(msg.sender);
        _seatLimits[own] = SeatLimits(leastWindow, mostBond, uint48(block.number));
        emit SeatsLimited(own, leastWindow, mostBond);
    }

    /// @inheritdoc INodeRegistry
    function slash(address node_, uint128 amount, address reporter) external returns (uint128 slashed) {
        if (msg.sender != board && msg.sender != jobs && msg.sender != distributor) revert NotSlasher(msg.sender);
        Node storage record = _nodes[node_];
        slashed = record.stake < amount ? record.stake : amount;
        if (slashed == 0) return 0;

        record.stake -= slashed;
        uint256 reward = reporter == address(0) ? 0 : (slashed * REPORTER_BPS) / 10_000;
        emit Slashed(node_, reporter, slashed, reward);
        _weigh(node_, record.stake);

        if (reward != 0) token.safeTransfer(reporter, reward);
        VnxToken(address(token)).burn(slashed - reward);
    }

    /// @inheritdoc INodeRegistry
    function unbond() external {
        Node storage record = _bonded(msg.sender);
        record.unbondAt = uint64(block.timestamp) + unbondDelay;
        _removeBoot(msg.sender);
        if (_evaluators.holds(msg.sender)) _setWeight(msg.sender, 0);
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

    /// @inheritdoc INodeRegistry
    function delegateOf(address node_) external view returns (address) {
        address delegate = _named[node_];
        return _actsFor[delegate] == node_ ? delegate : address(0);
    }

    /// @inheritdoc INodeRegistry
    function isEvaluator(address node_) external view returns (bool) {
        return _evaluators.holds(node_);
    }

    /// @inheritdoc INodeRegistry
    function mayDecline(address node_, uint48 drawBlock, uint32 window, uint96 bond) external view returns (bool) {
        SeatLimits storage limits = _seatLimits[node_];
        uint48 since = limits.since;
        // Nobody gets out of a seat that it may know of.
        if (since == 0 || drawBlock < since) return false;
        return window < limits.leastWindow || bond > limits.mostBond;
    }

    /// @inheritdoc INodeRegistry
    function evaluatorWeightAt(uint48 blockNumber) external view returns (uint256) {
        return _evaluators.totalAt(blockNumber);
    }

    /// @inheritdoc INodeRegistry
    function evaluatorAt(
        uint256 point,
        uint48 blockNumber
    ) external view returns (address node_, uint256 start, uint96 weight) {
        return _evaluators.ownerAt(point, blockNumber);
    }

    /// @inheritdoc INodeRegistry
    function principalOf(address sender) public view returns (address) {
        address own = _actsFor[sender];
        return own != address(0) && _named[own] == sender ? own : sender;
    }

    function _bonded(address account) private view returns (Node storage record) {
        record = _nodes[account];
        if (record.peerKey == 0) revert NodeUnknown(account);
        if (record.unbondAt != 0) revert NodeIsUnbonding(account, record.unbondAt);
    }

    /// @dev An evaluator weighs what it has at stake, and is none below the minimum.
    function _weigh(address account, uint128 stake) private {
        if (_evaluators.holds(account)) _setWeight(account, stake < minEvaluatorStake ? 0 : stake);
    }

    function _setWeight(address account, uint128 weight) private {
        // At most the token's supply, which has 90 bits.
        _evaluators.set(account, uint96(weight));
        emit EvaluatorWeighed(account, weight);
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
