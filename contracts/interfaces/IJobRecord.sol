// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Cid, JobId, JobTerms, Kind, Mode, Phase} from "../types/Types.sol";

/// @title What jobs report and refuse
interface IJobRecord {
    /// @notice A job was opened and its whole budget, rounds * roundBudget, put in escrow.
    event JobCreated(JobId indexed job, address indexed requester, Cid indexed spec, JobTerms terms);

    /// @notice A node takes part from `round` on.
    event NodeJoined(JobId indexed job, address indexed node, uint32 round);

    /// @notice A round takes commitments, for work on `parent`, from `expected` members.
    event RoundOpened(JobId indexed job, uint32 indexed round, Cid parent, uint32 expected, uint64 deadline);

    /// @notice The job entered OPEN, COMMIT, REVEAL or AGGREGATE; `deadline` in Unix seconds.
    event PhaseChanged(JobId indexed job, uint32 indexed round, Phase phase, uint64 deadline);

    /// @notice A node bound itself to a contribution without showing it.
    event ContributionCommitted(JobId indexed job, uint32 indexed round, address indexed node, bytes32 commitment);

    /// @notice A node showed its contribution. `index` counts reveals of the round from 0.
    event ContributionRevealed(
        JobId indexed job,
        uint32 indexed round,
        address indexed node,
        Kind kind,
        uint32 index,
        Cid update,
        Cid parent,
        uint64 samples
    );

    /// @notice Chained: the next hop of the lap is this node's, until `deadline` (Unix seconds).
    event HopLeased(
        JobId indexed job,
        uint32 indexed round,
        address indexed node,
        uint32 position,
        uint64 deadline
    );

    /// @notice A round ended with a model.
    event ModelPublished(JobId indexed job, uint32 indexed round, address indexed aggregator, Cid model);

    /// @notice A round ended in `phase` without a model.
    event RoundVoided(JobId indexed job, uint32 indexed round, Phase phase);

    /// @notice The job is COMPLETED, FAILED or CANCELLED.
    event JobEnded(JobId indexed job, Phase phase);

    /// @notice The requester wants the job to end with the current round.
    event JobCancelRequested(JobId indexed job);

    /// @notice Escrow that no round earned went back to the requester.
    event Refunded(JobId indexed job, address indexed to, uint256 amount);

    /// @notice From now on this account, or the owner of this asset, can earn in the job. `index` counts payees from 0.
    event PayeeAdded(JobId indexed job, uint32 index, address account, uint64 asset);

    /// @notice A node says that it trains on a data set; `place` counts those of the job from 0.
    event DatasetDeclared(JobId indexed job, address indexed node, uint64 asset, uint32 place);

    /// @notice A node bound itself to the rows that it trains on, which an audit may ask for.
    event ShardCommitted(JobId indexed job, address indexed node, bytes32 shard);

    /// @notice The key of a validation shard is public.
    event ShardUnsealed(JobId indexed job, uint32 indexed position, bytes32 key);

    /// @notice A node committed and did not reveal, and lost its bond for it.
    event RevealWithheld(JobId indexed job, uint32 indexed round, address indexed node);

    /// @notice A node failed an audit, and neither commits in this job nor joins it any more.
    event NodeBanned(JobId indexed job, address indexed node);

    /// @notice No failed audit of a node stands any more: it may join again.
    event NodeUnbanned(JobId indexed job, address indexed node);

    /// @notice A node without the stake that the job asks for is no member any more.
    event NodeExpelled(JobId indexed job, address indexed node);

    /// @notice A settlement was overturned: `round` and what was published later may be settled again.
    event RoundReopened(JobId indexed job, uint32 indexed round);

    /// @notice A term of the job lies outside [least, most].
    error TermOutOfRange(string term, uint256 value, uint256 least, uint256 most);

    /// @notice No job has this number.
    error JobUnknown(JobId job);

    /// @notice The call does not belong to the phase the job is in.
    error WrongPhase(JobId job, Phase phase);

    /// @notice The job is in another round.
    error WrongRound(JobId job, uint32 round, uint32 current);

    /// @notice The phase takes nothing more; `advance` ends it.
    error DeadlinePassed(JobId job, uint64 deadline);

    /// @notice The phase cannot be ended before its deadline.
    error DeadlineAhead(JobId job, uint64 deadline);

    /// @notice Not a registered node, or one that is unbonding.
    error NodeNotBonded(address node);

