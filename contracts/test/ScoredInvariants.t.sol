// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeRegistry} from "../NodeRegistry.sol";
import {RewardDistributor} from "../RewardDistributor.sol";
import {ScoreBoard} from "../ScoreBoard.sol";
import {VnxToken} from "../VnxToken.sol";
import {ITrainingJobs} from "../interfaces/ITrainingJobs.sol";
import {Leaf, Settlement} from "../types/Rewards.sol";
import {PanelPhase, PanelState, Word} from "../types/Scores.sol";
import {JobId, JobState, JobTerms, Payee, Phase} from "../types/Types.sol";
import {BooksFixture} from "./Books.t.sol";
import {Trees} from "./Trees.t.sol";
import {vm} from "./Vm.t.sol";

/// @notice Plays one scored job at random: evaluators who are silent, lazy or mad, settlers who are wrong now and then,
/// challengers who try everything, and nodes that come and go.
contract Scorers is BooksFixture {
    uint256 internal constant NODES = 3;
    uint32 internal constant ROUNDS = 6;

    JobId public job;

    /// @notice Set if a call went through that had to be refused, or the other way round.
    string public fooled;

    /// @notice How often what happened: a play in which nothing happens shows nothing.
    mapping(string what => uint256) public times;

    mapping(uint32 round => Leaf[]) private books;
    mapping(uint32 round => bool) private wrong;
    mapping(uint32 round => address) private settlers;
    mapping(bytes32 offence => uint256) private slashes;

    constructor() {
        deploy();
        mintAssets();
        enlist(SEATS + 1);
        JobTerms memory t = scoredTerms();
        t.rounds = ROUNDS;
        t.settleWindow = 300;
        job = create(t);
        joinAll(job);
    }

    function contracts() external view returns (VnxToken, NodeRegistry, ITrainingJobs, ScoreBoard, RewardDistributor) {
        return (token, registry, jobs, board, distributor);
    }

    /// @notice The next step of the training, by who is not absent.
    function train(uint256 absent) public {
        JobState memory state = jobs.job(job);
        vm.roll(block.number + 1);
        vm.warp(block.timestamp + 1);
        for (uint256 i = 0; i < NODES; ++i) {
            address node = nodeAt(i);
            if (uint8(absent >> (8 * i)) % 7 == 0) continue;
            if (!registry.isBonded(node)) continue;
            vm.prank(node);
            try jobs.join(job) {} catch {}
            if (state.phase == Phase.Commit) {
                bytes32 commitment = commitmentOf(job, state.round, node);
                vm.prank(node);
                try jobs.commit(job, state.round, commitment) {} catch {}
            } else if (state.phase == Phase.Reveal) {
                if (jobs.committed(job, state.round, node) && !jobs.revealed(job, state.round, node)) {
                    revealIfStill(state.round, node);
                }
            } else if (state.phase == Phase.Aggregate) {
                vm.prank(node);
                try jobs.publishModel(job, state.round, modelOf(state.round)) {} catch {}
            }
        }
        if (block.timestamp >= state.deadline && state.deadline != 0) try jobs.advance(job) {} catch {}
    }

    function revealIfStill(uint32 round, address node) private {
        JobState memory state = jobs.job(job);
        if (state.phase == Phase.Reveal && state.round == round && block.timestamp < state.deadline) {
            if (!jobs.revealed(job, round, node)) {
                try this.reveal(node) {} catch {}
            }
        }
    }

    function reveal(address node) external {
        revealAs(job, node);
    }

    /// @notice A whole round, and its scores, so that there is something to settle.
    function trainOn(uint256 absent) external {
        for (uint256 i = 0; i < 3; ++i) train(absent >> (24 * i));
        score(absent, 0);
        score(absent, 0);
    }

    /// @notice Evaluators commit, then reveal, in the newest published round.
    function score(uint256 seed, uint8 panel) public {
        panel = panel % 2;
        uint32 round = lastPublished();
        if (round == 0) return;
        PanelState memory state = board.panel(job, round, panel);
        try board.draw(job, round, panel) {} catch {}
        state = board.panel(job, round, panel);
        for (uint8 seat = 0; seat < state.seats; ++seat) {
            uint256 random = uint256(keccak256(abi.encode(seed, seat)));
            if (random % 6 == 0) continue;
            if (state.state == PanelPhase.Commit) {
                try this.commitScore(round, panel, seat, random) {} catch {}
            } else if (state.state == PanelPhase.Reveal) {
                try this.revealScore(round, panel, seat) {} catch {}
            }
        }
        vm.warp(block.timestamp + (seed % 7));
    }

    function commitScore(uint32 round, uint8 panel, uint8 seat, uint256 random) external {
        int64[] memory scores = new int64[](board.panel(job, round, panel).subjects);
        for (uint256 i = 0; i < scores.length; ++i) {
            scores[i] = int64(uint64(100_000_000 * (i + 1)));
            if (random % 5 == 1) scores[i] = int64(int256((random >> 8) % 1e9)) - 5e8;
            // Verdicts: mostly good ones.
            if (panel == 1 || i + 2 >= scores.length) scores[i] = (random >> 16) % 3 == 0 ? int64(-1) : int64(1);
        }
        commitScoresAs(job, round, panel, seat, scores);
    }

    function revealScore(uint32 round, uint8 panel, uint8 seat) external {
        revealScoresAs(job, round, panel, seat);
    }

    /// @notice Settles the next round, right or wrong.
    function settle(uint256 seed, uint256 actor) external {
        uint32 round = nextToSettle();
        if (round == 0 || !board.done(job, round)) return;
        uint32 head = lastSettled();
        delete earlier;
        for (uint256 i = 0; i < books[head].length; ++i) earlier.push(books[head][i]);
        if (head == 0) delete earlier;
        keepBooks(job, round);
        bool bad = seed % 3 == 0;
        if (bad) {
            Leaf storage leaf = leaves[(seed >> 8) % leaves.length];
            // The total stays within the budget: less, if there is any, else another score.
            if (leaf.reward != 0) (leaf.reward, leaf.cumulative) = (leaf.reward - 1, leaf.cumulative - 1);
            else leaf.score += 1;
        }
        address by = nodeAt(actor % NODES);
        try this.settleAs(round, by) {
            wrong[round] = bad;
            ++times[bad ? "settled wrong" : "settled right"];
            delete books[round];
            for (uint256 i = 0; i < leaves.length; ++i) books[round].push(leaves[i]);
        } catch {
            if (bad) return;
            uint256 until = uint256(jobs.publication(job, round).publishedAt) + 340;
            if (registry.stakeOf(by) >= STAKE && block.timestamp < until) fooled = "a right settlement was refused";
        }
    }

    function settleAs(uint32 round, address by) external {
        (bytes32 root, uint128 total) = Trees.build(leaves);
        (bytes32 scoreRoot, uint256 weights) = Trees.build(scoreLeaves);
        vm.prank(by);
        distributor.settle(job, round, root, total, scoreRoot, weights, EVIDENCE);
        settlers[round] = by;
    }

    /// @notice Tries every line of a settlement: it falls if and only if it is wrong.
    function challenge(uint256 seed) external {
        uint32 round = lastSettled();
        if (round == 0) return;
        Settlement memory own = distributor.settlement(job, round);
        if (block.timestamp >= own.claimableAt) return;
        // The books of the round, as they were.
        delete earlier;
        for (uint256 i = 0; i < books[own.previousRound].length; ++i) earlier.push(books[own.previousRound][i]);
        if (own.previousRound == 0) delete earlier;
        keepBooks(job, round);
        delete leaves;
        for (uint256 i = 0; i < books[round].length; ++i) leaves.push(books[round][i]);
        settler = settlers[round];
        uint256 before = registry.node(settler).stake;
        bool fell = false;
        for (uint32 i = 0; i < leaves.length && !fell; ++i) {
            uint32 place = uint32((i + (seed % leaves.length)) % leaves.length);
            try this.tryReward(round, place) {
                fell = true;
            } catch {
                try this.tryCumulative(round, place) {
                    fell = true;
                } catch {}
            }
        }
        ++times[fell ? "fell" : "stood"];
        if (fell != wrong[round]) fooled = fell ? "a right settlement fell" : "a wrong settlement stood";
        uint256 bond = before < BOND ? before : BOND;
        if (fell && before - registry.node(settler).stake != bond) fooled = "not one bond";
        if (fell && distributor.settlement(job, round).claimableAt != 0) fooled = "fell and stands";
    }

    function tryReward(uint32 round, uint32 place) external {
        challengeReward(job, round, place);
    }

    function tryCumulative(uint32 round, uint32 place) external {
        challengeCumulative(job, round, place);
    }

    /// @notice Claims all lines of a settled round.
    function claim(uint256 seed, uint256 wait) external {
        uint32 round = uint32(1 + (seed % ROUNDS));
        vm.warp(block.timestamp + (wait % 40));
        Settlement memory own = distributor.settlement(job, round);
        for (uint256 i = 0; i < books[round].length; ++i) {
            Leaf memory leaf = books[round][i];
            try distributor.claim(job, round, leaf, Trees.prove(books[round], i)) {
                ++times["claimed"];
                if (own.claimableAt == 0 || block.timestamp < own.claimableAt) fooled = "paid what is not final";
            } catch {}
        }
    }

    /// @notice Reports every offence there may be; each costs at most once.
    function report(uint256 seed) external {
        uint32 round = lastPublished();
        if (round == 0) return;
        uint8 seat = uint8(seed % SEATS);
        uint8 panel = uint8((seed >> 8) % 2);
        address node = nodeAt((seed >> 16) % NODES);
        try board.punishSeat(job, round, panel, seat) {
            once("seat", keccak256(abi.encode("seat", round, panel, seat)));
        } catch {}
        try jobs.punish(job, round, node) {
            once("reveal", keccak256(abi.encode("reveal", round, node)));
        } catch {}
        uint32 subjects = board.panel(job, round, 0).subjects;
        if (subjects < 3 || board.panel(job, round, 0).state != PanelPhase.Done) return;
        Word[] memory words = wordsOf(job, round, 0, subjects - 2, node);
        try board.accuse(job, round, 0, node, words) {
            once("audit", keccak256(abi.encode("audit", round)));
            if (seed % 2 == 0) {
                vm.prank(node);
                board.appeal(job, round, 0);
            }
        } catch {}
        words = wordsOf(job, round, 1, 0, board.audit(job, round, 0).node);
        try board.decide(job, round, 0, words) {
            once("verdict", keccak256(abi.encode("verdict", round)));
        } catch {}
        words = wordsOf(job, round, 0, subjects - 1, node);
        try board.denounce(job, round, node, words) {
            once("model", keccak256(abi.encode("model", round)));
        } catch {}
        words = wordsOf(job, round, 0, 0, node);
        try board.penalize(job, round, seat, 0, node, words) {
            once("outlier", keccak256(abi.encode("outlier", round, seat)));
        } catch {}
    }

    function once(string memory what, bytes32 offence) private {
        ++times[what];
        if (++slashes[offence] > 1) fooled = "punished twice";
    }

    /// @notice Nodes come back with new stake, or leave.
    function comeAndGo(uint256 seed) external {
        address node = seed % 2 == 0 ? nodeAt((seed >> 8) % NODES) : evaluatorAt((seed >> 8) % (SEATS + 1));
        uint256 stake = registry.stakeOf(node);
        if (registry.isBonded(node) && stake < STAKE) {
            token.approve(address(registry), STAKE);
            registry.topUp(node, STAKE);
        }
        if (seed % 2 == 1 && registry.isBonded(node) && !registry.isEvaluator(node)) {
            vm.prank(node);
            registry.enlist();
        }
        try jobs.expel(job, node) {
            if (stake >= STAKE) fooled = "expelled with stake";
        } catch {}
    }

    function refund(uint256 wait) external {
        vm.warp(block.timestamp + (wait % 100));
        try jobs.refund(job) {
            if (block.timestamp < distributor.finalAt(job)) fooled = "refunded what may be earned";
        } catch {}
    }

    // -- what there is -----------------------------------------------------------------------------------------

    function lastPublished() public view returns (uint32) {
        uint32 completed = jobs.job(job).completed;
        return completed == 0 ? 0 : jobs.publicationAt(job, completed - 1).round;
    }

    function lastSettled() private view returns (uint32 last) {
        uint32 completed = jobs.job(job).completed;
        for (uint32 i = 0; i < completed; ++i) {
            uint32 round = jobs.publicationAt(job, i).round;
            if (distributor.settlement(job, round).claimableAt != 0) last = round;
        }
    }

    function nextToSettle() private view returns (uint32) {
        uint32 completed = jobs.job(job).completed;
        for (uint32 i = 0; i < completed; ++i) {
            uint32 round = jobs.publicationAt(job, i).round;
            bool open = block.timestamp < uint256(jobs.publicationAt(job, i).publishedAt) + 340;
            if (open && distributor.settlement(job, round).claimableAt == 0 && round > lastSettled()) return round;
        }
        return 0;
    }
}

