"""A bench of evaluators to tell stories with: jobs that are scored, vectors, words, and settlements that
follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dfl_ledger import vectors
from dfl_ledger.evidence import Evidence
from dfl_ledger.facts import Ballot, Piece, RoundFacts, Shares
from dfl_ledger.ledger import Ledger
from dfl_ledger.merkle import RewardTree, ScoreTree
from dfl_ledger.records import (
    Address,
    JobId,
    JobTerms,
    Leaf,
    Opening,
    Payee,
    Settlement,
    SettlementState,
    Word,
)
from tests.conformance.ledger_story import (
    ETHER,
    TERMS,
    World,
    cid,
    commit_all,
    member,
    play_round,
    reveal_all,
    state,
    turns,
)

BOND = 4 * ETHER
MILLI = 10**6  # of loss, in the unit of scores
SCORED = replace(
    TERMS, evaluators=3, evaluator_bps=500, bond_wei=BOND, score_window_s=300, challenge_window_s=1000
)


@contextmanager
def bench(world: World, *stakes_eth: int) -> Iterator[list[Ledger]]:
    """Evaluators with these stakes, all there are on the chain while the story lasts."""
    ledgers = []
    try:
        for stake in stakes_eth:
            ledger = world.wallet()
            ledger.register(ledger.address.encode()[:32], stake * ETHER, [])
            ledger.enlist()
            ledgers.append(ledger)
        yield ledgers
    finally:
        for ledger in ledgers:
            if ledger.is_evaluator(ledger.address):
                ledger.delist()


@dataclass
class Played:
    """A published round of a job that is to be scored."""

    job: JobId
    round: int
    nodes: list[Ledger]  # by index of reveal
    publisher: Ledger
    datasets: tuple[int, ...] = ()

    @property
    def reader(self) -> Ledger:
        return self.nodes[0]


def open_job(world: World, terms: JobTerms, count: int = 2) -> tuple[Ledger, JobId, list[Ledger]]:
    """The requester, the job, and its members, who have joined. They commit to rows if the job is audited."""
    requester, nodes = world.wallet(), [member(world) for _ in range(count)]
    job = requester.create_job(replace(terms, min_nodes=count))
    for node in nodes:
        node.join(job, shard=b"r" * 32 if terms.audits else None)
    return requester, job, nodes


def play(job: JobId, nodes: Sequence[Ledger], datasets: tuple[int, ...] = ()) -> Played:
    """A round with a model."""
    round_ = state(nodes[0], job).round
    publisher = play_round(nodes, job)
    return Played(job, round_, list(nodes), publisher, datasets)


def judge(
    judges: Sequence[Ledger], played: Played, scores: Mapping[Address, Sequence[int]], panel: int = 0
) -> dict[int, bytes]:
    """Every evaluator with scores commits to them, then shows them. Gives the vectors by seat."""
    shown: dict[int, bytes] = {}
    seats = played.reader.seats(played.job, played.round, panel)
    by_address = {ledger.address: ledger for ledger in judges}
    for number, seat in enumerate(seats):
        if seat.evaluator in scores:
            shown[number] = vectors.encode(scores[seat.evaluator])
            sealed = vectors.commitment(
                played.job, played.round, panel, seat.evaluator, shown[number], bytes([number]) * 32
            )
            by_address[seat.evaluator].commit_scores(played.job, played.round, panel, number, sealed)
    return shown


def show(judges: Sequence[Ledger], played: Played, shown: Mapping[int, bytes], panel: int = 0) -> None:
    """Reveal what was committed."""
    seats = played.reader.seats(played.job, played.round, panel)
    by_address = {ledger.address: ledger for ledger in judges}
    for number, vector in shown.items():
        ledger = by_address[seats[number].evaluator]
        ledger.reveal_scores(played.job, played.round, panel, number, vector, bytes([number]) * 32)


def score(
    judges: Sequence[Ledger], played: Played, scores: Mapping[Address, Sequence[int]], panel: int = 0
) -> dict[int, bytes]:
    """Commit and reveal, by all at once."""
    shown = judge(judges, played, scores, panel)
    show(judges, played, shown, panel)
    return shown


def alike(judges: Sequence[Ledger], scores: Sequence[int]) -> dict[Address, Sequence[int]]:
    """All evaluators say the same."""
    return {ledger.address: scores for ledger in judges}


def words(
    played: Played, shown: Mapping[int, bytes], subject: int, excluded: Address | None = None, panel: int = 0
) -> list[Word]:
    """What a median is shown with."""
    seats = played.reader.seats(played.job, played.round, panel)
    return [
        vectors.word_of(seat, vector, subject)
        for seat, vector in sorted(shown.items())
        if seats[seat].evaluator != excluded
    ]


def facts_of(played: Played, shown: Mapping[int, bytes]) -> RoundFacts:
    """What the chain fixes of the round, read from the chain."""
    reader, job, round_ = played.reader, played.job, played.round
    publication = reader.publication(job, round_)
    assert publication is not None
    panel = reader.panel(job, round_)
    seats = reader.seats(job, round_) if panel.seats else ()
    numbers = [reader.payee_of(job, seat.evaluator) for at, seat in enumerate(seats) if at in shown]
    count = max([publication.payees, *(n + 1 for n in numbers if n is not None)])
    previous = settled_before(played)
    if previous is not None:
        count = max(count, previous.payees)
    payees = [reader.payee(job, number) for number in range(count)]
    return RoundFacts(
        job=job,
        round=round_,
        parent=cid("parent"),
        model=cid("model"),
        shares=Shares.of(state(reader, job).terms),
        contributions=tuple(
            Piece(node.address, cid(f"update of {node.address}"), 640) for node in played.nodes
        ),
        datasets=played.datasets[: panel.datasets],
        audits=panel.audits,
        ballots=tuple(
            Ballot(seat.evaluator, seat.weight, shown.get(number)) for number, seat in enumerate(seats)
        ),
        payees=tuple(payee or Payee(Address(""), 0) for payee in payees),
    )


def settled_before(played: Played) -> SettlementState | None:
    """The newest settlement before this round."""
    found = [played.reader.settlement(played.job, round_) for round_ in range(1, played.round)]
    return next((settled for settled in reversed(found) if settled is not None), None)


def evidence_of(played: Played, shown: Mapping[int, bytes], previous: Sequence[Leaf] = ()) -> Evidence:
    """What a settlement of the round has to say."""
    return Evidence.of(facts_of(played, shown), previous, validation=None, method="test")


def settlement_of(
    played: Played, leaves: Sequence[Leaf], scores: ScoreTree | None
) -> tuple[Settlement, RewardTree]:
    """Any settlement of the round, right or wrong."""
    tree = RewardTree(leaves)
    root, weights = (bytes(32), 0) if scores is None else (scores.root, scores.total)
    evidence = cid(f"evidence of {played.round}")
    return (
        Settlement(played.job, played.round, tree.root, tree.total_wei, evidence, root, weights),
        tree,
    )


def opening_of(settlement: Settlement, settler: Ledger) -> Opening:
    return Opening(settlement.score_root, settlement.weights, settler.address)


def finish(world: World, played: Played) -> None:
    """Let a panel's windows pass."""
    world.reach(played.reader.panel(played.job, played.round).reveal_until)


def stake(ledger: Ledger) -> int:
    record = ledger.node(ledger.address)
    return 0 if record is None else record.stake_wei


def commit_then_reveal(
    job: JobId, committing: Sequence[Ledger], revealing: Sequence[Ledger], world: World
) -> int:
    """A round in which some withhold their reveal; gives its number."""
    round_ = state(committing[0], job).round
    commit_all(committing, job)
    reveal_all(revealing, job)
    if len(revealing) < len(committing):
        world.reach(state(committing[0], job).deadline)
        committing[0].advance(job)
    turns(revealing, job)[0][1].publish_model(job, round_, cid(f"model {round_}"))
    return round_
