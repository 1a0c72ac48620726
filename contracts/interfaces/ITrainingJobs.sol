// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Cid, JobId, JobState, JobTerms, Kind, Mode, Payee, Phase, Publication} from "../types/Types.sol";

/// @title Jobs: escrow, rounds, and contributions by commit and reveal
/// @notice A job goes OPEN -> COMMIT -> REVEAL -> AGGREGATE, round after round. A phase takes what belongs to it
/// before its deadline; from the deadline on, anyone may end it with `advance`. It ends earlier once everybody
/// expected has delivered. A round without quorum or without a model is void: it costs nothing and does not count.
///
/// Members: with no target, who reveals is a member of the next round, and all others join again. With a target, who
/// has joined once stays a member, and that many commitments (or those of all members, if they are fewer) end COMMIT.
///
/// In mode Chained a round is a lap: in COMMIT the members hold a lease one after another, in an order drawn anew for
/// each lap, and `hop` takes the place of commit and reveal. Who misses its lease is no member until it joins again. A
/// hop that the next one builds on becomes the job's model at once, and stays it even if the lap is void in the end.
interface ITrainingJobs {
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

    /// @notice A commitment of 0 or 1 cannot be a hash of anything.
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

    /// @notice Opens a job; pulls rounds * roundBudget wei of VNX, which the caller must have approved.
    function createJob(JobTerms calldata terms) external returns (JobId job);

