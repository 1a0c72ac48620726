// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Audit, PanelState, Seat, Word} from "../types/Scores.sol";
import {Cid, JobId} from "../types/Types.sol";

/// @title What contributions are worth, by panels of evaluators drawn for each round
/// @notice Panel 0 of a round scores it; panel 1 + k is the jury of an appeal against its k-th audit. A panel is drawn by
/// stake from the block in which the round's AGGREGATE opened, or the one of the appeal: nobody knows who judges whom
/// while there is a choice of what to reveal, or when. Its clock starts with the model's publication, or the appeal. Evaluators commit to their scores for a window, or until all have; then they reveal,
/// until two windows have passed or all who committed have revealed; then it is DONE. Nothing need be called for that.
///
/// A vector has one score for each subject, 8 bytes big-endian two's complement, in this order: the round's contributions
/// by index, the job's data sets by place (as many as there were at the draw), a verdict for each audit, one for the
/// model. An appeal has one subject, the audit. Scores are in 1e-9 of validation loss, REFUSED (the least int64) is for
/// what is no valid piece; verdicts are 1 for passed, -1 for failed, 0 for cannot tell. What counts is the median by stake. On
/// the word of half of the stake or less nobody loses anything: it takes the upper median too, the same from above.
interface IScoreBoard {
    /// @notice A panel was drawn; seat i is evaluators[i]'s. Its vectors have `subjects` scores.
    event PanelDrawn(
        JobId indexed job,
        uint32 indexed round,
        uint8 panel,
        address[] evaluators,
        uint96[] weights,
        uint32 subjects
    );

    /// @notice The draw's block is too old for its hash to be known: the panel is drawn from this block instead.
    event DrawPostponed(JobId indexed job, uint32 indexed round, uint8 panel, uint48 drawBlock);

    /// @notice An evaluator bound itself to its scores without showing them.
    event ScoresCommitted(
        JobId indexed job,
        uint32 indexed round,
        uint8 panel,
        uint8 seat,
        address indexed evaluator
    );

    /// @notice An evaluator showed its scores.
    event ScoresRevealed(
        JobId indexed job,
        uint32 indexed round,
        uint8 panel,
        uint8 seat,
        address indexed evaluator,
        bytes vector
    );

    /// @notice An evaluator did not show any scores, and lost its bond for it.
    event ScoresWithheld(
        JobId indexed job,
        uint32 indexed round,
        uint8 panel,
        uint8 seat,
        address indexed evaluator
    );

    /// @notice An evaluator's score was too far from both medians, and it lost its bond for it; `median` is the lower one.
    event OutlierPenalized(
        JobId indexed job,
        uint32 indexed round,
        uint8 seat,
        address indexed evaluator,
        uint32 subject,
        int64 score,
        int64 median
    );

    /// @notice A contribution failed its audit: the node is banned, and may appeal until `appealUntil` (Unix seconds).
    event AuditFailed(
        JobId indexed job,
        uint32 indexed round,
        address indexed node,
        uint8 audit,
        uint64 appealUntil
    );

    /// @notice A banned node asked for a jury.
    event Appealed(JobId indexed job, uint32 indexed round, address indexed node, uint8 audit);

    /// @notice A failed audit was upheld, and the node slashed, or it was not, and the node is as it was.
    event AuditDecided(
        JobId indexed job,
        uint32 indexed round,
        address indexed node,
        uint8 audit,
        bool upheld
    );

    /// @notice The published model is not what the round's pieces give, and its publisher lost its bond.
    event ModelDenounced(JobId indexed job, uint32 indexed round, address indexed publisher);

    /// @notice Where the rows of an audited node lie, sealed to each juror.
    event ShardOpened(
        JobId indexed job,
        uint32 indexed round,
        address indexed node,
        uint8 audit,
        Cid boxes
    );

    /// @notice Nothing to score: the round has no model, the job no evaluators, or the audit no appeal.
    error NoPanel(JobId job, uint32 round, uint8 panel);

    /// @notice The panel was not drawn while it could be.
    error NotDrawn(JobId job, uint32 round, uint8 panel);