    /// @notice The job asks for a higher stake.
    error StakeTooLow(address node, uint256 stake, uint256 required);

    /// @notice The node already takes part in `round`.
    error AlreadyJoined(JobId job, address node, uint32 round);

    /// @notice The node does not take part in this round.
    error NotActive(JobId job, uint32 round, address node);

    /// @notice The node has committed in this round before.
    error AlreadyCommitted(JobId job, uint32 round, address node);

    /// @notice A commitment below 4 cannot be a hash of anything.
    error InvalidCommitment(bytes32 commitment);

    /// @notice The node has nothing to reveal in this round.
    error NotCommitted(JobId job, uint32 round, address node);

    /// @notice The node has revealed in this round before.
    error AlreadyRevealed(JobId job, uint32 round, address node);

    /// @notice What is revealed is not what was committed; `computed` is its commitment.
    error CommitmentMismatch(JobId job, uint32 round, address node, bytes32 computed);

    /// @notice Such work is made from the job's current model; only mode Async takes an earlier one.
    error ParentMismatch(JobId job, uint32 round, Cid parent);

    /// @notice The call does not belong to the job's mode.
    error WrongMode(JobId job, Mode mode);

    /// @notice The next hop is another node's.
    error NotYourLease(JobId job, uint32 round, address node);

    /// @notice A lap ends with its last hop's model, or with the one accepted before.
    error NotACandidate(JobId job, uint32 round, Cid model);

    /// @notice Only who revealed in the round may publish its model.
    error NotAggregator(JobId job, uint32 round, address node);

    /// @notice Others come first: this node may publish from `from` (Unix seconds) on.
    error NotYourTurn(JobId job, uint32 round, address node, uint64 from);

    /// @notice Only the requester may do this.
    error NotRequester(JobId job, address caller);

    /// @notice The requester asked for this before.
    error CancelAlreadyRequested(JobId job);

    /// @notice Only the reward distributor may do this.
    error NotDistributor(address caller);

    /// @notice Only the score board may do this.
    error NotBoard(address caller);

    /// @notice The asset does not exist, is of another kind, was revoked, or may not be trained with.
    error AssetUnusable(uint64 asset);

    /// @notice The node neither owns the data set nor was allowed its use by who does.
    error MayNotUse(uint64 asset, address node);

    /// @notice The asset asks for a larger share of the budget.
    error ShareTooLow(uint64 asset, uint16 bps, uint16 priceBps);

    /// @notice A node may declare `most` data sets, and so many of them a job may have.
    error TooManyDatasets(JobId job, uint256 count, uint256 most);

    /// @notice The node has declared what it trains on before.
    error AlreadyDeclared(JobId job, address node);

    /// @notice Contributions are audited: who joins must commit to its rows.
    error ShardMissing(JobId job, address node);

    /// @notice Not the key that the one before was the hash of.
    error WrongKey(JobId job, uint32 position, bytes32 key);

    /// @notice The shard is not due: that is once COMMIT of its round has closed; `next` is the first one still sealed.
    error ShardNotDue(JobId job, uint32 position, uint32 next);

    /// @notice The node is banned from the job.
    error Banned(JobId job, address node);

    /// @notice The node withheld nothing in this round, or was punished for it.
    error NothingWithheld(JobId job, uint32 round, address node);

    /// @notice The node has the stake that the job asks for.
    error StakeSuffices(address node, uint256 stake, uint256 required);

    /// @notice The round is still being scored.
    error StillScoring(JobId job, uint32 round);

    /// @notice Nothing of the escrow is free to go back.
    error NothingToRefund(JobId job);

    /// @notice The round did not end with a model (yet).
    error RoundNotPublished(JobId job, uint32 round);

    /// @notice The round, or a later one, was settled before.
    error RoundPassed(JobId job, uint32 round, uint32 lastSettled);

    /// @notice An earlier round may still be settled, until `until`, and goes first.
    error EarlierRoundOpen(JobId job, uint32 round, uint32 earlier, uint64 until);

    /// @notice The round could be settled until `until`.
    error SettleWindowPassed(JobId job, uint32 round, uint64 until);

    /// @notice The sum of cumulative rewards lies outside what earlier rounds paid plus one round's budget.
    error TotalOutOfRange(JobId job, uint256 total, uint256 least, uint256 most);

    /// @notice The desk works in the place of TrainingJobs only.
    error NotByItself();
}
