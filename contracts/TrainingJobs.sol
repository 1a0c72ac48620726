// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {JobDesk} from "./JobDesk.sol";
import {JobStore} from "./JobStore.sol";
import {IAssetRegistry} from "./interfaces/IAssetRegistry.sol";
import {IJobRounds} from "./interfaces/IJobRounds.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IScoreBoard} from "./interfaces/IScoreBoard.sol";
import {AggregatorDraw} from "./libraries/AggregatorDraw.sol";
import {Entries, Entry} from "./libraries/Entries.sol";
import {LapBook, Laps} from "./libraries/Laps.sol";
import {Publications} from "./libraries/Publications.sol";
import {Settling} from "./libraries/Settling.sol";
import {Job, Member} from "./types/Job.sol";
import {Cid, JobId, JobState, JobTerms, Kind, Mode, Phase, Publication} from "./types/Types.sol";

/// @title Runs the rounds of jobs and keeps account of their escrow
/// @notice See interfaces/ITrainingJobs.sol. One contract may have no more than 24,576 bytes of code. What is called once
/// in a while is in JobDesk, which this contract creates with itself and runs in its own place, on its own storage.
contract TrainingJobs is JobStore, IJobRounds {
    using Laps for LapBook;
    using Publications for mapping(uint256 => Publication);
    using Settling for Job;

    /// @notice Void rounds in a row after which a job fails.
    uint8 public constant MAX_VOIDS = 3;

    /// @notice The other half of this contract's code.
    JobDesk public immutable desk;

    /// @dev Board and distributor do not exist yet; their addresses follow from the deployer's nonce.
    constructor(
        IERC20 token_,
        INodeRegistry registry_,
        IAssetRegistry assets_,
        address board_,
        address distributor_
    ) JobStore(token_, registry_, assets_, board_, distributor_) {
        desk = new JobDesk(token_, registry_, assets_, board_, distributor_);
    }

    /// @notice Whatever is not found here is found at the desk.
    fallback() external {
        address target = address(desk);
        assembly {
            calldatacopy(0, 0, calldatasize())
            let done := delegatecall(gas(), target, 0, calldatasize(), 0, 0)
            returndatacopy(0, 0, returndatasize())
            if iszero(done) {
                revert(0, returndatasize())
            }
            return(0, returndatasize())
        }
    }

    /// @inheritdoc IJobRounds
    function commit(JobId id, uint32 round, bytes32 commitment) external {
        Job storage job_ = _inTime(id, round, Phase.Commit);
        if (job_.terms.mode == Mode.Chained) revert WrongMode(id, Mode.Chained);
        address node = _actor(job_);
        uint32 target = job_.terms.target;
        uint32 active = job_.members[node].activeRound;
        if (target == 0 ? active != round : active == 0 || active > round) revert NotActive(id, round, node);
        if (!job_.entries[round][node].isEmpty()) revert AlreadyCommitted(id, round, node);
        if (!Entries.isHash(commitment)) revert InvalidCommitment(commitment);

        job_.entries[round][node] = Entries.seal(commitment);
        emit ContributionCommitted(id, round, node, commitment);
        uint32 enough = job_.expected;
        if (target != 0 && target < enough) enough = target;
        // More than enough may have committed, if one that was expected was shut out.
        if (++job_.commits >= enough) _closeCommit(id, job_);
    }

    /// @inheritdoc IJobRounds
    function reveal(
        JobId id,
        uint32 round,
        Kind kind,
        Cid update,
        Cid parent,
        uint64 samples,
        bytes32 salt
    ) external {
        Job storage job_ = _inTime(id, round, Phase.Reveal);
        if (Cid.unwrap(parent) != Cid.unwrap(job_.model) && job_.terms.mode != Mode.Async) {
            revert ParentMismatch(id, round, parent);
        }
        bytes32 commitment = Entries.hash(id, round, parent, update, kind, samples, _actor(job_), salt);
        address node = _checkReveal(id, job_, round, commitment);

        // It may have joined the next round already, for fear of missing this phase.
        if (job_.terms.target == 0 && job_.members[node].activeRound == round) {
            job_.members[node].activeRound = round + 1;
            ++job_.nextExpected;
        }
        uint32 reveals = _record(id, job_, round, node, kind, update, parent, samples);
        if (reveals == job_.commits) _openAggregate(id, job_);
    }

    /// @inheritdoc IJobRounds
    function hop(JobId id, uint32 round, bool accept, Cid model, uint64 samples) external {
        Job storage job_ = _inTime(id, round, Phase.Commit);
        if (job_.terms.mode != Mode.Chained) revert WrongMode(id, job_.terms.mode);
        address node = _actor(job_);
        if (job_.laps.memberAt(round, job_.commits) != node) revert NotYourLease(id, round, node);
        // It may have been shut out since the lap began.
        if (job_.members[node].activeRound != round) revert NotActive(id, round, node);

        if (accept && Cid.unwrap(job_.candidate) != 0) job_.model = job_.candidate;
        job_.candidate = model;
        job_.members[node].activeRound = round + 1;
        ++job_.nextExpected;
        job_.laps.add(round + 1, node);
        _record(id, job_, round, node, Kind.Hop, model, job_.model, samples);
        _nextLease(id, job_);
    }

    /// @inheritdoc IJobRounds
    function publishModel(JobId id, uint32 round, Cid model) external {
        Job storage job_ = _inTime(id, round, Phase.Aggregate);
        address node = _actor(job_);
        uint64 from = _mayAggregateAt(job_, node);
        if (from == 0) revert NotAggregator(id, round, node);
        if (block.timestamp < from) revert NotYourTurn(id, round, node, from);

        if (job_.terms.mode == Mode.Chained) _takeCandidate(id, job_, round, model);
        job_.model = model;
        job_.voids = 0;
        uint32 completed = ++job_.completed;
        job_.published[completed - 1] = Publication({
            publishedAt: uint40(block.timestamp),
            round: round,
            sealBlock: job_.sealBlock,
            contributions: job_.reveals,
            publisherIndex: job_.entries[round][node].index(),
            payees: job_.payees.count
        });
        emit ModelPublished(id, round, node, model);

        if (completed == job_.terms.rounds) return _end(id, job_, Phase.Completed);
        if (job_.cancelRequested) return _end(id, job_, Phase.Cancelled);
        // Whoever revealed is a member of the next round: a quorum, at least.
        _nextRound(job_);
        _openCommit(id, job_);
    }

    /// @inheritdoc IJobRounds
    function advance(JobId id) external {
        Job storage job_ = _running(id);
        if (block.timestamp < job_.deadline) revert DeadlineAhead(id, job_.deadline);

        Phase phase = job_.phase;
        uint32 quorum = job_.terms.quorum;
        if (phase == Phase.Open) {
            if (job_.expected >= quorum) _openCommit(id, job_);
            else _end(id, job_, Phase.Failed);
        } else if (phase == Phase.Commit && job_.terms.mode == Mode.Chained) {
            // Whoever misses its lease is a member again when it joins again.
            Member storage late = job_.members[job_.laps.memberAt(job_.round, job_.commits)];
            if (late.activeRound == job_.round) late.activeRound = 0;
            _nextLease(id, job_);
        } else if (phase == Phase.Commit && job_.commits >= quorum) {
            _closeCommit(id, job_);
        } else if (phase == Phase.Reveal && job_.reveals >= quorum) {
            _openAggregate(id, job_);
        } else {
            _void(id, job_);
        }
    }

    /// @inheritdoc IJobRounds
    function release(
        JobId id,
        uint32 round,
        uint128 total
    ) external returns (uint112 amount, uint40 claimableAt, uint32 payees, uint96 requiredStake) {
        if (msg.sender != distributor) revert NotDistributor(msg.sender);
        Job storage job_ = _known(id);
        (uint32 position_, Publication memory own) = job_.check(id, round);
        JobTerms storage terms_ = job_.terms;
        payees = own.payees;
        requiredStake = terms_.requiredStake;
        claimableAt = uint40(block.timestamp) + terms_.challengeWindow;
        amount = job_.release(id, position_, total);

        if (terms_.evaluators == 0) return (amount, claimableAt, payees, requiredStake);
        (bool scored, uint32 seated) = IScoreBoard(board).outcome(id, round, own.publishedAt, terms_.scoreWindow);
        if (!scored) revert StillScoring(id, round);
        if (seated > payees) payees = seated;
    }

    /// @inheritdoc IJobRounds
    function retake(JobId id, uint32 round, uint112 previousTotal, uint112 amount) external {
        if (msg.sender != distributor) revert NotDistributor(msg.sender);
        _known(id).retake(id, round, previousTotal, amount);
        emit RoundReopened(id, round);
    }

    /// @inheritdoc IJobRounds
    function job(JobId id) external view returns (JobState memory state) {
        Job storage job_ = _jobs[id];
        state.requester = job_.requester;
        state.terms = job_.terms;
        state.phase = job_.phase;
        state.round = job_.round;
        state.completed = job_.completed;
        state.deadline = job_.deadline;
        state.model = job_.model;
        state.expected = job_.expected;
        state.commits = job_.commits;
        state.reveals = job_.reveals;
        state.draw = job_.draw;
        state.spent = job_.spent;
        state.candidate = job_.candidate;
        state.refunded = uint128(job_.terms.rounds) * job_.terms.roundBudget - job_.held - job_.spent;
    }

    /// @inheritdoc IJobRounds
    function activeRound(JobId id, address node) external view returns (uint32) {
        return _jobs[id].members[node].activeRound;
    }

    /// @inheritdoc IJobRounds
    function committed(JobId id, uint32 round, address node) external view returns (bool) {
        return !_jobs[id].entries[round][node].isEmpty();
    }

    /// @inheritdoc IJobRounds
    function revealed(JobId id, uint32 round, address node) external view returns (bool) {
        return _jobs[id].entries[round][node].isRevealed();
    }

    /// @inheritdoc IJobRounds
    function mayAggregateAt(JobId id, address node) external view returns (uint64) {
        return _mayAggregateAt(_jobs[id], node);
    }

    /// @inheritdoc IJobRounds
    function lease(JobId id) external view returns (address node, uint32 position, uint64 until) {
        Job storage job_ = _jobs[id];
        if (job_.phase != Phase.Commit || job_.terms.mode != Mode.Chained) return (address(0), 0, 0);
        position = job_.commits;
        return (job_.laps.memberAt(job_.round, position), position, job_.deadline);
    }

    // -- the course of a round ---------------------------------------------------------------------------------

    function _closeCommit(JobId id, Job storage job_) private {
        _enter(id, job_, Phase.Reveal, job_.terms.revealWindow);
    }

    /// @dev Keeps a contribution for all to see; returns how many the round has now.
    function _record(
        JobId id,
        Job storage job_,
        uint32 round,
        address node,
        Kind kind,
        Cid update,
        Cid parent,
        uint64 samples
    ) private returns (uint32 reveals) {
        uint32 index = job_.reveals;
        reveals = index + 1;
        job_.reveals = reveals;
        job_.entries[round][node] = Entries.open(kind, index, samples);
        emit ContributionRevealed(id, round, node, kind, index, update, parent, samples);
    }

    /// @dev The next in the lap's order; after the last one the lap counts, or is void.
    function _nextLease(JobId id, Job storage job_) private {
        if (++job_.commits < job_.expected) {
            job_.deadline = uint40(block.timestamp) + job_.terms.commitWindow;
            _emitLease(id, job_);
        } else if (job_.reveals >= job_.terms.quorum) {
            _openAggregate(id, job_);
        } else {
            _void(id, job_);
        }
    }

    /// @dev A lap ends with its last hop, or with what was accepted before.
    function _takeCandidate(JobId id, Job storage job_, uint32 round, Cid model) private {
        bytes32 chosen = Cid.unwrap(model);
        if (chosen != Cid.unwrap(job_.candidate) && chosen != Cid.unwrap(job_.model)) {
            revert NotACandidate(id, round, model);
        }
        job_.candidate = Cid.wrap(0);
    }

    function _openAggregate(JobId id, Job storage job_) private {
        // Not before: whoever knew which place is audited could reveal so as to come at another.
        job_.sealBlock = uint48(block.number);
        job_.draw = AggregatorDraw.draw(
            block.prevrandao,
            blockhash(block.number - 1),
            id,
            job_.round,
            job_.reveals
        );
        _enter(id, job_, Phase.Aggregate, job_.terms.aggregateWindow);
    }

    function _nextRound(Job storage job_) private {
        ++job_.round;
        job_.expected = job_.terms.target == 0 ? job_.nextExpected : job_.expected + job_.nextExpected;
        job_.nextExpected = 0;
        job_.commits = 0;
        job_.reveals = 0;
    }

    function _void(JobId id, Job storage job_) private {
        emit RoundVoided(id, job_.round, job_.phase);
        if (job_.phase == Phase.Commit) job_.unrevealed[job_.round] = true;
        if (job_.terms.mode == Mode.Chained) job_.candidate = Cid.wrap(0);
        if (++job_.voids == MAX_VOIDS) return _end(id, job_, Phase.Failed);
        if (job_.cancelRequested) return _end(id, job_, Phase.Cancelled);
        _nextRound(job_);
        if (job_.expected >= job_.terms.minNodes) _openCommit(id, job_);
        else _enter(id, job_, Phase.Open, job_.terms.openWindow);
    }

    function _inTime(JobId id, uint32 round, Phase phase) private view returns (Job storage job_) {
        job_ = _known(id);
        if (job_.phase != phase) revert WrongPhase(id, job_.phase);
        if (job_.round != round) revert WrongRound(id, round, job_.round);
        _checkInTime(id, job_);
    }

    function _checkReveal(
        JobId id,
        Job storage job_,
        uint32 round,
        bytes32 commitment
    ) private view returns (address node) {
        node = _actor(job_);
        Entry entry = job_.entries[round][node];
        if (entry.isEmpty()) revert NotCommitted(id, round, node);
        if (entry.isRevealed()) revert AlreadyRevealed(id, round, node);
        if (!entry.seals(commitment)) revert CommitmentMismatch(id, round, node, commitment);
    }

    function _mayAggregateAt(Job storage job_, address node) private view returns (uint64) {
        Entry entry = job_.entries[job_.round][node];
        if (job_.phase != Phase.Aggregate || !entry.isRevealed()) return 0;
        uint32 rank = AggregatorDraw.rank(entry.index(), job_.draw, job_.reveals);
        uint32 window = job_.terms.aggregateWindow;
        return job_.deadline - window + AggregatorDraw.delay(rank, job_.reveals, window);
    }
}