    /// @notice The panel has been drawn.
    error AlreadyDrawn(JobId job, uint32 round, uint8 panel);

    /// @notice The panel takes no commitments any more.
    error CommitOver(JobId job, uint32 round, uint8 panel);

    /// @notice The panel takes no scores: not yet, or not any more.
    error NotRevealing(JobId job, uint32 round, uint8 panel);

    /// @notice The panel is still at work.
    error NotDone(JobId job, uint32 round, uint8 panel);

    /// @notice The draw's block is not over yet.
    error DrawBlockAhead(JobId job, uint32 round, uint8 panel, uint48 drawBlock);

    /// @notice The hash of the draw's block is gone; `draw` notes another one, in the first half of the first window.
    error DrawBlockTooOld(JobId job, uint32 round, uint8 panel, uint48 drawBlock);

    /// @notice The seat is another's, or the panel has no such seat.
    error NotYourSeat(JobId job, uint32 round, uint8 panel, uint8 seat, address account);

    /// @notice The seat has committed, revealed, or been punished before.
    error AlreadyDone(JobId job, uint32 round, uint8 panel, uint8 seat);

    /// @notice The seat has committed nothing.
    error NothingCommitted(JobId job, uint32 round, uint8 panel, uint8 seat);

    /// @notice The seat has revealed, and is not to be punished.
    error NothingHidden(JobId job, uint32 round, uint8 panel, uint8 seat);

    /// @notice The seat is empty because its evaluator takes none with so little time, or at so much risk.
    error SeatDeclined(JobId job, uint32 round, uint8 panel, uint8 seat, address evaluator);

    /// @notice A commitment of 0 is none.
    error EmptyCommitment();

    /// @notice A vector has 8 bytes a subject.
    error WrongLength(JobId job, uint32 round, uint8 panel, uint256 length, uint256 expected);

    /// @notice What is revealed is not what was committed; `computed` is its commitment.
    error ScoresMismatch(JobId job, uint32 round, uint8 panel, uint8 seat, bytes32 computed);

    /// @notice The panel has no such subject, or one that is not judged this way.
    error NoSubject(JobId job, uint32 round, uint8 panel, uint32 subject);

    /// @notice There must be one word for each seat that revealed, in rising order, but for the excluded one.
    error WordsMissing(JobId job, uint32 round, uint8 panel, uint256 words, uint256 expected);

    /// @notice The word is not in the vector that this seat revealed.
    error InvalidWord(JobId job, uint32 round, uint8 panel, uint8 seat);

    /// @notice The node did not make this contribution.
    error NotContributor(JobId job, uint32 round, uint32 subject, address node);

    /// @notice The score is within the tolerance of one of the two medians.
    error NoOutlier(JobId job, uint32 round, uint8 seat, uint32 subject, int64 score, int64 median);

    /// @notice Not more than half of the stake says that it failed.
    error NotFailed(JobId job, uint32 round, uint32 subject, int64 median);

    /// @notice This offence was judged before.
    error AlreadyJudged(JobId job, uint32 round, uint8 audit);

    /// @notice The audit did not fail, or has been decided.
    error NothingToDecide(JobId job, uint32 round, uint8 audit);

    /// @notice Only the banned node may appeal, once, before `until`.
    error MayNotAppeal(JobId job, uint32 round, uint8 audit, address account, uint64 until);

    /// @notice The node may still appeal.
    error AppealOpen(JobId job, uint32 round, uint8 audit, uint64 until);

    /// @notice Draws a panel. Anyone may, from the start of its first window to its end. If the draw's block is too old
    /// for its hash to be known (256 blocks), it notes the current block, and a later call draws from that one; it does
    /// so only in the first half of the window, so that evaluators have the other half.
    function draw(JobId job, uint32 round, uint8 panel) external;

    /// @notice Binds a seat to its scores; draws the panel first if nobody has.
    /// @param commitment keccak256(abi.encode(uint64 job, uint32 round, uint8 panel, address evaluator,
    /// bytes32 keccak256(vector), bytes32 salt))
    function commitScores(JobId job, uint32 round, uint8 panel, uint8 seat, bytes32 commitment) external;

