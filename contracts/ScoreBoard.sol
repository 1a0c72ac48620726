// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IScoreBoard} from "./interfaces/IScoreBoard.sol";
import {ITrainingJobs} from "./interfaces/ITrainingJobs.sol";
import {LapOrder} from "./libraries/LapOrder.sol";
import {Outliers} from "./libraries/Outliers.sol";
import {Panels} from "./libraries/Panels.sol";
import {Sortition} from "./libraries/Sortition.sol";
import {VectorTree} from "./libraries/VectorTree.sol";
import {Vote, WeightedMedian} from "./libraries/WeightedMedian.sol";
import {Panel} from "./types/Panel.sol";
import {Audit, PanelPhase, PanelState, Seat, Word} from "./types/Scores.sol";
import {Cid, JobId, JobTerms, Publication} from "./types/Types.sol";

/// @title Draws panels of evaluators, keeps their scores, and judges by the medians
/// @notice See interfaces/IScoreBoard.sol
contract ScoreBoard is IScoreBoard {
    using Panels for Panel;
    using Panels for uint16;

    /// @notice Whose stake is drawn from, and slashed.
    INodeRegistry public immutable registry;

    /// @notice The jobs whose rounds are scored here.
    ITrainingJobs public immutable jobs;

    mapping(JobId job => mapping(uint32 round => mapping(uint8 panel => Panel))) private _panels;
    mapping(JobId job => mapping(uint32 round => mapping(uint8 audit => Audit))) private _audits;
    mapping(JobId job => mapping(uint32 round => bool)) private _denounced;

    constructor(INodeRegistry registry_, ITrainingJobs jobs_) {
        registry = registry_;
        jobs = jobs_;
    }

    // -- scores ------------------------------------------------------------------------------------------------

    /// @inheritdoc IScoreBoard
    function draw(JobId job, uint32 round, uint8 panel_) external {
        Panel storage own = _panels[job][round][panel_];
        if (own.isDrawn()) revert AlreadyDrawn(job, round, panel_);
        (uint256 startedAt, uint48 drawBlock, JobTerms memory terms) = _clock(job, round, panel_);
        bool late = block.timestamp >= startedAt + terms.scoreWindow / 2;
        if (late || block.number <= drawBlock || blockhash(drawBlock) != 0) return _draw(job, round, panel_);
        // Good for centuries.
        own.drawBlock = uint40(block.number);
        emit DrawPostponed(job, round, panel_, uint48(block.number));
    }

    /// @inheritdoc IScoreBoard
    function commitScores(JobId job, uint32 round, uint8 panel_, uint8 seat_, bytes32 commitment) external {
        Panel storage own = _panels[job][round][panel_];
        if (!own.isDrawn()) _draw(job, round, panel_);
        if (own.phase() != PanelPhase.Commit) revert CommitOver(job, round, panel_);
        Seat storage place = _ownSeat(job, round, panel_, seat_);
        if (own.committed.has(seat_)) revert AlreadyDone(job, round, panel_, seat_);
        if (commitment == 0) revert EmptyCommitment();

        place.root = commitment;
        own.committed = own.committed.with(seat_);
        emit ScoresCommitted(job, round, panel_, seat_, place.evaluator);
        if (panel_ != 0) return;
        // The jobs contract calls nobody.
        // slither-disable-next-line reentrancy-no-eth
        uint32 index = jobs.seat(job, place.evaluator);
        if (index >= own.payees) own.payees = index + 1;
    }

    /// @inheritdoc IScoreBoard
    function revealScores(
        JobId job,
        uint32 round,
        uint8 panel_,
        uint8 seat_,
        bytes calldata vector,
        bytes32 salt
    ) external {
        Panel storage own = _panels[job][round][panel_];
        if (!own.isDrawn() || own.phase() != PanelPhase.Reveal) revert NotRevealing(job, round, panel_);
        Seat storage place = _ownSeat(job, round, panel_, seat_);
        if (!own.committed.has(seat_)) revert NothingCommitted(job, round, panel_, seat_);
        if (own.revealed.has(seat_)) revert AlreadyDone(job, round, panel_, seat_);
        uint256 length = own.subjects(panel_) * VectorTree.SCORE_BYTES;
        if (vector.length != length) revert WrongLength(job, round, panel_, vector.length, length);
        _checkCommitment(job, round, panel_, seat_, vector, salt);

        place.root = VectorTree.rootOf(vector);
        own.revealed = own.revealed.with(seat_);
        emit ScoresRevealed(job, round, panel_, seat_, place.evaluator, vector);
    }

    // -- offences ----------------------------------------------------------------------------------------------

    /// @inheritdoc IScoreBoard
    function punishSeat(JobId job, uint32 round, uint8 panel_, uint8 seat_) external {
        Panel storage own = _donePanel(job, round, panel_);
        if (seat_ >= own.seats || own.revealed.has(seat_)) revert NothingHidden(job, round, panel_, seat_);
        if (own.punished.has(seat_)) revert AlreadyDone(job, round, panel_, seat_);

        address evaluator = own.seatAt[seat_].evaluator;
        if (!own.committed.has(seat_) && _mayDecline(job, round, own, evaluator)) {
            revert SeatDeclined(job, round, panel_, seat_, evaluator);
        }

        own.punished = own.punished.with(seat_);
        emit ScoresWithheld(job, round, panel_, seat_, evaluator);
        _slash(job, evaluator, 1);
    }

    /// @inheritdoc IScoreBoard
    function penalize(
        JobId job,
        uint32 round,
        uint8 seat_,
        uint32 subject,
        address node,
        Word[] calldata words
    ) external {
        Panel storage own = _donePanel(job, round, 0);
        if (own.penalized.has(seat_)) revert AlreadyDone(job, round, 0, seat_);
        if (subject < own.contributions) _checkContributor(job, round, subject, node);
        else if (node != address(0)) revert NotContributor(job, round, subject, node);
        if (subject >= own.auditSubject(0)) revert NoSubject(job, round, 0, subject);
        (int64 middle, int64 upper) = _medians(job, round, 0, subject, node, words);
        int64 score = _scoreOf(job, round, seat_, subject, words);
        if (!Outliers.isOutlier(score, middle)) revert NoOutlier(job, round, seat_, subject, score, middle);
        if (!Outliers.isOutlier(score, upper)) revert NoOutlier(job, round, seat_, subject, score, upper);

        own.penalized = own.penalized.with(seat_);
        address evaluator = own.seatAt[seat_].evaluator;
        emit OutlierPenalized(job, round, seat_, evaluator, subject, score, middle);
        _slash(job, evaluator, 1);
    }

    /// @inheritdoc IScoreBoard
    function accuse(JobId job, uint32 round, uint8 audit_, address node, Word[] calldata words) external {
        Panel storage own = _donePanel(job, round, 0);
        Audit storage record = _audits[job][round][audit_];
        if (record.node != address(0)) revert AlreadyJudged(job, round, audit_);
        _checkContributor(job, round, auditedIndex(job, round, audit_), node);
        uint32 subject = own.auditSubject(audit_);
        (, int64 verdict) = _medians(job, round, 0, subject, node, words);
        if (verdict >= 0) revert NotFailed(job, round, subject, verdict);

        record.node = node;
        record.appealUntil = uint40(block.timestamp) + jobs.terms(job).challengeWindow;
        emit AuditFailed(job, round, node, audit_, record.appealUntil);
        jobs.ban(job, node);
    }

    /// @inheritdoc IScoreBoard
    function appeal(JobId job, uint32 round, uint8 audit_) external {
        Audit storage record = _audits[job][round][audit_];
        (address node, uint40 until) = (record.node, record.appealUntil);
        if (!_actsFor(node) || record.appealed || block.timestamp >= until) {
            revert MayNotAppeal(job, round, audit_, msg.sender, until);
        }
        record.appealed = true;
        Panel storage jury = _panels[job][round][audit_ + 1];
        jury.startedAt = uint40(block.timestamp);
        jury.drawBlock = uint40(block.number);
        emit Appealed(job, round, node, audit_);
    }

    /// @inheritdoc IScoreBoard
    function decide(JobId job, uint32 round, uint8 audit_, Word[] calldata words) external {
        Audit storage record = _audits[job][round][audit_];
        address node = record.node;
        if (node == address(0) || record.decided) revert NothingToDecide(job, round, audit_);
        bool upheld = true;
        if (record.appealed) {
            if (_phase(job, round, audit_ + 1) != PanelPhase.Done) revert NotDone(job, round, audit_ + 1);
            (, int64 verdict) = _medians(job, round, audit_ + 1, 0, node, words);
            upheld = verdict < 0;
        } else if (block.timestamp < record.appealUntil) {
            revert AppealOpen(job, round, audit_, record.appealUntil);
        }

        record.decided = true;
        emit AuditDecided(job, round, node, audit_, upheld);
        if (upheld) _slash(job, node, record.appealed ? 2 : 1);
        else jobs.unban(job, node);
    }

    /// @inheritdoc IScoreBoard
    function denounce(JobId job, uint32 round, address publisher, Word[] calldata words) external {
        Panel storage own = _donePanel(job, round, 0);
        if (_denounced[job][round]) revert AlreadyJudged(job, round, 0);
        _checkContributor(job, round, jobs.publication(job, round).publisherIndex, publisher);
        uint32 subject = own.modelSubject();
        (, int64 verdict) = _medians(job, round, 0, subject, publisher, words);
        if (verdict >= 0) revert NotFailed(job, round, subject, verdict);

        _denounced[job][round] = true;
        emit ModelDenounced(job, round, publisher);
        _slash(job, publisher, 1);
    }

    /// @inheritdoc IScoreBoard
    function openShard(JobId job, uint32 round, uint8 audit_, Cid boxes) external {
        uint32 index = auditedIndex(job, round, audit_);
        address node = msg.sender;
        // slither-disable-next-line unused-return
        (bool revealed, uint32 own, , ) = jobs.contribution(job, round, node);
        if (!revealed) {
            node = registry.principalOf(node);
            // slither-disable-next-line unused-return
            (revealed, own, , ) = jobs.contribution(job, round, node);
        }
        if (!revealed || own != index) revert NotContributor(job, round, index, node);
        emit ShardOpened(job, round, node, audit_, boxes);
    }

    // -- views -------------------------------------------------------------------------------------------------

    /// @inheritdoc IScoreBoard
    function panel(JobId job, uint32 round, uint8 panel_) external view returns (PanelState memory state) {
        Panel storage own = _panels[job][round][panel_];
        JobTerms memory terms = jobs.terms(job);
        Publication memory publication = jobs.publication(job, round);
        uint64 startedAt = panel_ == 0 ? publication.publishedAt : own.startedAt;
        if (startedAt == 0) return state;

        uint32 window = terms.evaluators == 0 ? 0 : terms.scoreWindow;
        state.state = own.phase(startedAt, window);
        state.commitUntil = startedAt + window;
        state.revealUntil = startedAt + 2 * uint64(window);
        state.seed = own.seed;
        state.seats = own.seats;
        state.committed = own.committed.count();
        state.revealed = own.revealed.count();
        if (panel_ != 0) {
            state.subjects = 1;
            return state;
        }
        uint32 contributions = publication.contributions;
        state.contributions = contributions;
        state.datasets = own.datasets;
        state.audits = contributions < terms.audits ? uint8(contributions) : terms.audits;
        state.subjects = contributions + state.datasets + state.audits + 1;
    }

    /// @inheritdoc IScoreBoard
    function seats(
        JobId job,
        uint32 round,
        uint8 panel_
    ) external view returns (address[] memory evaluators, uint96[] memory weights) {
        Panel storage own = _panels[job][round][panel_];
        if (!own.isDrawn()) {
            (, uint48 drawBlock, JobTerms memory terms) = _clock(job, round, panel_);
            if (block.number <= drawBlock || blockhash(drawBlock) == 0) return (evaluators, weights);
            bytes32 seed = Sortition.seedOf(blockhash(drawBlock), job, round, panel_);
            return Sortition.draw(registry, seed, drawBlock, terms.evaluators);
        }
        uint256 count = own.seats;
        evaluators = new address[](count);
        weights = new uint96[](count);
        for (uint256 i = 0; i < count; ++i) {
            evaluators[i] = own.seatAt[i].evaluator;
            weights[i] = own.seatAt[i].weight;
        }
    }

    /// @inheritdoc IScoreBoard
    function seat(JobId job, uint32 round, uint8 panel_, uint8 seat_) external view returns (Seat memory) {
        return _panels[job][round][panel_].seatAt[seat_];
    }

    /// @inheritdoc IScoreBoard
    function seatOf(
        JobId job,
        uint32 round,
        uint8 panel_,
        address account
    ) external view returns (bool, uint8 seat_, bool revealed) {
        Panel storage own = _panels[job][round][panel_];
        uint256 count = own.seats;
        for (; seat_ < count; ++seat_) {
            if (own.seatAt[seat_].evaluator == account) return (true, seat_, own.revealed.has(seat_));
        }
        return (false, 0, false);
    }

    /// @inheritdoc IScoreBoard
    function audit(JobId job, uint32 round, uint8 audit_) external view returns (Audit memory) {
        return _audits[job][round][audit_];
    }

    /// @inheritdoc IScoreBoard
    function done(JobId job, uint32 round) external view returns (bool) {
        return _phase(job, round, 0) == PanelPhase.Done;
    }

    /// @inheritdoc IScoreBoard
    function outcome(
        JobId job,
        uint32 round,
        uint40 publishedAt,
        uint32 window
    ) external view returns (bool, uint32) {
        Panel storage own = _panels[job][round][0];
        return (own.phase(publishedAt, window) == PanelPhase.Done, own.payees);
    }

    /// @inheritdoc IScoreBoard
    function median(
        JobId job,
        uint32 round,
        uint8 panel_,
        uint32 subject,
        address excluded,
        Word[] calldata words
    ) external view returns (int64 lower) {
        (lower, ) = _medians(job, round, panel_, subject, excluded, words);
    }

    /// @inheritdoc IScoreBoard
    function auditedIndex(JobId job, uint32 round, uint8 audit_) public view returns (uint32) {
        Panel storage own = _panels[job][round][0];
        if (!own.isDrawn()) revert NotDrawn(job, round, 0);
        if (audit_ >= own.audits) revert NoSubject(job, round, 0, own.auditSubject(audit_));
        return LapOrder.indexAt(keccak256(abi.encode(own.seed, "audit")), audit_, own.contributions);
    }

    // -- the draw ----------------------------------------------------------------------------------------------

    function _draw(JobId job, uint32 round, uint8 panel_) private {
        (uint256 startedAt, uint48 drawBlock, JobTerms memory terms) = _clock(job, round, panel_);
        if (block.timestamp >= startedAt + terms.scoreWindow) revert NotDrawn(job, round, panel_);
        if (block.number <= drawBlock) revert DrawBlockAhead(job, round, panel_, drawBlock);
        bytes32 hash = blockhash(drawBlock);
        if (hash == 0) revert DrawBlockTooOld(job, round, panel_, drawBlock);

        Panel storage own = _panels[job][round][panel_];
        bytes32 seed = Sortition.seedOf(hash, job, round, panel_);
        own.seed = seed;
        own.startedAt = uint40(startedAt);
        // At most 30 days.
        own.window = uint24(terms.scoreWindow);
        if (panel_ == 0) _count(job, round, terms, own);
        (address[] memory evaluators, uint96[] memory weights) = Sortition.draw(
            registry,
            seed,
            drawBlock,
            terms.evaluators
        );
        own.seats = uint8(evaluators.length);
        for (uint256 i = 0; i < evaluators.length; ++i) own.seatAt[i] = Seat(evaluators[i], weights[i], 0);
        emit PanelDrawn(job, round, panel_, evaluators, weights, own.subjects(panel_));
    }

    /// @dev From now on it is settled what the round's panel judges.
    function _count(JobId job, uint32 round, JobTerms memory terms, Panel storage own) private {
        uint32 contributions = jobs.publication(job, round).contributions;
        own.contributions = contributions;
        // At most 64.
        own.datasets = uint8(jobs.datasetCount(job));
        own.audits = contributions < terms.audits ? uint8(contributions) : terms.audits;
    }

    /// @dev When the panel's clock started, and the block that it is drawn from.
    function _clock(
        JobId job,
        uint32 round,
        uint8 panel_
    ) private view returns (uint256 startedAt, uint48 drawBlock, JobTerms memory terms) {
        Panel storage own = _panels[job][round][panel_];
        terms = jobs.terms(job);
        (startedAt, drawBlock) = (own.startedAt, own.drawBlock);
        if (panel_ == 0) {
            Publication memory publication = jobs.publication(job, round);
            startedAt = publication.publishedAt;
            if (drawBlock == 0) drawBlock = publication.sealBlock;
        }
        if (startedAt == 0 || terms.evaluators == 0) revert NoPanel(job, round, panel_);
    }

    /// @dev Takes so many bonds, or what is left of the stake, and rewards the sender.
    function _slash(JobId job, address node, uint128 bonds) private {
        // slither-disable-next-line unused-return
        registry.slash(node, bonds * jobs.terms(job).bond, msg.sender);
    }

    // -- checks ------------------------------------------------------------------------------------------------

    function _phase(JobId job, uint32 round, uint8 panel_) private view returns (PanelPhase) {
        Panel storage own = _panels[job][round][panel_];
        if (own.isDrawn()) return own.phase();
        JobTerms memory terms = jobs.terms(job);
        uint256 startedAt = panel_ == 0 ? jobs.publication(job, round).publishedAt : own.startedAt;
        if (startedAt == 0) return PanelPhase.None;
        return terms.evaluators == 0 ? PanelPhase.Done : own.phase(startedAt, terms.scoreWindow);
    }

    /// @dev The lower and the upper median of what those say who may judge. Alike unless half of their stake says one thing and
    /// half another.
    function _medians(
        JobId job,
        uint32 round,
        uint8 panel_,
        uint32 subject,
        address excluded,
        Word[] calldata words
    ) private view returns (int64 lower, int64 upper) {
        Panel storage own = _panels[job][round][panel_];
        uint32 subjects = own.subjects(panel_);
        if (own.isDrawn() && subject >= subjects) revert NoSubject(job, round, panel_, subject);
        Vote[] memory votes = new Vote[](words.length);
        uint256 count = 0;
        for (uint8 seat_ = 0; seat_ < own.seats; ++seat_) {
            if (!own.revealed.has(seat_)) continue;
            Seat storage place = own.seatAt[seat_];
            if (place.evaluator == excluded) continue;
            if (count < words.length) {
                Word calldata word = words[count];
                if (word.seat != seat_ || !VectorTree.holds(place.root, subjects, subject, word.word, word.proof)) {
                    revert InvalidWord(job, round, panel_, seat_);
                }
                votes[count] = WeightedMedian.vote(VectorTree.scoreIn(word.word, subject), seat_, place.weight);
            }
            ++count;
        }
        if (count != words.length) revert WordsMissing(job, round, panel_, words.length, count);
        return WeightedMedian.medians(votes, count);
    }

    /// @dev An evaluator that has committed has taken its seat.
    function _mayDecline(
        JobId job,
        uint32 round,
        Panel storage own,
        address evaluator
    ) private view returns (bool) {
        uint48 drawBlock = own.drawBlock;
        if (drawBlock == 0) drawBlock = jobs.publication(job, round).sealBlock;
        return registry.mayDecline(evaluator, drawBlock, own.window, jobs.terms(job).bond);
    }

    function _donePanel(JobId job, uint32 round, uint8 panel_) private view returns (Panel storage own) {
        own = _panels[job][round][panel_];
        if (!own.isDrawn()) revert NotDrawn(job, round, panel_);
        if (own.phase() != PanelPhase.Done) revert NotDone(job, round, panel_);
    }

    function _ownSeat(
        JobId job,
        uint32 round,
        uint8 panel_,
        uint8 seat_
    ) private view returns (Seat storage place) {
        place = _panels[job][round][panel_].seatAt[seat_];
        if (!_actsFor(place.evaluator)) revert NotYourSeat(job, round, panel_, seat_, msg.sender);
    }

    /// @dev True if the sender is the node, or its delegate.
    function _actsFor(address node) private view returns (bool) {
        return node != address(0) && (node == msg.sender || node == registry.principalOf(msg.sender));
    }

    function _checkCommitment(
        JobId job,
        uint32 round,
        uint8 panel_,
        uint8 seat_,
        bytes calldata vector,
        bytes32 salt
    ) private view {
        Seat storage place = _panels[job][round][panel_].seatAt[seat_];
        bytes32 computed = keccak256(
            abi.encode(job, round, panel_, place.evaluator, keccak256(vector), salt)
        );
        if (computed != place.root) revert ScoresMismatch(job, round, panel_, seat_, computed);
    }

    function _checkContributor(JobId job, uint32 round, uint32 index, address node) private view {
        // slither-disable-next-line unused-return
        (bool revealed, uint32 own, , ) = jobs.contribution(job, round, node);
        if (!revealed || own != index) revert NotContributor(job, round, index, node);
    }

    /// @dev The score of one of those whose words make the median.
    function _scoreOf(
        JobId job,
        uint32 round,
        uint8 seat_,
        uint32 subject,
        Word[] calldata words
    ) private pure returns (int64) {
        for (uint256 i = 0; i < words.length; ++i) {
            if (words[i].seat == seat_) return VectorTree.scoreIn(words[i].word, subject);
        }
        revert NotYourSeat(job, round, 0, seat_, address(0));
    }
}
