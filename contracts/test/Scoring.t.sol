// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Sortition} from "../libraries/Sortition.sol";
import {AssetKind} from "../types/Assets.sol";
import {Word} from "../types/Scores.sol";
import {Cid, JobId, JobTerms} from "../types/Types.sol";
import {Fixture} from "./Fixture.t.sol";
import {Trees} from "./Trees.t.sol";
import {vm} from "./Vm.t.sol";

/// @notice Steps around a job whose rounds are scored: three members, and evaluators who say what a test wants.
abstract contract ScoringFixture is Fixture {
    uint256 internal constant MEMBERS = 3;
    uint8 internal constant SEATS = 3;
    bytes32 internal constant SCORE_SALT = keccak256("score salt");
    address internal constant ASSET_OWNER = address(0xa55e7);

    uint64 internal model;
    uint64 internal algorithm;
    uint64 internal data;

    /// @notice What seats said, for proofs.
    mapping(uint32 round => mapping(uint8 panel => mapping(uint8 seat => bytes))) internal vectors;

    function evaluatorAt(uint256 i) internal pure returns (address) {
        return address(uint160(0xe000 + i));
    }

    function enlist(uint256 count) internal {
        for (uint256 i = 0; i < count; ++i) {
            register(evaluatorAt(i), uint128(STAKE + i * 1 ether));
            vm.prank(evaluatorAt(i));
            registry.enlist();
        }
    }

    function mintAssets() internal {
        model = mint(AssetKind.Model, "model");
        algorithm = mint(AssetKind.Algorithm, "algorithm");
        data = mint(AssetKind.Dataset, "data");
        vm.prank(ASSET_OWNER);
        assets.setApprovalForAll(nodeAt(0), true);
    }

    function mint(AssetKind kind, string memory name) internal returns (uint64) {
        vm.prank(ASSET_OWNER);
        return assets.mint(kind, Cid.wrap(keccak256(bytes(name))), 0, 1, 100, new uint64[](0));
    }

    function scoredTerms() internal view returns (JobTerms memory t) {
        t = terms();
        t.evaluators = SEATS;
        t.audits = 1;
        t.dataBps = 1500;
        t.modelBps = 500;
        t.algorithmBps = 300;
        t.evaluatorBps = 1000;
        t.modelAsset = model;
        t.algorithmAsset = algorithm;
        t.minNodes = uint32(MEMBERS);
    }

    /// @dev Members join; the first one brings the data set.
    function joinAll(JobId job) internal {
        for (uint256 i = 0; i < MEMBERS; ++i) {
            if (!registry.isBonded(nodeAt(i))) register(nodeAt(i), STAKE);
            uint64[] memory own = new uint64[](i == 0 && data != 0 ? 1 : 0);
            if (own.length == 1) own[0] = data;
            vm.prank(nodeAt(i));
            jobs.joinWith(job, own, keccak256(abi.encode("shard", i)));
        }
    }

    /// @dev A scored job whose first round is published. The block after, so that the panel can be drawn.
    function toScore(JobTerms memory t) internal returns (JobId job, address publisher) {
        job = create(t);
        joinAll(job);
        publisher = playRound(job, MEMBERS);
        vm.roll(block.number + 1);
    }

    function toScore() internal returns (JobId job, address publisher) {
        if (data == 0) mintAssets();
        if (!registry.isEvaluator(evaluatorAt(0))) enlist(SEATS);
        return toScore(scoredTerms());
    }

    // -- scores ------------------------------------------------------------------------------------------------

    function commitmentTo(
        JobId job,
        uint32 round,
        uint8 panel,
        address evaluator,
        bytes memory vector
    ) internal pure returns (bytes32) {
        return keccak256(abi.encode(job, round, panel, evaluator, keccak256(vector), SCORE_SALT));
    }

    function commitScoresAs(
        JobId job,
        uint32 round,
        uint8 panel,
        uint8 seat,
        int64[] memory scores
    ) internal returns (address evaluator) {
        bytes memory vector = Trees.vectorOf(scores);
        vectors[round][panel][seat] = vector;
        evaluator = board.seat(job, round, panel, seat).evaluator;
        bytes32 commitment = commitmentTo(job, round, panel, evaluator, vector);
        vm.prank(evaluator);
        board.commitScores(job, round, panel, seat, commitment);
    }

    function revealScoresAs(JobId job, uint32 round, uint8 panel, uint8 seat) internal {
        bytes memory vector = vectors[round][panel][seat];
        address evaluator = board.seat(job, round, panel, seat).evaluator;
        vm.prank(evaluator);
        board.revealScores(job, round, panel, seat, vector, SCORE_SALT);
    }

    /// @dev All seats of a panel say this.
    function scoreAll(JobId job, uint32 round, uint8 panel, int64[][] memory scores) internal {
        board.draw(job, round, panel);
        for (uint8 seat = 0; seat < scores.length; ++seat) commitScoresAs(job, round, panel, seat, scores[seat]);
        for (uint8 seat = 0; seat < scores.length; ++seat) revealScoresAs(job, round, panel, seat);
    }

    /// @dev Vectors of a panel 0 with three contributions, one data set, one audit: contributions are worth 100, 200 and
    /// 300 million, the data set 50 million; the audit and the model pass.
    function goodScores() internal pure returns (int64[][] memory scores) {
        scores = new int64[][](SEATS);
        for (uint256 seat = 0; seat < SEATS; ++seat) {
            scores[seat] = new int64[](6);
            for (int64 i = 0; i < 3; ++i) scores[seat][uint64(i)] = (i + 1) * 100_000_000;
            scores[seat][3] = 50_000_000;
            (scores[seat][4], scores[seat][5]) = (1, 1);
        }
    }

    /// @dev Vectors of a jury.
    function verdicts(int64 verdict) internal pure returns (int64[][] memory scores) {
        scores = new int64[][](SEATS);
        for (uint256 seat = 0; seat < SEATS; ++seat) {
            scores[seat] = new int64[](1);
            scores[seat][0] = verdict;
        }
    }

    /// @dev The words that prove a subject's scores of all seats that revealed, but for the excluded one.
    function wordsOf(
        JobId job,
        uint32 round,
        uint8 panel,
        uint32 subject,
        address excluded
    ) internal view returns (Word[] memory words) {
        uint8 seats = board.panel(job, round, panel).seats;
        words = new Word[](seats);
        uint256 count = 0;
        for (uint8 seat = 0; seat < seats; ++seat) {
            address evaluator = board.seat(job, round, panel, seat).evaluator;
            (, , bool revealed) = board.seatOf(job, round, panel, evaluator);
            if (!revealed || evaluator == excluded) continue;
            bytes memory vector = vectors[round][panel][seat];
            bytes32 word = Trees.wordsOf(vector)[subject / 4];
            words[count++] = Word(seat, word, Trees.vectorProof(vector, subject / 4));
        }
        assembly {
            mstore(words, count)
        }
    }

    function auditedNode(JobId job, uint32 round) internal view returns (address) {
        return nodeAt(board.auditedIndex(job, round, 0));
    }

    function refuse(address caller, bytes memory reason) internal {
        vm.expectRevert(reason);
        vm.prank(caller);
    }
}
