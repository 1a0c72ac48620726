// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {RewardDistributor} from "./RewardDistributor.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {ITrainingJobs} from "./interfaces/ITrainingJobs.sol";
import {AggregatorDraw} from "./libraries/AggregatorDraw.sol";
import {Entries, Entry} from "./libraries/Entries.sol";
import {LapBook, Laps} from "./libraries/Laps.sol";
import {Publications} from "./libraries/Publications.sol";
import {Settling} from "./libraries/Settling.sol";
import {Terms} from "./libraries/Terms.sol";
import {Job} from "./types/Job.sol";
import {Cid, JobId, JobState, JobTerms, Kind, Mode, Phase, Publication} from "./types/Types.sol";

/// @title Holds the escrow of jobs and runs their rounds
/// @notice See interfaces/ITrainingJobs.sol
contract TrainingJobs is ITrainingJobs {
    using SafeERC20 for IERC20;
    using Laps for LapBook;
    using Publications for mapping(uint256 => Publication);
    using Settling for Job;

    /// @notice Void rounds in a row after which a job fails.
    uint8 public constant MAX_VOIDS = 3;

    /// @notice The token of escrow and rewards.
    IERC20 public immutable token;

    /// @notice Who may join.
    INodeRegistry public immutable registry;

    /// @inheritdoc ITrainingJobs
    address public immutable distributor;

    /// @inheritdoc ITrainingJobs
    uint64 public jobCount;

    mapping(JobId id => Job) private _jobs;

    /// @dev Creates the distributor: nobody has to introduce the two, so nobody could introduce an impostor.
    constructor(IERC20 token_, INodeRegistry registry_) {
        token = token_;
        registry = registry_;
        distributor = address(new RewardDistributor(token_));
    }

    /// @inheritdoc ITrainingJobs
    function createJob(JobTerms calldata terms) external returns (JobId id) {
        uint112 escrow = Terms.check(terms);
        id = JobId.wrap(++jobCount);
        Job storage job_ = _jobs[id];
        job_.requester = msg.sender;
        job_.model = terms.model;
        job_.held = escrow;
        job_.terms = terms;
        job_.round = 1;
        emit JobCreated(
            id,
            msg.sender,
            terms.spec,
            terms.model,
            terms.mode,
            terms.rounds,
            terms.quorum,
            terms.minNodes,
            terms.target,
            terms.roundBudget,
            terms.requiredStake
        );
        _enter(id, job_, Phase.Open, terms.openWindow);

        token.safeTransferFrom(msg.sender, address(this), escrow);
    }

    /// @inheritdoc ITrainingJobs
    function join(JobId id) external {
        Job storage job_ = _running(id);
        Phase phase = job_.phase;
        if (phase == Phase.Open) _checkInTime(id, job_);
        _checkStake(job_);

        uint32 round = job_.round;
        uint32 active = job_.activeRound[msg.sender];
        // Whoever can still commit in this round has nothing to join.
        bool inTime = active == round && (phase == Phase.Open || phase == Phase.Commit);
        if (active > round || inTime || (active != 0 && job_.terms.target != 0)) {
            revert AlreadyJoined(id, msg.sender, active);
        }
        uint32 first = phase == Phase.Open ? round : round + 1;
        job_.activeRound[msg.sender] = first;
        if (job_.terms.mode == Mode.Chained) job_.laps.add(first, msg.sender);
        emit NodeJoined(id, msg.sender, first);

        if (phase != Phase.Open) {
            ++job_.nextExpected;
        } else if (++job_.expected >= job_.terms.minNodes) {
            _openCommit(id, job_);
        }
    }

    /// @inheritdoc ITrainingJobs
    function commit(JobId id, uint32 round, bytes32 commitment) external {
        Job storage job_ = _inTime(id, round, Phase.Commit);
        if (job_.terms.mode == Mode.Chained) revert WrongMode(id, Mode.Chained);
        uint32 target = job_.terms.target;
        uint32 active = job_.activeRound[msg.sender];
        if (target == 0 ? active != round : active == 0 || active > round) revert NotActive(id, round, msg.sender);
        if (!job_.entries[round][msg.sender].isEmpty()) revert AlreadyCommitted(id, round, msg.sender);
        Entry entry = Entries.seal(commitment);
        if (entry.isEmpty()) revert InvalidCommitment(commitment);

        job_.entries[round][msg.sender] = entry;
        emit ContributionCommitted(id, round, msg.sender, commitment);
        uint32 enough = job_.expected;
        if (target != 0 && target < enough) enough = target;
        if (++job_.commits == enough) _enter(id, job_, Phase.Reveal, job_.terms.revealWindow);
    }

    /// @inheritdoc ITrainingJobs
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
        _checkReveal(id, job_, round, Entries.hash(id, round, parent, update, kind, samples, msg.sender, salt));

        // It may have joined the next round already, for fear of missing this phase.
        if (job_.terms.target == 0 && job_.activeRound[msg.sender] == round) {
            job_.activeRound[msg.sender] = round + 1;
            ++job_.nextExpected;
        }
        uint32 reveals = _record(id, job_, round, kind, update, parent, samples);
        if (reveals == job_.commits) _openAggregate(id, job_);
    }

    /// @inheritdoc ITrainingJobs
    function hop(JobId id, uint32 round, bool accept, Cid model, uint64 samples) external {
        Job storage job_ = _inTime(id, round, Phase.Commit);
        if (job_.terms.mode != Mode.Chained) revert WrongMode(id, job_.terms.mode);
        if (job_.laps.memberAt(round, job_.commits) != msg.sender) revert NotYourLease(id, round, msg.sender);

        if (accept && Cid.unwrap(job_.candidate) != 0) job_.model = job_.candidate;
        job_.candidate = model;
        job_.activeRound[msg.sender] = round + 1;
        ++job_.nextExpected;
        job_.laps.add(round + 1, msg.sender);
        _record(id, job_, round, Kind.Hop, model, job_.model, samples);
        _nextLease(id, job_);
    }

    /// @inheritdoc ITrainingJobs
    function publishModel(JobId id, uint32 round, Cid model) external {
        Job storage job_ = _inTime(id, round, Phase.Aggregate);
        uint64 from = _mayAggregateAt(job_, msg.sender);
        if (from == 0) revert NotAggregator(id, round, msg.sender);
        if (block.timestamp < from) revert NotYourTurn(id, round, msg.sender, from);

        if (job_.terms.mode == Mode.Chained) _takeCandidate(id, job_, round, model);
        job_.model = model;
        job_.voids = 0;
        uint32 completed = ++job_.completed;
        job_.published[completed - 1] = Publication(msg.sender, uint40(block.timestamp), round);
        emit ModelPublished(id, round, msg.sender, model);

        if (completed == job_.terms.rounds) return _end(id, job_, Phase.Completed);
        if (job_.cancelRequested) return _end(id, job_, Phase.Cancelled);
        // Whoever revealed is a member of the next round: a quorum, at least.
        _nextRound(job_);
        _openCommit(id, job_);
    }

    /// @inheritdoc ITrainingJobs
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
            delete job_.activeRound[job_.laps.memberAt(job_.round, job_.commits)];
            _nextLease(id, job_);
        } else if (phase == Phase.Commit && job_.commits >= quorum) {
            _enter(id, job_, Phase.Reveal, job_.terms.revealWindow);
        } else if (phase == Phase.Reveal && job_.reveals >= quorum) {
            _openAggregate(id, job_);
        } else {
            _void(id, job_);
        }
    }

    /// @inheritdoc ITrainingJobs
    function cancel(JobId id) external {
        Job storage job_ = _running(id);
        if (msg.sender != job_.requester) revert NotRequester(id, msg.sender);
        if (job_.cancelRequested) revert CancelAlreadyRequested(id);

        job_.cancelRequested = true;
        emit JobCancelRequested(id);
        if (job_.phase == Phase.Open && job_.round == 1) _end(id, job_, Phase.Cancelled);
    }

    /// @inheritdoc ITrainingJobs
    function refund(JobId id) external returns (uint256 amount) {
        Job storage job_ = _known(id);
        if (!_ended(job_.phase)) revert WrongPhase(id, job_.phase);
        amount = job_.refundable();
        if (amount == 0) revert NothingToRefund(id);

        // At most `held`, which has 112 bits.
        job_.held -= uint112(amount);
        emit Refunded(id, job_.requester, amount);

        token.safeTransfer(job_.requester, amount);
    }

    /// @inheritdoc ITrainingJobs
    function release(
        JobId id,
        uint32 round,
        address settler,
        uint128 total
    ) external returns (uint128 amount, uint64 claimableAt) {
        if (msg.sender != distributor) revert NotDistributor(msg.sender);
        Job storage job_ = _known(id);
        uint32 position = job_.check(id, round, settler);
        amount = job_.added(id, total);

        job_.settled = position + 1;
        // Both at most the escrow, which has 112 bits.
        job_.held -= uint112(amount);
        job_.spent = uint112(total);
        claimableAt = uint64(block.timestamp) + job_.terms.challengeWindow;

        if (amount != 0) token.safeTransfer(msg.sender, amount);
    }

    /// @inheritdoc ITrainingJobs
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

    /// @inheritdoc ITrainingJobs
    function activeRound(JobId id, address node) external view returns (uint32) {
        return _jobs[id].activeRound[node];
    }

    /// @inheritdoc ITrainingJobs
    function committed(JobId id, uint32 round, address node) external view returns (bool) {
        return !_jobs[id].entries[round][node].isEmpty();
    }

    /// @inheritdoc ITrainingJobs
    function revealed(JobId id, uint32 round, address node) external view returns (bool) {
        return _jobs[id].entries[round][node].isRevealed();
    }

    /// @inheritdoc ITrainingJobs
    function mayAggregateAt(JobId id, address node) external view returns (uint64) {
        return _mayAggregateAt(_jobs[id], node);
    }

    /// @inheritdoc ITrainingJobs
    function lease(JobId id) external view returns (address node, uint32 position, uint64 until) {
        Job storage job_ = _jobs[id];
        if (job_.phase != Phase.Commit || job_.terms.mode != Mode.Chained) return (address(0), 0, 0);
        position = job_.commits;
        return (job_.laps.memberAt(job_.round, position), position, job_.deadline);
    }

    /// @inheritdoc ITrainingJobs
    function publication(JobId id, uint32 round) external view returns (Publication memory found) {
        Job storage job_ = _jobs[id];
        (bool exists, uint32 position) = job_.published.find(job_.completed, round);
        if (exists) found = job_.published[position];
    }

    /// @inheritdoc ITrainingJobs
    function refundable(JobId id) external view returns (uint256) {
        Job storage job_ = _jobs[id];
        return _ended(job_.phase) ? job_.refundable() : 0;
    }

    // -- the course of a round ---------------------------------------------------------------------------------

    function _enter(JobId id, Job storage job_, Phase phase, uint32 window) private {
        uint40 deadline = uint40(block.timestamp) + window;
        job_.phase = phase;
        job_.deadline = deadline;
        emit PhaseChanged(id, job_.round, phase, deadline);
    }

    function _openCommit(JobId id, Job storage job_) private {
        if (job_.terms.mode == Mode.Chained) job_.laps.open(id, job_.round);
        _enter(id, job_, Phase.Commit, job_.terms.commitWindow);
        emit RoundOpened(id, job_.round, job_.model, job_.expected, job_.deadline);
        if (job_.terms.mode == Mode.Chained) _emitLease(id, job_);
    }

    /// @dev Keeps a contribution for all to see; returns how many the round has now.
    function _record(
        JobId id,
        Job storage job_,
        uint32 round,
        Kind kind,
        Cid update,
        Cid parent,
        uint64 samples
    ) private returns (uint32 reveals) {
        uint32 index = job_.reveals;
        reveals = index + 1;
        job_.reveals = reveals;
        job_.entries[round][msg.sender] = Entries.open(kind, index, samples);
        emit ContributionRevealed(id, round, msg.sender, kind, index, update, parent, samples);
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

    function _emitLease(JobId id, Job storage job_) private {
        uint32 position = job_.commits;
        emit HopLeased(id, job_.round, job_.laps.memberAt(job_.round, position), position, job_.deadline);
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
        if (job_.terms.mode == Mode.Chained) job_.candidate = Cid.wrap(0);
        if (++job_.voids == MAX_VOIDS) return _end(id, job_, Phase.Failed);
        if (job_.cancelRequested) return _end(id, job_, Phase.Cancelled);
        _nextRound(job_);
        if (job_.expected >= job_.terms.minNodes) _openCommit(id, job_);
        else _enter(id, job_, Phase.Open, job_.terms.openWindow);
    }

    function _end(JobId id, Job storage job_, Phase phase) private {
        job_.phase = phase;
        job_.deadline = 0;
        emit JobEnded(id, phase);
    }

    // -- checks ------------------------------------------------------------------------------------------------

    function _known(JobId id) private view returns (Job storage job_) {
        job_ = _jobs[id];
        if (job_.phase == Phase.None) revert JobUnknown(id);
    }

    function _running(JobId id) private view returns (Job storage job_) {
        job_ = _known(id);
        if (_ended(job_.phase)) revert WrongPhase(id, job_.phase);
    }

    function _inTime(JobId id, uint32 round, Phase phase) private view returns (Job storage job_) {
        job_ = _known(id);
        if (job_.phase != phase) revert WrongPhase(id, job_.phase);
        if (job_.round != round) revert WrongRound(id, round, job_.round);
        _checkInTime(id, job_);
    }

    function _checkInTime(JobId id, Job storage job_) private view {
        if (block.timestamp >= job_.deadline) revert DeadlinePassed(id, job_.deadline);
    }

    function _checkStake(Job storage job_) private view {
        if (!registry.isBonded(msg.sender)) revert NodeNotBonded(msg.sender);
        uint256 stake = registry.stakeOf(msg.sender);
        uint96 required = job_.terms.requiredStake;
        if (stake < required) revert StakeTooLow(msg.sender, stake, required);
    }

    function _checkReveal(JobId id, Job storage job_, uint32 round, bytes32 commitment) private view {
        Entry entry = job_.entries[round][msg.sender];
        if (entry.isEmpty()) revert NotCommitted(id, round, msg.sender);
        if (entry.isRevealed()) revert AlreadyRevealed(id, round, msg.sender);
        if (!entry.seals(commitment)) revert CommitmentMismatch(id, round, msg.sender, commitment);
    }

    // -- what follows from how a job stands ---------------------------------------------------------------------

    function _ended(Phase phase) private pure returns (bool) {
        return phase >= Phase.Completed;
    }

    function _mayAggregateAt(Job storage job_, address node) private view returns (uint64) {
        Entry entry = job_.entries[job_.round][node];
        if (job_.phase != Phase.Aggregate || !entry.isRevealed()) return 0;
        uint32 rank = AggregatorDraw.rank(entry.index(), job_.draw, job_.reveals);
        uint32 window = job_.terms.aggregateWindow;
        return job_.deadline - window + AggregatorDraw.delay(rank, job_.reveals, window);
    }
}
