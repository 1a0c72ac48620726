// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IAssetRegistry} from "../interfaces/IAssetRegistry.sol";
import {INodeRegistry} from "../interfaces/INodeRegistry.sol";
import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {AssetKind} from "../types/Assets.sol";
import {Cid, JobTerms, Mode} from "../types/Types.sol";
import {Rewards} from "./Rewards.sol";

/// @title What a requester may promise
library Terms {
    /// @notice Longest window, in seconds.
    uint256 internal constant MAX_WINDOW = 30 days - 1;

    /// @notice Most seats of a panel.
    uint256 internal constant MAX_EVALUATORS = 16;

    /// @notice Most contributions audited a round.
    uint256 internal constant MAX_AUDITS = 8;

    /// @notice What the pots may take together: compute gets something.
    uint256 internal constant MAX_SHARES_BPS = 9999;

    /// @notice The use that an asset must allow, see IAssetRegistry.
    uint32 internal constant USE_TRAIN = 1;

    /// @notice Checks a job's terms.
    /// @return escrow rounds * roundBudget, in wei
    function check(
        JobTerms calldata terms,
        INodeRegistry registry,
        IAssetRegistry assets
    ) internal view returns (uint112 escrow) {
        if (Cid.unwrap(terms.spec) == 0) revert IJobRecord.TermOutOfRange("spec", 0, 1, type(uint256).max);
        _within("rounds", terms.rounds, 1, type(uint32).max);
        _within("quorum", terms.quorum, 1, type(uint32).max);
        _within("minNodes", terms.minNodes, terms.quorum, type(uint32).max);
        if (terms.mode == Mode.Chained || (terms.mode == Mode.Sync && terms.target == 0)) {
            _within("target", terms.target, 0, 0);
        } else {
            uint256 most = terms.minNodes < type(uint24).max ? terms.minNodes : type(uint24).max;
            _within("target", terms.target, terms.quorum, most);
        }
        _checkWindows(terms, registry);
        _within("roundBudget", terms.roundBudget, 1, type(uint112).max / terms.rounds);
        _checkScoring(terms);
        _checkAsset(assets, terms.modelAsset, AssetKind.Model, "modelBps", terms.modelBps);
        _checkAsset(assets, terms.algorithmAsset, AssetKind.Algorithm, "algorithmBps", terms.algorithmBps);
        return uint112(terms.rounds) * terms.roundBudget;
    }

    /// @notice Checks that a job with this share of the budget may train with an asset.
    function checkUse(IAssetRegistry assets, uint64 asset, AssetKind kind, uint16 bps) internal view {
        if (!assets.usable(asset, kind, USE_TRAIN)) revert IJobRecord.AssetUnusable(asset);
        uint16 price = assets.priceOf(asset);
        if (bps == 0 || bps < price) revert IJobRecord.ShareTooLow(asset, bps, price);
    }

    function _checkWindows(JobTerms calldata terms, INodeRegistry registry) private view {
        _within("openWindow", terms.openWindow, 1, MAX_WINDOW);
        _within("commitWindow", terms.commitWindow, 1, MAX_WINDOW);
        _within("revealWindow", terms.revealWindow, 1, MAX_WINDOW);
        _within("aggregateWindow", terms.aggregateWindow, 1, MAX_WINDOW);
        _within("settleWindow", terms.settleWindow, 2, MAX_WINDOW);
        _within("challengeWindow", terms.challengeWindow, 1, MAX_WINDOW);
        _within("scoreWindow", terms.scoreWindow, 1, MAX_WINDOW);
        // From a commitment to the verdict of the last jury on it: whoever leaves meanwhile can still be slashed.
        uint256 longest = uint256(terms.commitWindow) +
            terms.revealWindow +
            terms.aggregateWindow +
            terms.settleWindow +
            terms.challengeWindow +
            4 * uint256(terms.scoreWindow);
        _within("windows", longest, 1, registry.unbondDelay());
    }

    function _checkScoring(JobTerms calldata terms) private pure {
        _within("bond", terms.bond, 0, terms.requiredStake);
        _within("evaluators", terms.evaluators, 0, MAX_EVALUATORS);
        bool scored = terms.evaluators != 0;
        // Without evaluators nobody could audit, or measure what data is worth.
        _within("audits", terms.audits, 0, scored ? MAX_AUDITS : 0);
        _within("dataBps", terms.dataBps, 0, scored ? MAX_SHARES_BPS : 0);
        _within("evaluatorBps", terms.evaluatorBps, scored ? 1 : 0, scored ? MAX_SHARES_BPS : 0);
        uint256 shares = uint256(terms.dataBps) + terms.modelBps + terms.algorithmBps + terms.evaluatorBps;
        _within("shares", shares, 0, MAX_SHARES_BPS);
        // A bad score costs more than it earns.
        uint256 least = 2 * Rewards.pot(terms.roundBudget, terms.evaluatorBps);
        _within("bonds", uint256(terms.bond) * terms.evaluators, least, type(uint256).max);
    }

    function _checkAsset(
        IAssetRegistry assets,
        uint64 asset,
        AssetKind kind,
        string memory share,
        uint16 bps
    ) private view {
        if (asset == 0) _within(share, bps, 0, 0);
        else checkUse(assets, asset, kind, bps);
    }

    function _within(string memory term, uint256 value, uint256 least, uint256 most) private pure {
        if (value < least || value > most) revert IJobRecord.TermOutOfRange(term, value, least, most);
    }
}
