// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Leaf, Opening, ProofStep} from "../types/Rewards.sol";
import {Cid, JobId} from "../types/Types.sol";
import {Fixture} from "./Fixture.t.sol";
import {Trees} from "./Trees.t.sol";
import {vm} from "./Vm.t.sol";

/// @notice Steps around settlements of jobs without evaluators, whose trees may hold what a test likes.
abstract contract SettlementFixture is Fixture {
    Cid internal constant EVIDENCE = Cid.wrap(keccak256("evidence"));
    bytes32 internal constant SCORE_ROOT = keccak256("score root");

    /// @dev One leaf for each of the first `count` nodes, node i with (i + 1) * share cumulative.
    function leavesOf(uint256 count, uint128 share) internal pure returns (Leaf[] memory leaves) {
        leaves = new Leaf[](count);
        for (uint128 i = 0; i < count; ++i) leaves[i] = Leaf(nodeAt(i), 0, 1, (i + 1) * share, (i + 1) * share);
    }

    function settleAs(address settler, JobId job, uint32 round, Leaf[] memory leaves) internal {
        (bytes32 root, uint128 total) = Trees.build(leaves);
        vm.prank(settler);
        distributor.settle(job, round, root, total, SCORE_ROOT, 0, EVIDENCE);
    }

    function settleTotal(address settler, JobId job, uint32 round, uint256 total) internal {
        vm.prank(settler);
        distributor.settle(job, round, keccak256("root"), uint128(total), SCORE_ROOT, 0, EVIDENCE);
    }

    function settleNothing(JobId job, uint32 round, uint128 total) internal {
        distributor.settle(job, round, 0, total, 0, 0, EVIDENCE);
    }

    function claimAt(JobId job, uint32 round, Leaf[] memory leaves, uint256 place) internal returns (uint256) {
        return distributor.claim(job, round, leaves[place], Trees.prove(leaves, place));
    }

    /// @dev Overturns a settlement of wrongLeaves that is the job's first.
    function overturn(address challenger, JobId job, uint32 round, address settler, Leaf[] memory leaves) internal {
        Leaf memory none;
        ProofStep[] memory proof = Trees.prove(leaves, 0);
        vm.prank(challenger);
        distributor.challengeCumulative(
            job,
            round,
            Opening(SCORE_ROOT, 0, settler),
            0,
            leaves[0],
            proof,
            none,
            new ProofStep[](0)
        );
    }

    /// @dev Leaves of which the first is wrong: its cumulative reward is more than its reward.
    function wrongLeaves(uint256 count, uint128 share) internal pure returns (Leaf[] memory leaves) {
        leaves = leavesOf(count, share);
        leaves[0].reward = 0;
    }

    function refuse(address caller, bytes memory reason) internal {
        vm.expectRevert(reason);
        vm.prank(caller);
    }}