/// @notice What holds after whatever they did.
contract ScoredInvariantsTest {
    Scorers private scorers;
    VnxToken private token;
    NodeRegistry private registry;
    ITrainingJobs private jobs;
    ScoreBoard private board;
    RewardDistributor private distributor;
    JobId private job;

    function setUp() public {
        scorers = new Scorers();
        (token, registry, jobs, board, distributor) = scorers.contracts();
        job = scorers.job();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(scorers);
    }

    /// @dev That the play is one: what the invariants are about does happen in it.
    function test_the_play_has_all_that_is_to_be_shown() public {
        for (uint256 i = 0; i < 6; ++i) {
            uint256 random = uint256(keccak256(abi.encode("play", i)));
            scorers.trainOn(type(uint256).max);
            scorers.refund(45);
            scorers.report(random);
            scorers.score(random, 1);
            scorers.settle(i % 2 == 0 ? 3 * (random >> 2) : 3 * (random >> 2) + 1, 0);
            scorers.challenge(random);
            scorers.comeAndGo(2 * (random >> 1));
            if (i % 2 == 1) scorers.claim(i, 60);
        }
        vm.assertEq(scorers.fooled(), "");
        vm.assertTrue(scorers.times("settled right") != 0);
        vm.assertTrue(scorers.times("settled wrong") != 0);
        vm.assertTrue(scorers.times("stood") != 0);
        vm.assertTrue(scorers.times("fell") != 0);
    }

    function invariant_nothing_goes_through_that_must_not() public view {
        vm.assertEq(scorers.fooled(), "");
    }

    function invariant_the_escrow_is_exact() public view {
        JobState memory state = jobs.job(job);
        uint256 escrow = uint256(state.terms.rounds) * state.terms.roundBudget;
        uint256 held = escrow - state.spent - state.refunded;
        vm.assertEq(token.balanceOf(address(distributor)), held + distributor.unclaimed(job));
        vm.assertLe(distributor.unclaimed(job), state.spent);
        vm.assertLe(state.spent, uint256(state.completed) * state.terms.roundBudget);
    }

    function invariant_claims_are_exactly_what_was_paid_out() public view {
        uint256 claimed = 0;
        for (uint32 index = 0; index < jobs.payeeCount(job); ++index) {
            Payee memory own = jobs.payee(job, index);
            claimed += distributor.claimed(job, own.account, own.asset);
        }
        vm.assertEq(claimed + distributor.unclaimed(job), jobs.job(job).spent);
    }

    function invariant_evaluators_weigh_what_they_stake() public view {
        uint256 weight = 0;
        for (uint160 i = 0; i < 7; ++i) {
            address node = i < 3 ? address(0x1000 + i) : address(0xe000 + i - 3);
            if (registry.isEvaluator(node)) weight += registry.stakeOf(node);
        }
        vm.assertEq(registry.evaluatorWeightAt(uint48(block.number)), weight);
    }

    function invariant_stake_is_exact() public view {
        uint256 stake = 0;
        for (uint160 i = 0; i < 3; ++i) stake += registry.node(address(0x1000 + i)).stake;
        for (uint160 i = 0; i < 4; ++i) stake += registry.node(address(0xe000 + i)).stake;
        vm.assertEq(token.balanceOf(address(registry)), stake);
    }

    function invariant_payees_are_unique() public view {
        for (uint32 index = 0; index < jobs.payeeCount(job); ++index) {
            Payee memory own = jobs.payee(job, index);
            (bool found, uint32 number) = own.asset == 0
                ? jobs.payeeOf(job, own.account)
                : jobs.payeeOfAsset(job, own.asset);
            vm.assertTrue(found && number == index);
            vm.assertTrue((own.account == address(0)) != (own.asset == 0));
        }
    }

    function invariant_no_panel_works_for_ever() public view {
        uint32 round = scorers.lastPublished();
        if (round == 0) return;
        bool late = block.timestamp >= uint256(jobs.publication(job, round).publishedAt) + 40;
        vm.assertTrue(!late || board.done(job, round));
    }
}
