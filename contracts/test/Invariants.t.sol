// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeRegistry} from "../NodeRegistry.sol";
import {RewardDistributor} from "../RewardDistributor.sol";
import {VnxToken} from "../VnxToken.sol";
import {ITrainingJobs} from "../interfaces/ITrainingJobs.sol";
import {Leaf, Settlement} from "../types/Rewards.sol";
import {Cid, JobId, JobState, JobTerms, Kind, Mode, Phase} from "../types/Types.sol";
import {Steps} from "./Fixture.t.sol";
import {Trees} from "./Trees.t.sol";
import {bound, vm} from "./Vm.t.sol";

/// @notice Plays a few jobs at random: nodes that come late, stay silent, settle what they like, claim or not.
contract Players is Steps {
    uint256 internal constant NODES = 4;
    uint64 internal constant JOBS = 3; // one with commit and reveal by all, one with a target, one of laps

    /// @notice What a settlement of a round paid, all to its first payee.
    mapping(uint64 job => mapping(uint32 round => Leaf)) private leaves;

    /// @notice Who was punished for which round.
    mapping(uint64 job => mapping(uint32 round => mapping(address node => bool))) private punished;

    /// @notice Set if a phase could not be ended at its deadline, or an ended job could.
    bool public stuck;

    /// @notice Set if a call went through that had to be refused.
    bool public fooled;

    constructor() {
        deploy();
        for (uint256 i = 0; i < NODES; ++i) register(nodeAt(i), STAKE);
        create(jobTerms(Mode.Sync, 0, 4));
        create(jobTerms(Mode.Async, 2, 2));
        create(jobTerms(Mode.Chained, 0, 3));
    }

    function contracts() external view returns (VnxToken, NodeRegistry, ITrainingJobs, RewardDistributor) {
        return (token, registry, jobs, distributor);
    }

    /// @notice Moves a job on, if `actor` can.
    function act(uint256 seed, uint256 actor, uint256 wait) external {
        (JobId job, JobState memory state) = pick(seed);
        address node = nodeAt(actor % NODES);
        vm.warp(block.timestamp + (wait % 4));
        uint32 round = state.round;
        bool chained = state.terms.mode == Mode.Chained;
        (address holder, , ) = jobs.lease(job);
        vm.prank(node);
        if (state.phase == Phase.Open) {
            try jobs.join(job) {} catch {}
        } else if (state.phase == Phase.Commit && chained) {
            try jobs.hop(job, round, actor % 3 != 0, updateOf(round, node), 64) {
                if (holder != node) fooled = true;
            } catch {}
        } else if (state.phase == Phase.Commit) {
            bytes32 commitment = commitmentOfNow(job, round, node, state.model);
            try jobs.commit(job, round, commitment) {} catch {}
        } else if (state.phase == Phase.Reveal) {
            try jobs.reveal(job, round, Kind.Update, updateOf(round, node), state.model, 64, SALT) {} catch {}
        } else {
            Cid model = chained ? state.candidate : modelOf(round);
            try jobs.publishModel(job, round, model) {} catch {}
        }
    }

    /// @notice A few phases in which all nodes do what is wanted, but for one now and then.
    function actTogether(uint256 seed, uint256 absent, uint256 phases) external {
        for (uint256 step = 0; step < 1 + (phases % 8); ++step) {
            uint256 skipped = (absent >> (8 * step)) % (4 * NODES);
            for (uint256 i = 0; i < NODES; ++i) {
                if (i != skipped) this.act(seed, i, 0);
            }
            // In AGGREGATE the drawn one may have been the one skipped: let the others have their turn.
            vm.warp(block.timestamp + 5);
        }
    }

    function joinLate(uint256 seed, uint256 actor) external {
        (JobId job, ) = pick(seed);
        vm.prank(nodeAt(actor % NODES));
        try jobs.join(job) {} catch {}
    }

    /// @notice Lets the deadline come: whatever the phase, `advance` ends it.
    function timeOut(uint256 seed, uint256 actor) external {
        (JobId job, JobState memory before) = pick(seed);
        bool ended = before.phase >= Phase.Completed;
        if ((seed >> 8) % 2 == 0) return;
        if (!ended && block.timestamp < before.deadline) vm.warp(before.deadline);
        vm.prank(nodeAt(actor % NODES));
        try jobs.advance(job) {
            JobState memory state = jobs.job(job);
            bool moved = state.phase != before.phase || state.round != before.round;
            if (ended || !(moved || state.commits != before.commits)) stuck = true;
        } catch {
            if (!ended) stuck = true;
        }
    }

    function cancel(uint256 seed) external {
        (JobId job, ) = pick(seed);
        if ((seed >> 8) % 8 != 0) return;
        vm.prank(requester);
        try jobs.cancel(job) {} catch {}
    }

    function settle(uint256 seed, uint256 actor, uint128 more) external {
        (JobId job, JobState memory state) = pick(seed);
        uint32 round = seed % 4 == 0 ? uint32(bound(seed >> 8, 0, state.round)) : nextToSettle(job, state.round);
        uint128 total = state.spent + uint128(bound(more, 0, 2 * uint256(BUDGET)));
        Leaf memory leaf = Leaf(nodeAt(actor % NODES), 0, 0, total, total);
        (bytes32 root, ) = Trees.build(linesOf(job, leaf));
        vm.prank(nodeAt((actor >> 8) % NODES));
        try distributor.settle(job, round, root, total, 0, 0, SPEC) {
            leaves[JobId.unwrap(job)][round] = leaf;
            if (total > state.spent + BUDGET) fooled = true;
        } catch {}
    }

    /// @dev As many lines as all four nodes have, of which one pays.
    function linesOf(JobId job, Leaf memory leaf) private view returns (Leaf[] memory lines) {
        lines = new Leaf[](jobs.payeeCount(job));
        if (lines.length == 0) lines = new Leaf[](1);
        lines[0] = leaf;
    }

    function claim(uint256 seed, uint256 wait, uint128 greed) external {
        (JobId job, JobState memory state) = pick(seed);
        uint32 round = uint32(bound(seed, 0, state.round));
        Leaf memory leaf = leaves[JobId.unwrap(job)][round];
        bool forged = greed % 4 == 0;
        if (forged) leaf.cumulative += greed;
        vm.warp(block.timestamp + (wait % 30));
        Settlement memory settled = distributor.settlement(job, round);
        try distributor.claim(job, round, leaf, Trees.prove(linesOf(job, leaf), 0)) {
            if (forged && greed != 0) fooled = true;
            if (settled.claimableAt == 0 || block.timestamp < settled.claimableAt) fooled = true;
        } catch {}
    }

    function refund(uint256 seed, uint256 wait) external {
        (JobId job, JobState memory state) = pick(seed);
        vm.warp(block.timestamp + (wait % 60));
        try jobs.refund(job) {
            if (state.phase < Phase.Completed || block.timestamp < distributor.finalAt(job)) fooled = true;
        } catch {}
    }

    /// @notice Reports whoever may have withheld a reveal: who did pays, once, and nobody else does.
    function punish(uint256 seed, uint256 actor) external {
        (JobId job, JobState memory state) = pick(seed);
        address node = nodeAt(actor % NODES);
        uint32 round = uint32(bound(seed >> 8, 1, state.round));
        bool hid = jobs.committed(job, round, node) && !jobs.revealed(job, round, node);
        uint256 before = registry.node(node).stake;
        try jobs.punish(job, round, node) {
            if (!hid || punished[JobId.unwrap(job)][round][node]) fooled = true;
            punished[JobId.unwrap(job)][round][node] = true;
            if (before - registry.node(node).stake != (before < BOND ? before : BOND)) fooled = true;
        } catch {}
        // Somebody is generous, so that the play goes on.
        if (registry.isBonded(node) && registry.stakeOf(node) < STAKE && actor % 3 == 0) {
            token.approve(address(registry), STAKE);
            registry.topUp(node, STAKE);
        }
    }

    function expel(uint256 seed, uint256 actor) external {
        (JobId job, ) = pick(seed);
        address node = nodeAt(actor % NODES);
        try jobs.expel(job, node) {
            if (registry.stakeOf(node) >= STAKE) fooled = true;
        } catch {}
    }

    function ban(uint256 seed, uint256 actor, bool lift) external {
        (JobId job, ) = pick(seed);
        if ((seed >> 8) % 8 != 0) return;
        address node = nodeAt(actor % NODES);
        vm.prank(address(board));
        if (lift) try jobs.unban(job, node) {} catch {}
        else try jobs.ban(job, node) {} catch {}
    }

    /// @dev The first published round without a settlement, else the current one.
    function nextToSettle(JobId job, uint32 current) private view returns (uint32) {
        for (uint32 round = 1; round < current; ++round) {
            bool published_ = jobs.publication(job, round).publishedAt != 0;
            if (published_ && distributor.settlement(job, round).claimableAt == 0) return round;
        }
        return current;
    }

    function pick(uint256 seed) private view returns (JobId job, JobState memory state) {
        job = JobId.wrap(uint64(1 + (seed % JOBS)));
        state = jobs.job(job);
    }

    function commitmentOfNow(JobId job, uint32 round, address node, Cid parent) private pure returns (bytes32) {
        return keccak256(abi.encode(job, round, parent, updateOf(round, node), Kind.Update, uint64(64), node, SALT));
    }

    function jobTerms(Mode mode, uint24 target, uint32 rounds) private pure returns (JobTerms memory t) {
        t = terms();
        t.mode = mode;
        t.target = target;
        t.minNodes = 2;
        t.rounds = rounds;
        t.settleWindow = 900;
        t.challengeWindow = 20;
    }
}

