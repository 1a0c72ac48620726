"""The in-memory twin of libraries/Terms.sol: what a requester may promise."""

from __future__ import annotations

from dfl_ledger.memory_assets import MemoryAssets
from dfl_ledger.memory_chain import Transaction
from dfl_ledger.memory_registry import MemoryRegistry
from dfl_ledger.records import AssetKind, AssetUse, JobTerms, Mode

_MAX_WINDOW_S = 30 * 24 * 3600 - 1
_MAX_EVALUATORS = 16
_MAX_AUDITS = 8
_MAX_SHARES_BPS = 9999
_MANY = 2**32 - 1
_ANY = 2**256 - 1

Limit = tuple[str, int, int, int]


def check_terms(tx: Transaction, terms: JobTerms, registry: MemoryRegistry, assets: MemoryAssets) -> None:
    if not any(terms.spec.digest):
        raise tx.refused("TermOutOfRange", term="spec", value=0, least=1, most=_ANY)
    _within(tx, ("rounds", terms.rounds, 1, _MANY))
    limits = (
        ("quorum", terms.quorum, 1, _MANY),
        ("minNodes", terms.min_nodes, terms.quorum, _MANY),
        ("target", terms.target, *_targets(terms)),
        *_windows(terms, registry.unbond_delay_s),
        ("roundBudget", terms.round_budget_wei, 1, (2**112 - 1) // terms.rounds),
        *_scoring(terms),
    )
    for limit in limits:
        _within(tx, limit)
    for asset, kind, share, bps in (
        (terms.model_asset, AssetKind.MODEL, "modelBps", terms.model_bps),
        (terms.algorithm_asset, AssetKind.ALGORITHM, "algorithmBps", terms.algorithm_bps),
    ):
        if asset == 0:
            _within(tx, (share, bps, 0, 0))
        else:
            check_use(tx, assets, asset, kind, bps)


def check_use(tx: Transaction, assets: MemoryAssets, asset: int, kind: AssetKind, bps: int) -> None:
    """A job with this share of the budget may train with the asset."""
    if not assets.usable(asset, kind, AssetUse.TRAIN):
        raise tx.refused("AssetUnusable", asset=asset)
    price = assets.assets[asset].price_bps
    if bps == 0 or bps < price:
        raise tx.refused("ShareTooLow", asset=asset, bps=bps, priceBps=price)


def _within(tx: Transaction, limit: Limit) -> None:
    term, value, least, most = limit
    if not least <= value <= most:
        raise tx.refused("TermOutOfRange", term=term, value=value, least=least, most=most)


def _targets(terms: JobTerms) -> tuple[int, int]:
    """The least and the most that `target` may be."""
    if terms.mode is Mode.CHAINED or (terms.mode is Mode.SYNC and terms.target == 0):
        return 0, 0
    return terms.quorum, min(terms.min_nodes, 2**24 - 1)


def _windows(terms: JobTerms, unbond_delay_s: int) -> tuple[Limit, ...]:
    # from a commitment to the verdict of the last jury on it: whoever leaves meanwhile can still be slashed
    longest = (
        terms.commit_window_s
        + terms.reveal_window_s
        + terms.aggregate_window_s
        + terms.settle_window_s
        + terms.challenge_window_s
        + 4 * terms.score_window_s
    )
    return (
        ("openWindow", terms.open_window_s, 1, _MAX_WINDOW_S),
        ("commitWindow", terms.commit_window_s, 1, _MAX_WINDOW_S),
        ("revealWindow", terms.reveal_window_s, 1, _MAX_WINDOW_S),
        ("aggregateWindow", terms.aggregate_window_s, 1, _MAX_WINDOW_S),
        ("settleWindow", terms.settle_window_s, 2, _MAX_WINDOW_S),
        ("challengeWindow", terms.challenge_window_s, 1, _MAX_WINDOW_S),
        ("scoreWindow", terms.score_window_s, 1, _MAX_WINDOW_S),
        ("windows", longest, 1, unbond_delay_s),
    )


def _scoring(terms: JobTerms) -> tuple[Limit, ...]:
    scored = terms.evaluators > 0
    shares = terms.data_bps + terms.model_bps + terms.algorithm_bps + terms.evaluator_bps
    pot_wei = terms.round_budget_wei * terms.evaluator_bps // 10_000
    return (
        ("bond", terms.bond_wei, 0, terms.required_stake_wei),
        ("evaluators", terms.evaluators, 0, _MAX_EVALUATORS),
        # without evaluators nobody could audit, or measure what data is worth
        ("audits", terms.audits, 0, _MAX_AUDITS if scored else 0),
        ("dataBps", terms.data_bps, 0, _MAX_SHARES_BPS if scored else 0),
        ("evaluatorBps", terms.evaluator_bps, int(scored), _MAX_SHARES_BPS if scored else 0),
        ("shares", shares, 0, _MAX_SHARES_BPS),
        # a bad score costs more than it earns
        ("bonds", terms.bond_wei * terms.evaluators, 2 * pot_wei, _ANY),
    )
