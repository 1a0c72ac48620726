"""Buffered rounds: members train all the time, and a round takes the pieces that are ready when it commits.

There is no barrier (FedBuff, Nguyen et al. 2022, arXiv:2106.06639): whoever has delivered trains on, from the
newest model, while the round is revealed and aggregated. A piece that is ready waits for a round in COMMIT,
may be some models behind that round's parent, and is dropped only when it is too far behind.

    trained -> waiting -> promised (in the journal) -> committed -> revealed -> delivered: there is a model
                  ^                                                     |
                  +---- too late for the commit or the reveal, or the round was void

So at most three pieces are about: one that is promised, one that waits behind it, and one in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dfl_ledger.records import BANNED, Phase
from dfl_node.rounds.vocabulary import (
    Action,
    ChainMoved,
    Commit,
    History,
    Judge,
    Promise,
    Reveal,
    State,
    Train,
    Work,
)

_UNDER_WAY = (Phase.COMMIT, Phase.REVEAL, Phase.AGGREGATE)


def wanted(state: State, now: float) -> list[Action]:
    """What brings our next piece onto the chain, and else the training of one more."""
    chain = state.chain
    if chain is None or chain.job.phase not in _UNDER_WAY:
        return []
    job, mine, promised = chain.job, chain.mine, state.promised
    found = list[Action]()
    to_reveal = job.phase is Phase.REVEAL and now < job.deadline and not mine.revealed
    if to_reveal and promised is not None and _is_bound(promised, chain):
        found.append(Reveal(promised))
    if chain.history is None or not state.trains or mine.active_round == BANNED:
        return found
    waiting = _waiting(state, chain, chain.history)
    if waiting is None:
        return found + _wanted_training(state, chain, chain.history)
    if _takes_ours(chain) and now < job.deadline:
        is_promised = promised is not None and waiting == promised and waiting.round == job.round
        found.append(Commit(waiting) if is_promised else Promise(replace(waiting, round=job.round)))
    return found


def still_useful(train: Train, chain: ChainMoved) -> bool:
    """True while a round could still take what this training makes."""
    if chain.job.phase.terminal:
        return False
    return chain.history is None or train.parent in chain.history.models


def in_turn(state: State, actions: Sequence[Action], judgements: Sequence[Action]) -> list[Action]:
    """Puts a judgement that is due between two trainings: one trainer does both, and it always trains."""
    chain = state.chain
    if chain is None or _trains(state, chain):
        return list(actions)
    resting = {action for action, _ in state.not_before}  # one that fails must not keep us from training
    judges = any(isinstance(action, Judge) for action in state.under_way)
    if judges or any(action not in resting for action in judgements):
        actions = [action for action in actions if not isinstance(action, Train)]
    return [*actions, *judgements]


def _trains(state: State, chain: ChainMoved) -> bool:
    """True while a training is under way that is not about to be abandoned."""
    return any(isinstance(action, Train) and still_useful(action, chain) for action in state.under_way)


def _takes_ours(chain: ChainMoved) -> bool:
    """True while the current round has not got our piece and may still get one."""
    mine = chain.mine
    return chain.job.phase is Phase.COMMIT and mine.member and mine.drawn and not mine.committed


def _is_bound(promised: Work, chain: ChainMoved) -> bool:
    """True if the current round has this piece, or will have it with our reveal."""
    job, mine = chain.job, chain.mine
    in_time = job.phase is not Phase.AGGREGATE or mine.revealed
    return promised.round == job.round and mine.committed and in_time


def _waiting(state: State, chain: ChainMoved, history: History) -> Work | None:
    """The oldest piece that a round may still take and that none has."""
    pieces = list[Work]()
    promised, newest = state.promised, state.work
    if promised is not None and not _is_bound(promised, chain):
        pieces.append(promised)
    if newest is not None and (promised is None or newest.cid != promised.cid):
        pieces.append(newest)
    fresh = (p for p in pieces if p.cid not in history.delivered and p.parent in history.models)
    return next(fresh, None)


def _wanted_training(state: State, chain: ChainMoved, history: History) -> list[Action]:
    """One training at a time, from the newest model, named by the first round that may take its piece.

    Whoever has committed to a round trains for a later one, so that no two trainings have the same name,
    which seeds their batches.
    """
    job, mine = chain.job, chain.mine
    if mine.active_round == 0 or _trains(state, chain):
        return []
    if _takes_ours(chain):
        return [Train(job.round, job.model)]
    is_last = job.completed + 1 >= job.terms.rounds  # unless it is void: then there is time enough
    if is_last or history.max_lag == 0:  # made for a round that will not be, or from a model too old for it
        return []
    return [Train(max(mine.active_round, job.round + 1), job.model)]