/// @notice What holds after whatever the players did.
contract InvariantsTest {
    uint64 private constant JOBS = 3;
    uint256 private constant NODES = 4;

    Players private players;
    VnxToken private token;
    NodeRegistry private registry;
    ITrainingJobs private jobs;
    RewardDistributor private distributor;

    function setUp() public {
        players = new Players();
        (token, registry, jobs, distributor) = players.contracts();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(players);
    }

    function invariant_escrow_is_never_over_spent() public view {
        uint256 held = 0;
        for (uint64 i = 1; i <= JOBS; ++i) {
            JobId job = JobId.wrap(i);
            JobState memory state = jobs.job(job);
            uint256 escrow = uint256(state.terms.rounds) * state.terms.roundBudget;
            vm.assertLe(state.spent + state.refunded, escrow);
            vm.assertLe(state.spent, uint256(state.completed) * state.terms.roundBudget);
            held += escrow - state.spent - state.refunded + distributor.unclaimed(job);
        }
        vm.assertEq(token.balanceOf(address(distributor)), held);
    }

    function invariant_claims_never_exceed_settlements() public view {
        for (uint64 i = 1; i <= JOBS; ++i) {
            JobId job = JobId.wrap(i);
            vm.assertLe(distributor.unclaimed(job), jobs.job(job).spent);
        }
    }

    function invariant_claims_are_exactly_what_was_paid_out() public view {
        for (uint64 i = 1; i <= JOBS; ++i) {
            JobId job = JobId.wrap(i);
            uint256 claimed = 0;
            for (uint160 n = 0; n < NODES; ++n) claimed += distributor.claimed(job, address(0x1000 + n), 0);
            vm.assertEq(claimed + distributor.unclaimed(job), jobs.job(job).spent);
        }
    }

    function invariant_a_running_job_waits_no_longer_than_a_window() public view {
        for (uint64 i = 1; i <= JOBS; ++i) {
            JobState memory state = jobs.job(JobId.wrap(i));
            if (state.phase >= Phase.Completed) vm.assertEq(uint256(state.deadline), 0);
            else vm.assertLe(state.deadline, block.timestamp + state.terms.openWindow); // the longest of them
        }
    }

    function invariant_rounds_only_come_to_an_end() public view {
        for (uint64 i = 1; i <= JOBS; ++i) {
            JobState memory state = jobs.job(JobId.wrap(i));
            vm.assertLe(state.completed, state.terms.rounds);
            vm.assertLe(state.completed, state.round);
            vm.assertEq(state.completed == state.terms.rounds, state.phase == Phase.Completed);
        }
    }

    function invariant_stake_is_exactly_what_nodes_have() public view {
        uint256 stake = 0;
        for (uint160 i = 0; i < NODES; ++i) stake += registry.node(address(0x1000 + i)).stake;
        vm.assertEq(token.balanceOf(address(registry)), stake);
    }

    function invariant_payees_are_unique() public view {
        for (uint64 i = 1; i <= JOBS; ++i) {
            JobId job = JobId.wrap(i);
            for (uint32 index = 0; index < jobs.payeeCount(job); ++index) {
                (bool found, uint32 own) = jobs.payeeOf(job, jobs.payee(job, index).account);
                vm.assertTrue(found && own == index);
            }
        }
    }

    function invariant_a_phase_can_always_be_ended_after_its_deadline() public view {
        vm.assertFalse(players.stuck());
    }

    function invariant_nothing_goes_through_that_must_not() public view {
        vm.assertFalse(players.fooled());
    }

    function invariant_no_more_reveal_than_commit() public view {
        for (uint64 i = 1; i <= JOBS; ++i) {
            JobState memory state = jobs.job(JobId.wrap(i));
            vm.assertLe(state.reveals, state.commits);
            vm.assertLe(state.commits, NODES);
            vm.assertLe(state.expected, NODES);
        }
    }
}
