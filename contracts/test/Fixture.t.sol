// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AssetRegistry} from "../AssetRegistry.sol";
import {NodeRegistry} from "../NodeRegistry.sol";
import {RewardDistributor} from "../RewardDistributor.sol";
import {ScoreBoard} from "../ScoreBoard.sol";
import {TrainingJobs} from "../TrainingJobs.sol";
import {VnxToken} from "../VnxToken.sol";
import {ITrainingJobs} from "../interfaces/ITrainingJobs.sol";
import {Entries} from "../libraries/Entries.sol";
import {Cid, JobId, JobState, JobTerms, Kind, Mode, Phase} from "../types/Types.sol";
import {vm} from "./Vm.t.sol";

/// @notice The six contracts, a requester with money, and steps that bring a job to where a test begins.
abstract contract Steps {
    uint64 internal constant UNBOND_DELAY = 1 days;
    uint96 internal constant BUDGET = 100 ether;
    uint96 internal constant STAKE = 10 ether;
    uint96 internal constant BOND = 8 ether;
    Cid internal constant SPEC = Cid.wrap(keccak256("spec"));
    Cid internal constant BASE_MODEL = Cid.wrap(keccak256("base model"));
    bytes32 internal constant SALT = keccak256("salt");

    address internal immutable requester = address(0xbeef);

    VnxToken internal token;
    NodeRegistry internal registry;
    AssetRegistry internal assets;
    ITrainingJobs internal jobs;
    ScoreBoard internal board;
    RewardDistributor internal distributor;

    function deploy() internal {
        vm.warp(1_700_000_000);
        token = new VnxToken(address(this));
        uint64 nonce = vm.getNonce(address(this));
        jobs = ITrainingJobs(created(nonce + 2));
        board = ScoreBoard(created(nonce + 3));
        distributor = RewardDistributor(created(nonce + 4));
        registry = new NodeRegistry(
            token,
            UNBOND_DELAY,
            STAKE,
            address(jobs),
            address(board),
            address(distributor)
        );
        assets = new AssetRegistry();
        new TrainingJobs(token, registry, assets, address(board), address(distributor));
        new ScoreBoard(registry, jobs);
        new RewardDistributor(token, registry, assets, jobs, board);
        token.transfer(requester, 10_000_000 ether);
        vm.prank(requester);
        token.approve(address(jobs), type(uint256).max);
    }

    /// @dev The address of the contract that this one creates with a nonce (EIP-161 nonces below 128, RLP).
    function created(uint64 nonce) private view returns (address) {
        bytes32 hash = keccak256(abi.encodePacked(hex"d694", address(this), uint8(nonce)));
        return address(uint160(uint256(hash)));
    }

    // -- nouns -------------------------------------------------------------------------------------------------

    function nodeAt(uint256 i) internal pure returns (address) {
        return address(uint160(0x1000 + i));
    }

    function updateOf(uint32 round, address node) internal pure returns (Cid) {
        return Cid.wrap(keccak256(abi.encode("update", round, node)));
    }

    function modelOf(uint32 round) internal pure returns (Cid) {
        return Cid.wrap(keccak256(abi.encode("model", round)));
    }

    function terms() internal pure returns (JobTerms memory) {
        return
            JobTerms({
                spec: SPEC,
                model: BASE_MODEL,
                mode: Mode.Sync,
                rounds: 3,
                quorum: 2,
                minNodes: 3,
                openWindow: 100,
                commitWindow: 60,
                revealWindow: 30,
                aggregateWindow: 40,
                target: 0,
                settleWindow: 200,
                challengeWindow: 50,
                roundBudget: BUDGET,
                requiredStake: STAKE,
                bond: BOND,
                scoreWindow: 20,
                evaluators: 0,
                audits: 0,
                dataBps: 0,
                modelBps: 0,
                algorithmBps: 0,
                evaluatorBps: 0,
                modelAsset: 0,
                algorithmAsset: 0,
                sealAnchor: 0
            });
    }

    // -- steps -------------------------------------------------------------------------------------------------

    function register(address node, uint128 stake) internal {
        token.transfer(node, stake);
        vm.prank(node);
        token.approve(address(registry), stake);
        vm.prank(node);
        registry.register(keccak256(abi.encode(node)), stake, new string[](0));
    }

    function create(JobTerms memory terms_) internal returns (JobId) {
        vm.prank(requester);
        return jobs.createJob(terms_);
    }

    /// @dev Registers nodes [from, to) where needed, and joins them.
    function joinNodes(JobId job, uint256 from, uint256 to) internal {
        for (uint256 i = from; i < to; ++i) {
            if (!registry.isBonded(nodeAt(i))) register(nodeAt(i), STAKE);
            vm.prank(nodeAt(i));
            jobs.join(job);
        }
    }

    function commitmentOf(JobId job, uint32 round, address node) internal view returns (bytes32) {
        Cid parent = jobs.job(job).model;
        return Entries.hash(job, round, parent, updateOf(round, node), Kind.Update, 64, node, SALT);
    }

    function commitAs(JobId job, address node) internal {
        uint32 round = jobs.job(job).round;
        bytes32 commitment = commitmentOf(job, round, node);
        vm.prank(node);
        jobs.commit(job, round, commitment);
    }

    function revealAs(JobId job, address node) internal {
        uint32 round = jobs.job(job).round;
        Cid parent = jobs.job(job).model;
        vm.prank(node);
        jobs.reveal(job, round, Kind.Update, updateOf(round, node), parent, 64, SALT);
    }

    function publishAs(JobId job, address node) internal {
        uint32 round = jobs.job(job).round;
        vm.prank(node);
        jobs.publishModel(job, round, modelOf(round));
    }

    function commitNodes(JobId job, uint256 count) internal {
        for (uint256 i = 0; i < count; ++i) commitAs(job, nodeAt(i));
    }

    function revealNodes(JobId job, uint256 count) internal {
        for (uint256 i = 0; i < count; ++i) revealAs(job, nodeAt(i));
    }

    /// @dev The node drawn among the first `count`, who all revealed in order.
    function drawn(JobId job) internal view returns (address) {
        return nodeAt(jobs.job(job).draw);
    }

    function toDeadline(JobId job) internal {
        vm.warp(jobs.job(job).deadline);
    }

    // A job with `count` members, at the start of the named phase of its first round.

    function inCommit(uint256 count) internal returns (JobId job) {
        JobTerms memory terms_ = terms();
        terms_.minNodes = uint32(count);
        terms_.quorum = count < 2 ? uint32(count) : 2;
        job = create(terms_);
        joinNodes(job, 0, count);
    }

    function inReveal(uint256 count) internal returns (JobId job) {
        job = inCommit(count);
        commitNodes(job, count);
    }

    function inAggregate(uint256 count) internal returns (JobId job) {
        job = inReveal(count);
        revealNodes(job, count);
    }

    /// @dev Publishes the first round; returns who did.
    function published(uint256 count) internal returns (JobId job, address publisher) {
        job = inAggregate(count);
        publisher = drawn(job);
        publishAs(job, publisher);
    }

    /// @dev From COMMIT through the whole round, with all of the first `count` nodes.
    function playRound(JobId job, uint256 count) internal returns (address publisher) {
        commitNodes(job, count);
        revealNodes(job, count);
        publisher = drawn(job);
        publishAs(job, publisher);
    }

    // -- expectations ------------------------------------------------------------------------------------------

    function assertPhase(JobId job, Phase phase) internal view {
        vm.assertEq(uint256(jobs.job(job).phase), uint256(phase));
    }

    /// @dev Every wei of the only job's escrow is with the distributor, or was refunded or claimed.
    function assertEscrow(JobId job) internal view {
        JobState memory state = jobs.job(job);
        uint256 escrow = uint256(state.terms.rounds) * state.terms.roundBudget;
        uint256 paid = state.spent - distributor.unclaimed(job);
        vm.assertEq(token.balanceOf(address(distributor)), escrow - state.refunded - paid);
        vm.assertEq(token.balanceOf(address(jobs)), 0);
    }
}

abstract contract Fixture is Steps {
    function setUp() public {
        deploy();
    }
}
