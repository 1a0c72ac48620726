// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeRegistry} from "../NodeRegistry.sol";
import {RewardDistributor} from "../RewardDistributor.sol";
import {TrainingJobs} from "../TrainingJobs.sol";
import {VnxToken} from "../VnxToken.sol";
import {Entries} from "../libraries/Entries.sol";
import {Cid, JobId, JobState, JobTerms, Kind, Leaf, Mode, Phase, ProofStep} from "../types/Types.sol";
import {vm} from "./Vm.t.sol";

/// @notice The four contracts, a requester with money, and steps that bring a job to where a test begins.
abstract contract Steps {
    uint64 internal constant UNBOND_DELAY = 1 days;
    uint96 internal constant BUDGET = 100 ether;
    uint96 internal constant STAKE = 10 ether;
    Cid internal constant SPEC = Cid.wrap(keccak256("spec"));
    Cid internal constant BASE_MODEL = Cid.wrap(keccak256("base model"));
    bytes32 internal constant SALT = keccak256("salt");

    address internal immutable requester = address(0xbeef);

    VnxToken internal token;
    NodeRegistry internal registry;
    TrainingJobs internal jobs;
    RewardDistributor internal distributor;

    function deploy() internal {
        vm.warp(1_700_000_000);
        token = new VnxToken(address(this));
        registry = new NodeRegistry(token, UNBOND_DELAY, STAKE, address(1), address(2), address(3));
        jobs = new TrainingJobs(token, registry);
        distributor = RewardDistributor(jobs.distributor());
        token.transfer(requester, 10_000_000 ether);
        vm.prank(requester);
        token.approve(address(jobs), type(uint256).max);
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
                requiredStake: STAKE
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

    /// @dev Every wei of escrow is with the jobs contract, or was spent or refunded.
    function assertEscrow(JobId job) internal view {
        JobState memory state = jobs.job(job);
        uint256 escrow = uint256(state.terms.rounds) * state.terms.roundBudget;
        vm.assertEq(token.balanceOf(address(jobs)), escrow - state.spent - state.refunded);
    }
}

abstract contract Fixture is Steps {
    function setUp() public {
        deploy();
    }
}

/// @notice Builds Merkle-sum trees as the specification in libraries/SumTree.sol has them.
library Trees {
    function hashLeaf(Leaf memory leaf) internal pure returns (bytes32) {
        return
            keccak256(
                abi.encode(uint8(0), leaf.account, leaf.asset, leaf.score, leaf.reward, leaf.cumulative)
            );
    }

    function hashInner(
        bytes32 leftHash,
        uint128 leftSum,
        bytes32 rightHash,
        uint128 rightSum
    ) internal pure returns (bytes32) {
        return keccak256(abi.encode(uint8(1), leftHash, leftSum, rightHash, rightSum));
    }

    function build(Leaf[] memory leaves) internal pure returns (bytes32 root, uint128 total) {
        (bytes32[] memory hashes, uint128[] memory sums) = _leaves(leaves);
        uint256 width = hashes.length;
        while (width > 1) width = _lift(hashes, sums, width);
        return (hashes[0], sums[0]);
    }

    function prove(Leaf[] memory leaves, uint256 place) internal pure returns (ProofStep[] memory proof) {
        (bytes32[] memory hashes, uint128[] memory sums) = _leaves(leaves);
        ProofStep[] memory steps = new ProofStep[](32);
        uint256 count = 0;
        for (uint256 width = hashes.length; width > 1; width = _lift(hashes, sums, width)) {
            uint256 sibling = place ^ 1;
            if (sibling < width) steps[count++] = ProofStep(hashes[sibling], sums[sibling], sibling < place);
            place /= 2;
        }
        proof = new ProofStep[](count);
        for (uint256 i = 0; i < count; ++i) proof[i] = steps[i];
    }

    function _leaves(Leaf[] memory leaves) private pure returns (bytes32[] memory hashes, uint128[] memory sums) {
        hashes = new bytes32[](leaves.length);
        sums = new uint128[](leaves.length);
        for (uint256 i = 0; i < leaves.length; ++i) {
            hashes[i] = hashLeaf(leaves[i]);
            sums[i] = leaves[i].cumulative;
        }
    }

    /// @dev Replaces a level by the one above it, in place; returns that one's width.
    function _lift(bytes32[] memory hashes, uint128[] memory sums, uint256 width) private pure returns (uint256) {
        for (uint256 i = 0; i + 1 < width; i += 2) {
            hashes[i / 2] = hashInner(hashes[i], sums[i], hashes[i + 1], sums[i + 1]);
            sums[i / 2] = sums[i] + sums[i + 1];
        }
        if (width % 2 == 1) {
            hashes[width / 2] = hashes[width - 1];
            sums[width / 2] = sums[width - 1];
        }
        return (width + 1) / 2;
    }
}