    /// @notice Shows the scores that a seat committed to.
    function revealScores(
        JobId job,
        uint32 round,
        uint8 panel,
        uint8 seat,
        bytes calldata vector,
        bytes32 salt
    ) external;

    /// @notice Takes the bond of a seat that showed no scores. Anyone may, once the panel is DONE; unless the evaluator
    /// committed to none and may decline the seat, see INodeRegistry.
    function punishSeat(JobId job, uint32 round, uint8 panel, uint8 seat) external;

    /// @notice Takes the bond of a seat whose score of a contribution or data set is too far from the lower median and from the
    /// upper one: by more than TOLERANCE_ABS and by more than a TOLERANCE_DIV-th of the median, or only one of the two REFUSED.
    /// More than half of the stake says something else, then. Once a seat.
    /// @param node who made the contribution, whose own seat does not count; 0 for a data set
    function penalize(
        JobId job,
        uint32 round,
        uint8 seat,
        uint32 subject,
        address node,
        Word[] calldata words
    ) external;

    /// @notice Bans a node whose contribution failed in an audit, as more than half of the stake says. Anyone may, once an
    /// audit.
    function accuse(JobId job, uint32 round, uint8 audit, address node, Word[] calldata words) external;

    /// @notice The banned node asks for a jury.
    function appeal(JobId job, uint32 round, uint8 audit) external;

    /// @notice Ends a failed audit: after the jury with its verdict, else once nobody can appeal. A node that appealed in
    /// vain loses two bonds, one that did not appeal one. It appealed in vain if more than half of the jury's stake says that
    /// it failed; a tie, doubt or silence clears it. So a juror to whom the rows were not opened has to say that it failed.
    /// @param words of the jury; none without an appeal
    function decide(JobId job, uint32 round, uint8 audit, Word[] calldata words) external;

    /// @notice Takes the bond of who published a model that is wrong, as more than half of the stake says. Once.
    function denounce(JobId job, uint32 round, address publisher, Word[] calldata words) external;

    /// @notice An audited node says where its rows lie, sealed to each of those who recompute its contribution.
    function openShard(JobId job, uint32 round, uint8 audit, Cid boxes) external;

    /// @notice The stake-weighted lower median of a subject's revealed scores: in rising order, the first at which twice
    /// the stake so far reaches all of it. 0 if no seat counts.
    /// @param excluded an evaluator whose seat does not count: nobody judges itself
    /// @param words one for each seat that revealed, in rising order, but for the excluded one
    function median(
        JobId job,
        uint32 round,
        uint8 panel,
        uint32 subject,
        address excluded,
        Word[] calldata words
    ) external view returns (int64);

    /// @notice A panel as it stands.
    function panel(JobId job, uint32 round, uint8 panel) external view returns (PanelState memory);

    /// @notice Who sits where: as drawn, or as `draw` would draw now; empty if it could not.
    function seats(
        JobId job,
        uint32 round,
        uint8 panel
    ) external view returns (address[] memory evaluators, uint96[] memory weights);

    /// @notice A seat of a panel; all zero if there is none.
    function seat(JobId job, uint32 round, uint8 panel, uint8 seat) external view returns (Seat memory);

    /// @notice The seat of an account in a panel, and whether it showed its scores.
    function seatOf(
        JobId job,
        uint32 round,
        uint8 panel,
        address account
    ) external view returns (bool found, uint8 seat, bool revealed);

    /// @notice The index of the contribution that an audit of a round is about. Reverts before the draw.
    function auditedIndex(JobId job, uint32 round, uint8 audit) external view returns (uint32);

    /// @notice A failed audit; all zero if there is none.
    function audit(JobId job, uint32 round, uint8 audit) external view returns (Audit memory);

    /// @notice True once a round is scored, or nobody has scored it while it could be.
    function done(JobId job, uint32 round) external view returns (bool);

    /// @notice For jobs, which knows when the round was published and how long a window is: whether the round is scored,
    /// and one more than the highest payee number among its evaluators.
    function outcome(
        JobId job,
        uint32 round,
        uint40 publishedAt,
        uint32 window
    ) external view returns (bool finished, uint32 payees);
}
