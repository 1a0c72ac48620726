// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {RewardDistributor} from "./RewardDistributor.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {ITrainingJobs} from "./interfaces/ITrainingJobs.sol";
import {AggregatorDraw} from "./libraries/AggregatorDraw.sol";
import {Entries, Entry} from "./libraries/Entries.sol";
import {Publications} from "./libraries/Publications.sol";
import {Terms} from "./libraries/Terms.sol";
import {Cid, JobId, JobState, JobTerms, Kind, Phase, Publication} from "./types/Types.sol";

/// @title Holds the escrow of jobs and runs their rounds
/// @notice See interfaces/ITrainingJobs.sol
contract TrainingJobs is ITrainingJobs {
    using SafeERC20 for IERC20;
    using Publications for mapping(uint256 => Publication);

    /// @dev Ordered so that a commit writes one slot of it, and so does a reveal.
    struct Job {
        // Slot 0: whatever the course of a round changes.
        Phase phase;
        uint8 voids; // in a row
        bool cancelRequested;
        uint32 round;
        uint32 completed;
        uint40 deadline;
        uint32 expected;
        uint32 commits;
        uint32 reveals;
        uint32 nextExpected; // members of the next round so far
        // Slot 1
        address requester;
        uint32 draw;
        // Slot 2
        Cid model;
        // Slot 3: of the escrow, what is still here and what rounds earned; the rest was refunded.
        uint112 held;
        uint112 spent;
        uint32 settled; // published rounds that are settled or were passed over
        // Slots 4 to 7
        JobTerms terms;
        mapping(uint256 position => Publication) published;
        mapping(address node => uint32) activeRound;
        mapping(uint32 round => mapping(address node => Entry)) entries;
    }

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
        if (active > round || (active == round && (phase == Phase.Open || phase == Phase.Commit))) {
            revert AlreadyJoined(id, msg.sender, active);
        }
        uint32 target = phase == Phase.Open ? round : round + 1;
        job_.activeRound[msg.sender] = target;
        emit NodeJoined(id, msg.sender, target);

        if (phase != Phase.Open) {
            ++job_.nextExpected;
        } else if (++job_.expected >= job_.terms.minNodes) {
            _openCommit(id, job_);
        }
    }

    /// @inheritdoc ITrainingJobs
    function commit(JobId id, uint32 round, bytes32 commitment) external {
        Job storage job_ = _inTime(id, round, Phase.Commit);
        if (job_.activeRound[msg.sender] != round) revert NotActive(id, round, msg.sender);
        if (!job_.entries[round][msg.sender].isEmpty()) revert AlreadyCommitted(id, round, msg.sender);
        Entry entry = Entries.seal(commitment);
        if (entry.isEmpty()) revert InvalidCommitment(commitment);

        job_.entries[round][msg.sender] = entry;
        emit ContributionCommitted(id, round, msg.sender, commitment);
        if (++job_.commits == job_.expected) _enter(id, job_, Phase.Reveal, job_.terms.revealWindow);
    }

    /// @inheritdoc ITrainingJobs
    function reveal(JobId id, uint32 round, Kind kind, Cid update, uint64 samples, bytes32 salt) external {
        Job storage job_ = _inTime(id, round, Phase.Reveal);
        Cid parent = job_.model;
        _checkReveal(id, job_, round, Entries.hash(id, round, parent, update, kind, samples, msg.sender, salt));

        uint32 index = job_.reveals;
        job_.reveals = index + 1;
        job_.entries[round][msg.sender] = Entries.open(kind, index, samples);
        // It may have joined the next round already, for fear of missing this phase.
        if (job_.activeRound[msg.sender] == round) {
            job_.activeRound[msg.sender] = round + 1;
            ++job_.nextExpected;
        }
        emit ContributionRevealed(id, round, msg.sender, kind, index, update, parent, samples);
        if (index + 1 == job_.commits) _openAggregate(id, job_);
    }

    /// @inheritdoc ITrainingJobs
    function publishModel(JobId id, uint32 round, Cid model) external {
        Job storage job_ = _inTime(id, round, Phase.Aggregate);
        uint64 from = _mayAggregateAt(job_, msg.sender);
        if (from == 0) revert NotAggregator(id, round, msg.sender);
        if (block.timestamp < from) revert NotYourTurn(id, round, msg.sender, from);

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
        amount = _refundable(job_);
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
        uint32 position = _checkSettlement(id, job_, round, settler);
        amount = _checkTotal(id, job_, total);

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
    function publication(JobId id, uint32 round) external view returns (Publication memory found) {
        Job storage job_ = _jobs[id];
        (bool exists, uint32 position) = job_.published.find(job_.completed, round);
        if (exists) found = job_.published[position];
    }

    /// @inheritdoc ITrainingJobs
    function refundable(JobId id) external view returns (uint256) {
        Job storage job_ = _jobs[id];
        return _ended(job_.phase) ? _refundable(job_) : 0;
    }

    // -- the course of a round ---------------------------------------------------------------------------------

    function _enter(JobId id, Job storage job_, Phase phase, uint32 window) private {
        uint40 deadline = uint40(block.timestamp) + window;
        job_.phase = phase;
        job_.deadline = deadline;
        emit PhaseChanged(id, job_.round, phase, deadline);
    }

    function _openCommit(JobId id, Job storage job_) private {
        _enter(id, job_, Phase.Commit, job_.terms.commitWindow);
        emit RoundOpened(id, job_.round, job_.model, job_.expected, job_.deadline);
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
        job_.expected = job_.nextExpected;
        job_.nextExpected = 0;
        job_.commits = 0;
        job_.reveals = 0;
    }

    function _void(JobId id, Job storage job_) private {
        emit RoundVoided(id, job_.round, job_.phase);
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

    /// @dev Returns the round's position among the published ones.
    function _checkSettlement(
        JobId id,
        Job storage job_,
        uint32 round,
        address settler
    ) private view returns (uint32 position) {
        bool found;
        (found, position) = job_.published.find(job_.completed, round);
        if (!found) revert RoundNotPublished(id, round);
        uint32 settled = job_.settled;
        if (position < settled) revert RoundPassed(id, round, job_.published[settled - 1].round);
        uint32 window = job_.terms.settleWindow;
        if (position > settled) {
            // Times rise: if the round just before is past its window, all earlier ones are.
            Publication storage previous = job_.published[position - 1];
            uint64 until = previous.publishedAt + window;
            if (block.timestamp < until) revert EarlierRoundOpen(id, round, previous.round, until);
        }
        _checkSettler(id, job_, round, settler, job_.published[position], window);
    }

    function _checkSettler(
        JobId id,
        Job storage job_,
        uint32 round,
        address settler,
        Publication memory own,
        uint32 window
    ) private view {
        uint64 until = own.publishedAt + window;
        if (block.timestamp >= until) revert SettleWindowPassed(id, round, until);
        if (settler == own.publisher) return;
        uint64 othersFrom = own.publishedAt + window / 2;
        if (block.timestamp < othersFrom || !job_.entries[round][settler].isRevealed()) {
            revert NotSettler(id, round, settler, othersFrom);
        }
    }

    /// @dev Returns what `total` adds to earlier settlements.
    function _checkTotal(JobId id, Job storage job_, uint128 total) private view returns (uint128) {
        uint112 spent = job_.spent;
        uint256 most = uint256(spent) + job_.terms.roundBudget;
        if (total < spent || total > most) revert TotalOutOfRange(id, total, spent, most);
        return total - spent;
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

    /// @dev What is held, but for the budget of each published round that may still be settled.
    function _refundable(Job storage job_) private view returns (uint256) {
        uint32 count = job_.completed;
        uint256 window = job_.terms.settleWindow;
        uint256 time = block.timestamp > window ? block.timestamp - window : 0;
        uint256 open = count - job_.published.firstAfter(job_.settled, count, time);
        return job_.held - open * job_.terms.roundBudget;
    }
}
