// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ClaimRequest, Fault, Leaf, Opening, ProofStep, ScoreLeaf, Settlement, Tree} from "../types/Rewards.sol";
import {Word} from "../types/Scores.sol";
import {Cid, JobId} from "../types/Types.sol";

/// @title The escrow of jobs, settlements of rounds, claims, and challenges
/// @notice A round's settlement is two roots, however many it pays: of the ScoreTree, what each contribution and data set
/// is worth, and of the RewardTree, what each payee has earned. Rewards are cumulative over the job, so that one claim
/// pays for every round settled so far. Whoever settles vouches for it with its stake: until `claimableAt` anyone may show
/// one wrong line, and the settlement, with all later ones of the job, is void, and the bond of its settler slashed.
///
/// Both trees are perfect: lines stand at their place, and (hash 0, sum 0) at every other up to a power of two. The place
/// of a line is its path, so that none can be missing or stand twice. See libraries/SumTree.sol.
///
/// Of a round's budget the data sets, the model, the algorithm and the evaluators have pots of so many basis points each,
/// rounded down, and compute the rest. A contribution gets its part of the compute pot by its score, if that is positive,
/// and equal parts with all that were not refused if no score is. Data sets share theirs by their scores. The model and the
/// algorithm get all of theirs if any contribution was not refused. An evaluator that showed its scores gets as many parts
/// of its pot as there are seats: one. Each division rounds down; what is left stays in escrow.
interface IRewardDistributor {
    /// @notice A round was settled. `total` is the sum of cumulative rewards; `evidence` holds every line.
    event Settled(
        JobId indexed job,
        uint32 indexed round,
        address indexed settler,
        bytes32 root,
        uint128 total,
        bytes32 scoreRoot,
        uint256 weights,
        uint32 payees,
        Cid evidence,
        uint64 claimableAt
    );

    /// @notice An account was paid for its work (asset 0) or for an asset that it owns.
    event Claimed(
        JobId indexed job,
        uint32 indexed round,
        address indexed account,
        uint256 asset,
        uint256 amount
    );

    /// @notice A settlement was shown to be wrong; it and all later ones of the job are void.
    event Overturned(
        JobId indexed job,
        uint32 indexed round,
        address indexed challenger,
        address settler,
        Fault why
    );

    /// @notice Only the jobs contract may do this.
    error NotJobs(address caller);

    /// @notice The settler has less stake than the job asks for.
    error SettlerStakeTooLow(JobId job, address settler, uint256 stake, uint256 required);

    /// @notice The round has no settlement.
    error NotSettled(JobId job, uint32 round);

    /// @notice The settlement may be challenged until `claimableAt`.
    error NotClaimableYet(JobId job, uint32 round, uint64 claimableAt);

    /// @notice The proof does not lead from the leaf to the settlement's root and total.
    error InvalidProof(JobId job, uint32 round, address account, uint256 asset);

    /// @notice The leaf's cumulative reward was paid before.
    error NothingToClaim(JobId job, address account, uint256 asset);

    /// @notice The job's settlements contradict each other and pay out more than they brought in.
    error JobFundsExceeded(JobId job, uint256 amount, uint256 left);

    /// @notice More claims at once than `most`.
    error TooManyClaims(uint256 count, uint256 most);

    /// @notice The settlement could be challenged until `claimableAt`.
    error ChallengeOver(JobId job, uint32 round, uint64 claimableAt);

    /// @notice This is not what the settlement was made with.
    error WrongOpening(JobId job, uint32 round);

    /// @notice The proof does not lead from this place of a tree to its root.
    error InvalidChallenge(JobId job, uint32 round, Tree tree, uint256 place);

    /// @notice The node did not make the contribution at this place.
    error NotContributor(JobId job, uint32 round, uint32 subject, address node);

    /// @notice What was shown is as it has to be.
    error NotWrong(JobId job, uint32 round, Tree tree, uint256 place);

