"""The in-memory twin of libraries/Terms.sol: what a requester may promise."""

from __future__ import annotations

from dfl_ledger.memory_chain import Transaction
from dfl_ledger.records import JobTerms, Mode

_MAX_WINDOW_S = 30 * 24 * 3600 - 1


def check_terms(tx: Transaction, terms: JobTerms) -> None:
    if not any(terms.spec.digest):
        raise tx.refused("TermOutOfRange", term="spec", value=0, least=1, most=2**256 - 1)
    many = 2**32 - 1
    limits = (
        ("rounds", terms.rounds, 1, many),
        ("quorum", terms.quorum, 1, many),
        ("minNodes", terms.min_nodes, terms.quorum, many),
        ("target", terms.target, *_targets(terms)),
        ("openWindow", terms.open_window_s, 1, _MAX_WINDOW_S),
        ("commitWindow", terms.commit_window_s, 1, _MAX_WINDOW_S),
        ("revealWindow", terms.reveal_window_s, 1, _MAX_WINDOW_S),
        ("aggregateWindow", terms.aggregate_window_s, 1, _MAX_WINDOW_S),
        ("settleWindow", terms.settle_window_s, 2, _MAX_WINDOW_S),
        ("challengeWindow", terms.challenge_window_s, 1, _MAX_WINDOW_S),
        ("roundBudget", terms.round_budget_wei, 1, (2**112 - 1) // max(terms.rounds, 1)),
    )
    for term, value, least, most in limits:
        if not least <= value <= most:
            raise tx.refused("TermOutOfRange", term=term, value=value, least=least, most=most)


def _targets(terms: JobTerms) -> tuple[int, int]:
    """The least and the most that `target` may be."""
    if terms.mode is Mode.CHAINED or (terms.mode is Mode.SYNC and terms.target == 0):
        return 0, 0
    return terms.quorum, min(terms.min_nodes, 2**24 - 1)