    /// @notice The same, with the approval (EIP-2612) in the same transaction.
    /// @dev If somebody else has used the permit already, the approval is there all the same.
    function createJobWithPermit(
        JobTerms calldata terms,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external returns (JobId job);

    /// @notice Takes part: in OPEN in the current round, else from the next one on.
    function join(JobId job) external;

    /// @notice The same, and declares what the node trains on: once for a job, it holds for later joins too.
    /// @param datasets assets that the node may use, at most 8, and 64 in the job
    /// @param shard commitment to the rows; must not be 0 in a job with audits
    function joinWith(JobId job, uint64[] calldata datasets, bytes32 shard) external;

    /// @notice Binds the caller to a contribution to the current round.
    /// @param commitment keccak256(abi.encode(uint64 job, uint32 round, bytes32 parent, bytes32 update, uint8 kind,
    /// uint64 samples, address node, bytes32 salt)), with what `reveal` is to show
    function commit(JobId job, uint32 round, bytes32 commitment) external;

    /// @notice Shows what the caller committed to, and so makes it a member of the next round.
    /// @param parent the model that the work started from: the job's current one, or in mode Async an earlier one
    function reveal(
        JobId job,
        uint32 round,
        Kind kind,
        Cid update,
        Cid parent,
        uint64 samples,
        bytes32 salt
    ) external;

    /// @notice Chained: passes the model on, while the lease is the caller's. The lap then goes to the next member.
    /// @param accept true if `model` was made from the lap's newest hop, which so becomes the job's model; false if it
    /// was made from the last accepted one
    function hop(JobId job, uint32 round, bool accept, Cid model, uint64 samples) external;

    /// @notice Ends the round with a model; a lap with its last hop's, or with the last accepted one. The drawn
    /// contributor may from the start of AGGREGATE, the next ones in line a quarter of the window later each.
    function publishModel(JobId job, uint32 round, Cid model) external;

    /// @notice Ends a phase whose deadline has come. Anyone may.
    function advance(JobId job) external;

    /// @notice Ends the caller's job: at once while its first round is OPEN, else with the current round.
    function cancel(JobId job) external;

    /// @notice Pays back to the requester what no round earned or can still earn. Anyone may, again and again.
    function refund(JobId job) external returns (uint256 amount);

    /// @notice Publishes the key of the next validation shard. Anyone who has it may, once COMMIT of the round that is
    /// to be scored on it has closed. Keys are a chain: each is the preimage of the one before.
    function unseal(JobId job, uint32 position, bytes32 key) external;

    /// @notice Takes the bond of a node that committed and did not reveal while it could. Anyone may, once.
    function punish(JobId job, uint32 round, address node) external;

    /// @notice Ends the membership of a node that has less stake than the job asks for. Anyone may.
    function expel(JobId job, address node) external;

    /// @notice Gives an evaluator a number among the payees, unless it has one. The score board alone may call.
    function seat(JobId job, address account) external returns (uint32 index);

    /// @notice Shuts a node that failed an audit out of the job. The score board alone may call.
    function ban(JobId job, address node) external;

    /// @notice Takes a ban back; once no other stands, the node may join again. The score board alone may call.
    function unban(JobId job, address node) external;

    /// @notice Hands a settled round's money to the distributor, which alone may call.
    /// @param total the job's cumulative rewards up to and including this round, in wei
    /// @return amount what is handed over: total minus what earlier rounds paid
    /// @return claimableAt Unix seconds when the challenge window ends
    /// @return payees the least number of payees that the settlement has to have
    function release(
        JobId job,
        uint32 round,
        uint128 total
    ) external returns (uint112 amount, uint40 claimableAt, uint32 payees);

    /// @notice Takes the money of an overturned settlement, and of those after it, back. The distributor alone may call.
    /// @param previousTotal what the rounds before paid
    /// @return amount what is taken back
    function retake(JobId job, uint32 round, uint128 previousTotal) external returns (uint112 amount);

    /// @notice How many jobs there are; they are numbered from 1.
    function jobCount() external view returns (uint64);

    /// @notice A job as it stands; phase None if unknown.
    function job(JobId id) external view returns (JobState memory);

    /// @notice The round a node may commit in, 0 if it never joined.
    function activeRound(JobId job, address node) external view returns (uint32);

    /// @notice True once a node's commitment, or what it revealed, is recorded for the round.
    function committed(JobId job, uint32 round, address node) external view returns (bool);

    /// @notice True once a node revealed its contribution to the round.
    function revealed(JobId job, uint32 round, address node) external view returns (bool);

    /// @notice Unix seconds from which the node may publish the current round's model, 0 if never.
    function mayAggregateAt(JobId job, address node) external view returns (uint64);

    /// @notice Chained: whose hop is next, at which position of the lap, and until when; all zero if no lap runs.
    function lease(JobId job) external view returns (address node, uint32 position, uint64 until);

    /// @notice A job's terms; all zero if unknown.
    function terms(JobId job) external view returns (JobTerms memory);

    /// @notice What a node revealed in a round; `index` counts the round's contributions from 0.
    function contribution(
        JobId job,
        uint32 round,
        address node
    ) external view returns (bool revealed, uint32 index, Kind kind, uint64 samples);

    /// @notice A round that ended with a model; all zero if it did not.
    function publication(JobId job, uint32 round) external view returns (Publication memory);

    /// @notice The published round at a position, which counts from 0; all zero beyond the last.
    function publicationAt(JobId job, uint32 position) external view returns (Publication memory);

    /// @notice The position of a round among the published ones.
    function position(JobId job, uint32 round) external view returns (bool found, uint32 position);

    /// @notice Who or what can earn in the job; they are numbered from 0.
    function payeeCount(JobId job) external view returns (uint32);

    /// @notice The payee with this number; all zero if there is none.
    function payee(JobId job, uint32 index) external view returns (Payee memory);

    /// @notice The number of an account among the payees.
    function payeeOf(JobId job, address account) external view returns (bool found, uint32 index);

    /// @notice The number of an asset among the payees.
    function payeeOfAsset(JobId job, uint64 asset) external view returns (bool found, uint32 index);

    /// @notice How many data sets the job's members have declared.
    function datasetCount(JobId job) external view returns (uint32);

    /// @notice The data set at a place, which counts from 0; 0 beyond the last.
    function dataset(JobId job, uint32 place) external view returns (uint64 asset);

    /// @notice The place of an asset among the job's data sets.
    function datasetPlace(JobId job, uint64 asset) external view returns (bool found, uint32 place);

    /// @notice How many shards are unsealed, and the last key: the seal's anchor before the first one.
    function unsealed(JobId job) external view returns (uint32 count, bytes32 key);

    /// @notice Wei of the job's escrow that `refund` would pay back now.
    function refundable(JobId job) external view returns (uint256);

    /// @notice The contract that settles rounds, pays rewards, and holds the escrow.
    function distributor() external view returns (address);

    /// @notice The contract that scores rounds.
    function board() external view returns (address);
}
