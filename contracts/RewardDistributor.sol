// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {IAssetRegistry} from "./interfaces/IAssetRegistry.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IRewardDistributor} from "./interfaces/IRewardDistributor.sol";
import {IScoreBoard} from "./interfaces/IScoreBoard.sol";
import {ITrainingJobs} from "./interfaces/ITrainingJobs.sol";
import {Nodes, Top} from "./libraries/Nodes.sol";
import {Cut, Overturns} from "./libraries/Overturns.sol";
import {Rewards} from "./libraries/Rewards.sol";
import {SumTree} from "./libraries/SumTree.sol";
import {Weights} from "./libraries/Weights.sol";
import {ClaimRequest, Fault, Leaf, Opening, ProofStep, ScoreLeaf, Settlement, Tree} from "./types/Rewards.sol";
import {PanelState, Word} from "./types/Scores.sol";
import {Cid, JobId, JobTerms, Payee} from "./types/Types.sol";

/// @title Holds the escrow, settles rounds, pays claims, and overturns what is wrong
/// @notice See interfaces/IRewardDistributor.sol
contract RewardDistributor is IRewardDistributor {
    using SafeERC20 for IERC20;
    using Overturns for mapping(uint256 => Cut);
    using SumTree for Leaf;
    using SumTree for ScoreLeaf;

    /// @dev What is known of a job here. One storage slot.
    struct Account {
        uint112 unclaimed;
        uint32 head; // the round settled last, 0 if none is
        uint32 epoch; // one more than settlements overturned so far
        uint32 cuts; // those of them that still count
    }

    /// @notice Most claims at once.
    uint256 public constant MAX_CLAIMS = 32;

    /// @notice The token that rewards are paid in.
    IERC20 public immutable token;

    /// @notice Whose stake vouches for settlements.
    INodeRegistry public immutable registry;

    /// @notice Whose owners are paid.
    IAssetRegistry public immutable assets;

    /// @notice The jobs whose rounds are settled here.
    ITrainingJobs public immutable jobs;

    /// @notice Where the scores come from.
    IScoreBoard public immutable board;

    /// @inheritdoc IRewardDistributor
    mapping(JobId job => mapping(address account => mapping(uint256 asset => uint256))) public claimed;

    mapping(JobId job => Account) private _accounts;
    mapping(JobId job => mapping(uint32 round => Settlement)) private _settlements;
    mapping(JobId job => mapping(uint256 index => Cut)) private _cuts;

    constructor(
        IERC20 token_,
        INodeRegistry registry_,
        IAssetRegistry assets_,
        ITrainingJobs jobs_,
        IScoreBoard board_
    ) {
        token = token_;
        registry = registry_;
        assets = assets_;
        jobs = jobs_;
        board = board_;
    }

    /// @inheritdoc IRewardDistributor
    function settle(
        JobId job,
        uint32 round,
        bytes32 root,
        uint128 total,
        bytes32 scoreRoot,
        uint256 weights,
        Cid evidence
    ) external {
        // Whether and when the round may be settled, and for how much, is decided where the round is kept.
        (uint112 amount, uint40 claimableAt, uint32 payees, uint96 required) = jobs.release(job, round, total);
        address settler = _settler(job, required);
        payees = _keep(job, round, total, amount, claimableAt, payees);
        Settlement storage settled = _settlements[job][round];
        settled.root = root;
        settled.digest = keccak256(abi.encode(scoreRoot, weights, settler));
        emit Settled(job, round, settler, root, total, scoreRoot, weights, payees, evidence, claimableAt);
    }

    /// @inheritdoc IRewardDistributor
    function claim(
        JobId job,
        uint32 round,
        Leaf calldata leaf,
        ProofStep[] calldata proof
    ) external returns (uint256) {
        return _claim(job, round, leaf, proof);
    }

    /// @inheritdoc IRewardDistributor
    function claimMany(ClaimRequest[] calldata requests) external returns (uint256 amount) {
        if (requests.length > MAX_CLAIMS) revert TooManyClaims(requests.length, MAX_CLAIMS);
        for (uint256 i = 0; i < requests.length; ++i) {
            ClaimRequest calldata request = requests[i];
            amount += _claim(request.job, request.round, request.leaf, request.proof);
        }
    }

    /// @inheritdoc IRewardDistributor
    function challengeScore(
        JobId job,
        uint32 round,
        Opening calldata opening,
        uint32 subject,
        ScoreLeaf calldata leaf,
        ProofStep[] calldata proof,
        address node,
        Word[] calldata words
    ) external {
        _open(job, round, opening);
        Top memory top = _scoreTop(job, round, opening);
        _checkScoreLeaf(job, round, top, subject, leaf, proof);
        if (subject < top.leaves) {
            ScoreLeaf memory right = _scoreOf(job, round, subject, node, words);
            if (leaf.score == right.score && leaf.weight == right.weight) {
                revert NotWrong(job, round, Tree.Score, subject);
            }
        }
        _overturn(job, round, opening.settler, Fault.Score);
    }

    /// @inheritdoc IRewardDistributor
    function challengeReward(
        JobId job,
        uint32 round,
        Opening calldata opening,
        uint32 place,
        Leaf calldata leaf,
        ProofStep[] calldata proof,
        ScoreLeaf calldata scoreLeaf,
        ProofStep[] calldata scoreProof
    ) external {
        Settlement memory settled = _open(job, round, opening);
        _checkLeaf(job, round, settled, place, leaf, proof);
        if (place < settled.payees && _isRight(job, round, opening, place, leaf, scoreLeaf, scoreProof)) {
            revert NotWrong(job, round, Tree.Reward, place);
        }
        _overturn(job, round, opening.settler, Fault.Reward);
    }

    /// @inheritdoc IRewardDistributor
    function challengeCumulative(
        JobId job,
        uint32 round,
        Opening calldata opening,
        uint32 place,
        Leaf calldata leaf,
        ProofStep[] calldata proof,
        Leaf calldata before,
        ProofStep[] calldata beforeProof
    ) external {
        Settlement memory settled = _open(job, round, opening);
        _checkLeaf(job, round, settled, place, leaf, proof);
        uint256 cumulative = leaf.reward;
        uint32 previousRound = settled.previousRound;
        Settlement memory previous = _settlements[job][previousRound];
        if (place < previous.payees) {
            _checkLeaf(job, previousRound, previous, place, before, beforeProof);
            cumulative += before.cumulative;
        }
        if (leaf.cumulative == cumulative) revert NotWrong(job, round, Tree.Reward, place);
        _overturn(job, round, opening.settler, Fault.Cumulative);
    }

    /// @inheritdoc IRewardDistributor
    function challengeNode(
        JobId job,
        uint32 round,
        Opening calldata opening,
        Tree tree,
        bytes32 hash,
        uint256 sum,
        ProofStep[] calldata proof,
        bytes calldata preimage
    ) external {
        Settlement memory settled = _open(job, round, opening);
        Top memory top = tree == Tree.Reward ? _rewardTop(settled) : _scoreTop(job, round, opening);
        _checkUnsound(job, round, tree, top, hash, sum, proof, preimage);
        _overturn(job, round, opening.settler, Fault.Tree);
    }

    /// @inheritdoc IRewardDistributor
    function pay(address to, uint256 amount) external {
        if (msg.sender != address(jobs)) revert NotJobs(msg.sender);
        token.safeTransfer(to, amount);
    }

    /// @inheritdoc IRewardDistributor
    function enroll(JobId job) external {
        if (msg.sender != address(jobs)) revert NotJobs(msg.sender);
        _accounts[job].epoch = 1;
    }

    /// @inheritdoc IRewardDistributor
    function settlement(JobId job, uint32 round) external view returns (Settlement memory settled) {
        settled = _settlements[job][round];
        if (_isVoid(job, round, settled.epoch)) delete settled;
    }

    /// @inheritdoc IRewardDistributor
    function finalAt(JobId job) external view returns (uint40) {
        // No settlement is final before the one it adds to, so that the last one is the last.
        return _settlements[job][_accounts[job].head].claimableAt;
    }

    /// @inheritdoc IRewardDistributor
    function unclaimed(JobId job) external view returns (uint256) {
        return _accounts[job].unclaimed;
    }

    // -- settlements -------------------------------------------------------------------------------------------

    /// @dev Adds a settlement to those before: it pays no fewer payees, and, made later, is final no earlier.
    function _keep(
        JobId job,
        uint32 round,
        uint128 total,
        uint112 amount,
        uint40 claimableAt,
        uint32 payees
    ) private returns (uint32) {
        Account storage account = _accounts[job];
        uint32 head = account.head;
        uint32 before = _settlements[job][head].payees;
        if (before > payees) payees = before;
        Settlement storage settled = _settlements[job][round];
        // At most the escrow, which has 112 bits.
        settled.total = uint112(total);
        settled.claimableAt = claimableAt;
        settled.payees = payees;
        settled.previousRound = head;
        settled.epoch = account.epoch;
        account.head = round;
        account.unclaimed += amount;
        return payees;
    }

    /// @dev Takes a settlement and all later ones of the job back, and the bond of who made it.
    function _overturn(JobId job, uint32 round, address settler, Fault why) private {
        Account storage account = _accounts[job];
        uint32 previousRound = _settlements[job][round].previousRound;
        uint112 previousTotal = _settlements[job][previousRound].total;
        uint112 amount = _settlements[job][account.head].total - previousTotal;
        uint112 left = account.unclaimed;
        // Earlier settlements that contradict each other can pay more than their own: that much is gone.
        if (amount > left) amount = left;
        account.unclaimed = left - amount;
        account.head = previousRound;
        uint32 epoch = ++account.epoch;
        account.cuts = _cuts[job].cut(account.cuts, epoch, round);
        address challenger = registry.principalOf(msg.sender);
        emit Overturned(job, round, challenger, settler, why);

        jobs.retake(job, round, previousTotal, amount);
        // slither-disable-next-line unused-return
        registry.slash(settler, jobs.terms(job).bond, challenger);
    }

    function _settler(JobId job, uint96 required) private view returns (address settler) {
        settler = msg.sender;
        uint256 stake = registry.stakeOf(settler);
        if (stake == 0) {
            settler = registry.principalOf(settler);
            stake = registry.stakeOf(settler);
        }
        if (stake < required || (stake == 0 && !registry.isBonded(settler))) {
            revert SettlerStakeTooLow(job, settler, stake, required);
        }
    }

    function _isVoid(JobId job, uint32 round, uint32 epoch) private view returns (bool) {
        Account storage account = _accounts[job];
        return epoch != account.epoch && _cuts[job].isVoid(account.cuts, epoch, round);
    }

    // -- claims ------------------------------------------------------------------------------------------------

    function _claim(
        JobId job,
        uint32 round,
        Leaf calldata leaf,
        ProofStep[] calldata proof
    ) private returns (uint256 amount) {
        Account storage account = _accounts[job];
        (uint256 left, uint32 epoch) = (account.unclaimed, account.epoch);
        (address to, uint256 asset, uint256 cumulative) = (leaf.account, leaf.asset, leaf.cumulative);
        if (!_pays(job, round, epoch, leaf.hash(), cumulative, proof)) revert InvalidProof(job, round, to, asset);
        amount = _take(job, account, left, to, asset, cumulative);
        if (to == address(0)) to = assets.ownerOf(asset);
        emit Claimed(job, round, to, asset, amount);
        token.safeTransfer(to, amount);
    }

    /// @dev True if the settlement has this leaf. Every claim comes here, so no slot is read twice.
    function _pays(
        JobId job,
        uint32 round,
        uint32 current,
        bytes32 hash,
        uint256 cumulative,
        ProofStep[] calldata proof
    ) private view returns (bool) {
        Settlement storage settled = _settlements[job][round];
        (uint256 total, uint40 claimableAt, uint32 payees, uint32 epoch) = (
            settled.total,
            settled.claimableAt,
            settled.payees,
            settled.epoch
        );
        if (claimableAt == 0 || (epoch != current && _isVoid(job, round, epoch))) revert NotSettled(job, round);
        if (block.timestamp < claimableAt) revert NotClaimableYet(job, round, claimableAt);
        if (!SumTree.isDepth(payees, proof.length)) return false;
        (bytes32 root, uint256 sum, uint256 place) = SumTree.climb(Tree.Reward, hash, cumulative, proof);
        return root == settled.root && sum == total && place != SumTree.NOWHERE;
    }

    /// @dev A job's claims never exceed its own settlements, even if those contradict each other.
    function _take(
        JobId job,
        Account storage account,
        uint256 left,
        address to,
        uint256 asset,
        uint256 cumulative
    ) private returns (uint256 amount) {
        mapping(uint256 asset => uint256) storage paid = claimed[job][to];
        uint256 before = paid[asset];
        if (cumulative <= before) revert NothingToClaim(job, to, asset);
        unchecked {
            amount = cumulative - before;
            if (amount > left) revert JobFundsExceeded(job, amount, left);
            // Less than it was, which had 112 bits.
            account.unclaimed = uint112(left - amount);
        }
        paid[asset] = cumulative;
    }

    // -- challenges --------------------------------------------------------------------------------------------

    /// @dev The settlement, if it may be challenged and was made with this.
    function _open(
        JobId job,
        uint32 round,
        Opening calldata opening
    ) private view returns (Settlement memory settled) {
        settled = _settlements[job][round];
        if (settled.claimableAt == 0 || _isVoid(job, round, settled.epoch)) revert NotSettled(job, round);
        if (block.timestamp >= settled.claimableAt) revert ChallengeOver(job, round, settled.claimableAt);
        if (keccak256(abi.encode(opening)) != settled.digest) revert WrongOpening(job, round);
    }

    /// @dev The round's contributions, and these and its data sets together.
    function _subjects(JobId job, uint32 round) private view returns (uint256 contributions, uint256 size) {
        contributions = jobs.publication(job, round).contributions;
        size = contributions + board.panel(job, round, 0).datasets;
    }

    /// @dev The line that the ScoreTree has to have for a subject.
    function _scoreOf(
        JobId job,
        uint32 round,
        uint32 subject,
        address node,
        Word[] calldata words
    ) private view returns (ScoreLeaf memory right) {
        (uint256 contributions, ) = _subjects(job, round);
        bool contributed = subject < contributions;
        if (contributed) {
            // slither-disable-next-line unused-return
            (bool revealed, uint32 index, , ) = jobs.contribution(job, round, node);
            if (!revealed || index != subject) revert NotContributor(job, round, subject, node);
        } else if (node != address(0)) {
            revert NotContributor(job, round, subject, node);
        }
        right.score = board.median(job, round, 0, subject, node, words);
        right.weight = contributed ? Weights.ofContribution(right.score) : Weights.ofDataset(right.score);
    }

    function _checkLeaf(
        JobId job,
        uint32 round,
        Settlement memory settled,
        uint32 place,
        Leaf calldata leaf,
        ProofStep[] calldata proof
    ) private pure {
        if (!Nodes.isLeafAt(Tree.Reward, _rewardTop(settled), leaf.hash(), leaf.cumulative, proof, place)) {
            revert InvalidChallenge(job, round, Tree.Reward, place);
        }
    }

    function _checkScoreLeaf(
        JobId job,
        uint32 round,
        Top memory top,
        uint256 place,
        ScoreLeaf calldata leaf,
        ProofStep[] calldata proof
    ) private pure {
        if (!Nodes.isLeafAt(Tree.Score, top, leaf.hash(), leaf.weight, proof, place)) {
            revert InvalidChallenge(job, round, Tree.Score, place);
        }
    }

    function _checkUnsound(
        JobId job,
        uint32 round,
        Tree tree,
        Top memory top,
        bytes32 hash,
        uint256 sum,
        ProofStep[] calldata proof,
        bytes calldata preimage
    ) private pure {
        (bool shown, bool sound, uint256 place) = Nodes.judge(tree, top, hash, sum, proof, preimage);
        if (!shown) revert InvalidChallenge(job, round, tree, place);
        if (sound) revert NotWrong(job, round, tree, place);
    }

    function _rewardTop(Settlement memory settled) private pure returns (Top memory) {
        return Top(settled.root, settled.total, settled.payees);
    }

    function _scoreTop(JobId job, uint32 round, Opening calldata opening) private view returns (Top memory) {
        (, uint256 size) = _subjects(job, round);
        return Top(opening.scoreRoot, opening.weights, size);
    }

    /// @dev True if the line is that of the payee with this number, and says what follows from the ScoreTree.
    function _isRight(
        JobId job,
        uint32 round,
        Opening calldata opening,
        uint32 place,
        Leaf calldata leaf,
        ScoreLeaf calldata scoreLeaf,
        ProofStep[] calldata scoreProof
    ) private view returns (bool) {
        Payee memory payee = jobs.payee(job, place);
        if (leaf.account != payee.account || leaf.asset != payee.asset) return false;
        (uint256 subject, bool scored) = _subjectOf(job, round, payee);
        if (scored) {
            _checkScoreLeaf(job, round, _scoreTop(job, round, opening), subject, scoreLeaf, scoreProof);
        }
        if (leaf.score != (scored ? scoreLeaf.score : int64(0))) return false;
        uint256 weight = scored ? scoreLeaf.weight : 0;
        return leaf.reward == _reward(job, round, payee, weight, opening.weights);
    }

    /// @dev The place of a payee's line in the ScoreTree, if it has one.
    function _subjectOf(
        JobId job,
        uint32 round,
        Payee memory payee
    ) private view returns (uint256 subject, bool scored) {
        if (payee.asset == 0) {
            // slither-disable-next-line unused-return
            (scored, subject, , ) = jobs.contribution(job, round, payee.account);
        } else {
            uint32 place;
            (scored, place) = jobs.datasetPlace(job, payee.asset);
            (uint256 contributions, uint256 size) = _subjects(job, round);
            subject = contributions + place;
            scored = scored && subject < size;
        }
    }

    /// @param weight of the payee's line in the ScoreTree, 0 if it has none
    /// @param all the sum of all weights
    function _reward(
        JobId job,
        uint32 round,
        Payee memory payee,
        uint256 weight,
        uint256 all
    ) private view returns (uint256 reward) {
        JobTerms memory terms = jobs.terms(job);
        uint256 budget = terms.roundBudget;
        if (payee.asset == 0) {
            reward = Rewards.ofContribution(Rewards.computePot(terms), weight, all);
            // slither-disable-next-line unused-return
            (, , bool shown) = board.seatOf(job, round, 0, payee.account);
            if (!shown) return reward;
            PanelState memory panel = board.panel(job, round, 0);
            return reward + Rewards.ofEvaluator(Rewards.pot(budget, terms.evaluatorBps), panel.seats);
        }
        if (payee.asset == terms.modelAsset) return Rewards.ofTool(Rewards.pot(budget, terms.modelBps), all);
        if (payee.asset == terms.algorithmAsset) return Rewards.ofTool(Rewards.pot(budget, terms.algorithmBps), all);
        return Rewards.ofDataset(Rewards.pot(budget, terms.dataBps), weight, all);
    }
}
