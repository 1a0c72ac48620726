// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {JobStore} from "./JobStore.sol";
import {IAssetRegistry} from "./interfaces/IAssetRegistry.sol";
import {IJobDesk} from "./interfaces/IJobDesk.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IRewardDistributor} from "./interfaces/IRewardDistributor.sol";
import {Entries, Entry} from "./libraries/Entries.sol";
import {LapBook, Laps} from "./libraries/Laps.sol";
import {PayeeBook, Payees} from "./libraries/Payees.sol";
import {Publications} from "./libraries/Publications.sol";
import {Settling} from "./libraries/Settling.sol";
import {Terms} from "./libraries/Terms.sol";
import {AssetKind} from "./types/Assets.sol";
import {Job, Member} from "./types/Job.sol";
import {JobId, JobTerms, Kind, Mode, Payee, Phase, Publication} from "./types/Types.sol";

/// @title The other half of TrainingJobs: jobs and their members, from the first promise to the last refund
/// @notice See interfaces/ITrainingJobs.sol. It runs in the place of TrainingJobs, and keeps nothing of its own.
contract JobDesk is JobStore, IJobDesk {
    using SafeERC20 for IERC20;
    using Laps for LapBook;
    using Payees for PayeeBook;
    using Publications for mapping(uint256 => Publication);
    using Settling for Job;

    /// @notice Data sets that a node may declare.
    uint256 public constant MAX_NODE_DATASETS = 8;

    /// @notice Data sets of a job.
    uint256 public constant MAX_DATASETS = 64;

    /// @dev The round of members that are banned.
    uint32 private constant BANNED = type(uint32).max;

    address private immutable _self = address(this);

    constructor(
        IERC20 token_,
        INodeRegistry registry_,
        IAssetRegistry assets_,
        address board_,
        address distributor_
    ) JobStore(token_, registry_, assets_, board_, distributor_) {}

    /// @inheritdoc IJobDesk
    function createJob(JobTerms calldata terms_) external returns (JobId) {
        return _create(terms_);
    }

    /// @inheritdoc IJobDesk
    function createJobWithPermit(
        JobTerms calldata terms_,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external returns (JobId) {
        uint256 escrow = uint256(terms_.rounds) * terms_.roundBudget;
        // A permit that somebody else was quicker to use has done its work; any other leaves no allowance to pull by.
        try IERC20Permit(address(token)).permit(msg.sender, address(this), escrow, deadline, v, r, s) {} catch {}
        return _create(terms_);
    }

    /// @inheritdoc IJobDesk
    function join(JobId id) external {
        Job storage job_ = _running(id);
        address node = _actor(job_);
        if (job_.terms.audits != 0 && !job_.members[node].declared) revert ShardMissing(id, node);
        _join(id, job_, node);
    }

    /// @inheritdoc IJobDesk
    function joinWith(JobId id, uint64[] calldata datasets, bytes32 shard) external {
        Job storage job_ = _running(id);
        address node = _actor(job_);
        Member storage member = job_.members[node];
        if (member.declared) revert AlreadyDeclared(id, node);
        if (shard == 0 && job_.terms.audits != 0) revert ShardMissing(id, node);
        member.declared = true;
        if (shard != 0) emit ShardCommitted(id, node, shard);
        _join(id, job_, node);
        _declare(id, job_, node, datasets);
    }

    /// @inheritdoc IJobDesk
    function cancel(JobId id) external {
        Job storage job_ = _running(id);
        if (msg.sender != job_.requester) revert NotRequester(id, msg.sender);
        if (job_.cancelRequested) revert CancelAlreadyRequested(id);

        job_.cancelRequested = true;
        emit JobCancelRequested(id);
        if (job_.phase == Phase.Open && job_.round == 1) _end(id, job_, Phase.Cancelled);
    }

    /// @inheritdoc IJobDesk
    function refund(JobId id) external returns (uint256 amount) {
        Job storage job_ = _known(id);
        if (!_ended(job_.phase)) revert WrongPhase(id, job_.phase);
        amount = refundable(id);
        if (amount == 0) revert NothingToRefund(id);

        // At most `held`, which has 112 bits.
        job_.held -= uint112(amount);
        emit Refunded(id, job_.requester, amount);

        IRewardDistributor(distributor).pay(job_.requester, amount);
    }

    /// @inheritdoc IJobDesk
    function unseal(JobId id, uint32 position_, bytes32 key) external {
        Job storage job_ = _known(id);
        uint32 next = job_.unsealed;
        uint32 completed = job_.completed;
        bool closed = job_.phase == Phase.Reveal || job_.phase == Phase.Aggregate;
        if (position_ != next || position_ > completed || (position_ == completed && !closed)) {
            revert ShardNotDue(id, position_, next);
        }
        if (keccak256(abi.encode(key)) != job_.key) revert WrongKey(id, position_, key);

        job_.unsealed = next + 1;
        job_.key = key;
        emit ShardUnsealed(id, position_, key);
    }

    /// @inheritdoc IJobDesk
    function punish(JobId id, uint32 round, address node) external {
        Job storage job_ = _known(id);
        bool over = round < job_.round || (round == job_.round && job_.phase >= Phase.Aggregate);
        if (!over || job_.unrevealed[round] || !job_.entries[round][node].isSealed()) {
            revert NothingWithheld(id, round, node);
        }
        job_.entries[round][node] = Entries.PUNISHED;
        emit RevealWithheld(id, round, node);
        // slither-disable-next-line unused-return
        registry.slash(node, job_.terms.bond, msg.sender);
    }

    /// @inheritdoc IJobDesk
    function expel(JobId id, address node) external {
        Job storage job_ = _known(id);
        Member storage member = job_.members[node];
        if (member.bans != 0) revert Banned(id, node);
        if (member.activeRound == 0) revert NotActive(id, job_.round, node);
        (uint256 stake, uint96 required) = (registry.stakeOf(node), job_.terms.requiredStake);
        if (registry.isBonded(node) && stake >= required) revert StakeSuffices(node, stake, required);

        _leave(job_, member.activeRound);
        member.activeRound = 0;
        emit NodeExpelled(id, node);
    }

    /// @inheritdoc IJobDesk
    function seat(JobId id, address account) external returns (uint32) {
        if (msg.sender != board) revert NotBoard(msg.sender);
        Job storage job_ = _known(id);
        return job_.payees.add(id, account, job_.members[account]);
    }

    /// @inheritdoc IJobDesk
    function ban(JobId id, address node) external {
        if (msg.sender != board) revert NotBoard(msg.sender);
        Job storage job_ = _known(id);
        Member storage member = job_.members[node];
        if (++member.bans == 1) {
            _leave(job_, member.activeRound);
            member.activeRound = BANNED;
        }
        emit NodeBanned(id, node);
    }

    /// @inheritdoc IJobDesk
    function unban(JobId id, address node) external {
        if (msg.sender != board) revert NotBoard(msg.sender);
        Member storage member = _known(id).members[node];
        if (--member.bans != 0) return;
        member.activeRound = 0;
        emit NodeUnbanned(id, node);
    }

    /// @inheritdoc IJobDesk
    function terms(JobId id) external view returns (JobTerms memory) {
        return _jobs[id].terms;
    }

    /// @inheritdoc IJobDesk
    function contribution(
        JobId id,
        uint32 round,
        address node
    ) external view returns (bool, uint32 index, Kind kind, uint64 samples) {
        Entry entry = _jobs[id].entries[round][node];
        if (!entry.isRevealed()) return (false, 0, Kind.Update, 0);
        return (true, entry.index(), entry.kindOf(), entry.samplesOf());
    }

    /// @inheritdoc IJobDesk
    function publication(JobId id, uint32 round) external view returns (Publication memory found) {
        Job storage job_ = _jobs[id];
        (bool exists, uint32 own) = job_.published.find(job_.completed, round);
        if (exists) found = job_.published[own];
    }

    /// @inheritdoc IJobDesk
    function publicationAt(JobId id, uint32 position_) external view returns (Publication memory) {
        return _jobs[id].published[position_];
    }

    /// @inheritdoc IJobDesk
    function position(JobId id, uint32 round) external view returns (bool, uint32) {
        return _jobs[id].published.find(_jobs[id].completed, round);
    }

    /// @inheritdoc IJobDesk
    function payeeCount(JobId id) external view returns (uint32) {
        return _jobs[id].payees.count;
    }

    /// @inheritdoc IJobDesk
    function payee(JobId id, uint32 index) external view returns (Payee memory) {
        return _jobs[id].payees.payees[index];
    }

    /// @inheritdoc IJobDesk
    function payeeOf(JobId id, address account) external view returns (bool, uint32) {
        return _fromOne(_jobs[id].members[account].payee);
    }

    /// @inheritdoc IJobDesk
    function payeeOfAsset(JobId id, uint64 asset) external view returns (bool, uint32) {
        return _fromOne(_jobs[id].payees.numberOf[asset]);
    }

    /// @inheritdoc IJobDesk
    function datasetCount(JobId id) external view returns (uint32) {
        return _jobs[id].payees.datasets;
    }

    /// @inheritdoc IJobDesk
    function dataset(JobId id, uint32 place) external view returns (uint64) {
        return _jobs[id].payees.datasetAt[place];
    }

    /// @inheritdoc IJobDesk
    function datasetPlace(JobId id, uint64 asset) external view returns (bool, uint32) {
        return _fromOne(_jobs[id].payees.placeOf[asset]);
    }

    /// @inheritdoc IJobDesk
    function unsealed(JobId id) external view returns (uint32, bytes32) {
        return (_jobs[id].unsealed, _jobs[id].key);
    }

    /// @inheritdoc IJobDesk
    function refundable(JobId id) public view returns (uint256) {
        Job storage job_ = _jobs[id];
        // What a settlement left may go to another one, until the settlement is final.
        if (!_ended(job_.phase) || block.timestamp < IRewardDistributor(distributor).finalAt(id)) return 0;
        return job_.refundable();
    }

    // -- members -----------------------------------------------------------------------------------------------

    function _create(JobTerms calldata terms_) private returns (JobId id) {
        if (address(this) == _self) revert NotByItself();
        uint112 escrow = Terms.check(terms_, registry, assets);
        id = JobId.wrap(++jobCount);
        Job storage job_ = _jobs[id];
        job_.requester = msg.sender;
        job_.model = terms_.model;
        job_.held = escrow;
        job_.terms = terms_;
        job_.key = terms_.sealAnchor;
        job_.round = 1;
        emit JobCreated(id, msg.sender, terms_.spec, terms_);
        if (terms_.modelAsset != 0) job_.payees.add(id, terms_.modelAsset);
        if (terms_.algorithmAsset != 0) job_.payees.add(id, terms_.algorithmAsset);
        _enter(id, job_, Phase.Open, terms_.openWindow);

        IRewardDistributor(distributor).enroll(id);
        token.safeTransferFrom(msg.sender, distributor, escrow);
    }

    function _join(JobId id, Job storage job_, address node) private {
        Member storage member = job_.members[node];
        if (member.bans != 0) revert Banned(id, node);
        Phase phase = job_.phase;
        if (phase == Phase.Open) _checkInTime(id, job_);
        _checkStake(job_, node);

        uint32 round = job_.round;
        uint32 active = member.activeRound;
        // Whoever can still commit in this round has nothing to join.
        bool inTime = active == round && (phase == Phase.Open || phase == Phase.Commit);
        if (active > round || inTime || (active != 0 && job_.terms.target != 0)) {
            revert AlreadyJoined(id, node, active);
        }
        uint32 first = phase == Phase.Open ? round : round + 1;
        member.activeRound = first;
        if (job_.terms.mode == Mode.Chained) job_.laps.add(first, node);
        // slither-disable-next-line unused-return
        job_.payees.add(id, node, member);
        emit NodeJoined(id, node, first);

        if (phase != Phase.Open) {
            ++job_.nextExpected;
        } else if (++job_.expected >= job_.terms.minNodes) {
            _openCommit(id, job_);
        }
    }

    function _declare(JobId id, Job storage job_, address node, uint64[] calldata datasets) private {
        if (datasets.length > MAX_NODE_DATASETS) revert TooManyDatasets(id, datasets.length, MAX_NODE_DATASETS);
        for (uint256 i = 0; i < datasets.length; ++i) {
            uint64 asset = datasets[i];
            Terms.checkUse(assets, asset, AssetKind.Dataset, job_.terms.dataBps);
            if (!assets.mayUse(node, asset)) revert MayNotUse(asset, node);
            emit DatasetDeclared(id, node, asset, job_.payees.addDataset(id, asset));
        }
        uint32 count = job_.payees.datasets;
        if (count > MAX_DATASETS) revert TooManyDatasets(id, count, MAX_DATASETS);
    }

    function _checkStake(Job storage job_, address node) private view {
        if (!registry.isBonded(node)) revert NodeNotBonded(node);
        uint256 stake = registry.stakeOf(node);
        uint96 required = job_.terms.requiredStake;
        if (stake < required) revert StakeTooLow(node, stake, required);
    }

    /// @dev A number that counts from 1, with 0 for none.
    function _fromOne(uint32 number) private pure returns (bool found, uint32 index) {
        if (number != 0) (found, index) = (true, number - 1);
    }
}