    /// @notice Settles a published round, once it is scored. Rounds are settled in rising order, within their window.
    /// Whoever has the stake that the job asks for may; it stands for the settlement.
    /// @param root of the RewardTree
    /// @param total its sum: cumulative rewards of the job, in wei, up to and including this round
    /// @param scoreRoot of the ScoreTree
    /// @param weights its sum
    /// @param evidence the file with every line
    function settle(
        JobId job,
        uint32 round,
        bytes32 root,
        uint128 total,
        bytes32 scoreRoot,
        uint256 weights,
        Cid evidence
    ) external;

    /// @notice Pays leaf.account, or the owner of leaf.asset, what its cumulative reward exceeds its earlier claims by.
    /// Anyone may send it.
    /// @return amount wei of VNX paid
    function claim(
        JobId job,
        uint32 round,
        Leaf calldata leaf,
        ProofStep[] calldata proof
    ) external returns (uint256 amount);

    /// @notice At most 32 claims, of any jobs. One that is refused stops them all.
    /// @return amount wei of VNX paid in all
    function claimMany(ClaimRequest[] calldata requests) external returns (uint256 amount);

    /// @notice Shows a line of the ScoreTree whose score is not the median, whose weight does not follow from it, or that
    /// is none of the round's.
    /// @param node who made the contribution; 0 if the subject is none
    /// @param words see IScoreBoard.median
    function challengeScore(
        JobId job,
        uint32 round,
        Opening calldata opening,
        uint32 subject,
        ScoreLeaf calldata leaf,
        ProofStep[] calldata proof,
        address node,
        Word[] calldata words
    ) external;

    /// @notice Shows a line of the RewardTree that is not of the payee with this number, or whose score or reward does not
    /// follow from the ScoreTree.
    /// @param scoreLeaf the payee's line of the ScoreTree, and its proof; empty if it has none
    function challengeReward(
        JobId job,
        uint32 round,
        Opening calldata opening,
        uint32 place,
        Leaf calldata leaf,
        ProofStep[] calldata proof,
        ScoreLeaf calldata scoreLeaf,
        ProofStep[] calldata scoreProof
    ) external;

    /// @notice Shows a line of the RewardTree whose cumulative reward is not that of the settlement before plus its reward.
    /// @param before the line at the same place of the settlement before, and its proof; empty if that has no such place
    function challengeCumulative(
        JobId job,
        uint32 round,
        Opening calldata opening,
        uint32 place,
        Leaf calldata leaf,
        ProofStep[] calldata proof,
        Leaf calldata before,
        ProofStep[] calldata beforeProof
    ) external;

    /// @notice Shows a node of a tree that cannot be one: its sum is not that of its children or of its line, it is empty
    /// where a line must stand, or a line where none may.
    /// @param hash the node's, and its `sum`, as they stand in the tree
    /// @param proof from the node to the root
    /// @param preimage what the hash is of, without the domain: four words for an inner node (left hash, left sum, right
    /// hash, right sum), the line's for a leaf; empty if the node is to be shown as empty, or as one too many
    function challengeNode(
        JobId job,
        uint32 round,
        Opening calldata opening,
        Tree tree,
        bytes32 hash,
        uint256 sum,
        ProofStep[] calldata proof,
        bytes calldata preimage
    ) external;

    /// @notice Pays escrow back on the word of the jobs contract, which alone may call.
    function pay(address to, uint256 amount) external;

    /// @notice Opens the account of a job whose escrow has just come. The jobs contract alone may call.
    /// @dev So that a job's first settlement costs no more than the others.
    function enroll(JobId job) external;

    /// @notice A round's settlement; all zero if there is none, or if it was overturned.
    function settlement(JobId job, uint32 round) external view returns (Settlement memory);

    /// @notice Unix seconds from which no settlement of the job can be overturned any more; 0 if it has none.
    function finalAt(JobId job) external view returns (uint40);

    /// @notice Wei of VNX claimed from a job so far, by an account for its work (asset 0), or for an asset (account 0).
    function claimed(JobId job, address account, uint256 asset) external view returns (uint256);

    /// @notice Wei of VNX of a job's settlements that nobody has claimed yet.
    function unclaimed(JobId job) external view returns (uint256);
}
