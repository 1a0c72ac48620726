"""The words of a job's state machine: what a node has done, may do, hears, and knows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dfl_ledger.records import Address, Cid, JobState, Kind, Phase


# -- what the node has done --------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Work:
    """A piece of our work, published as a blob and journalled before it is committed."""

    round: int
    parent: Cid
    cid: Cid
    samples: int
    salt: bytes  # 32 bytes
    kind: Kind = Kind.UPDATE


@dataclass(frozen=True, slots=True)
class Mine:
    """What the chain says of this node in this job."""

    active_round: int  # the first round we may commit in, 0 = never joined
    member: bool  # we may commit in the current round
    drawn: bool  # and are wanted there: all members are, unless the job samples them
    committed: bool  # in the current round
    revealed: bool  # in the current round
    may_aggregate_at: int | None  # Unix seconds
    lease_until: int | None = None  # Unix seconds; chained: the current hop is ours until then


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A round that ended with a model and has no settlement yet."""

    round: int
    settle_from: int  # Unix seconds from which this node should settle it
    settle_until: int
    judged_at: int = 0  # when its panel may be done by time alone: a reason to look again


@dataclass(frozen=True, slots=True)
class Seat:
    """Our seat among the evaluators of a published round. Times in Unix seconds; each phase may end early."""

    round: int
    judging: bool  # commitments to scores are taken
    showing: bool  # and after that, the scores themselves
    committed: bool
    revealed: bool
    judge_from: int
    judge_until: int
    show_until: int
    panel: int = 0  # 1 + k: the jury of an appeal against the round's audit k
    sealed_until: float = 0.0  # what it is scored on may be unsealed until then; 0 = it is not awaited


class Wrong(Enum):
    """What costs a node its bond, or its membership."""

    REVEAL_WITHHELD = "committed to a piece and did not reveal it"
    SCORES_WITHHELD = "sat on a panel and showed no scores"
    OUTLIER = "a score far from what most of the panel say"
    FALSE_MODEL = "published another model than the pieces give"
    LOW_STAKE = "has less at stake than the job asks for"
    AUDIT_FAILED = "its piece is not what its rows give"
    AUDIT_ENDED = "its failed audit is to be decided"


@dataclass(frozen=True, slots=True)
class Offence:
    """What a node did in a job, as the chain shows it to everybody."""

    wrong: Wrong
    node: Address
    round: int
    seat: int = 0  # of whom scores were wanted
    subject: int = 0  # of an outlier; of an audit its number
    panel: int = 0  # of whom scores were wanted


@dataclass(frozen=True, slots=True)
class Charge:
    """An offence that nobody has reported yet."""

    offence: Offence
    report_from: float  # Unix seconds from which it is our turn


@dataclass(frozen=True, slots=True)
class Errand:
    """What an audit asks of us."""

    action: DrawPanel | OpenShard | Appeal
    due_from: float  # Unix seconds
    due_until: float


@dataclass(frozen=True, slots=True)
class History:
    """Asynchronous: what the ledger's rows say beyond where the job stands."""

    models: tuple[Cid, ...]  # that a piece may start from, newest first: the round's parent and those before
    max_lag: int  # published models that a piece's parent may be behind the round's
    delivered: frozenset[Cid]  # our newest pieces in rounds that have a model


# -- actions -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Join:
    round: int


@dataclass(frozen=True, slots=True)
class Train:
    round: int
    parent: Cid


@dataclass(frozen=True, slots=True)
class Promise:
    """Asynchronous: note durably which piece goes into a round, before it is committed there."""

    work: Work  # with that round; the salt is drawn anew


@dataclass(frozen=True, slots=True)
class Commit:
    work: Work


@dataclass(frozen=True, slots=True)
class Reveal:
    work: Work


@dataclass(frozen=True, slots=True)
class Hop:
    """Chained: judge the hop before ours, train on what stands, and pass the model on."""

    round: int
    model: Cid  # the last accepted one
    candidate: Cid | None  # the hop before ours, not yet judged
    until: int  # Unix seconds; the end of our lease


@dataclass(frozen=True, slots=True)
class Watch:
    """As the requester: measure a new model on the validation rows, to see it improve."""

    round: int
    model: Cid


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Fetch the round's pieces, make its model of them, publish it on chain."""

    round: int
    parent: Cid
    reveals: int  # how many updates there are; the ledger's rows may still be behind the chain


@dataclass(frozen=True, slots=True)
class Advance:
    round: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Settle:
    round: int


@dataclass(frozen=True, slots=True)
class Judge:
    """As an evaluator: measure what a round's pieces were worth, or audit one again on appeal, and bind
    ourselves to what we found."""

    round: int
    panel: int = 0


@dataclass(frozen=True, slots=True)
class Show:
    """As an evaluator: show the scores that we are bound to."""

    round: int
    panel: int = 0


@dataclass(frozen=True, slots=True)
class DrawPanel:
    """Have the chain draw who judges, and with that who is audited."""

    round: int
    panel: int


@dataclass(frozen=True, slots=True)
class OpenShard:
    """As one whose piece is audited: open our rows to the jury."""

    round: int
    audit: int
    panel: int


@dataclass(frozen=True, slots=True)
class Appeal:
    """As one whose audit failed: have a fresh jury do the work again, if we find that it was right."""

    round: int
    audit: int


@dataclass(frozen=True, slots=True)
class Unseal:
    """As the requester: open the validation shard of the next round to be judged."""

    position: int  # among the published rounds, from 0


@dataclass(frozen=True, slots=True)
class Challenge:
    """Show that the round's settlement is wrong."""

    round: int


@dataclass(frozen=True, slots=True)
class Report:
    """Have the chain take a bond."""

    offence: Offence


@dataclass(frozen=True, slots=True)
class Refund:
    """The job has ended: return the rest of the escrow to its requester, which is us."""

    seen_wei: int  # refunded so far; a later refund is another action


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop training for a round that has gone on without us."""

    round: int


Action = (
    Join
    | Train
    | Promise
    | Commit
    | Reveal
    | Hop
    | Watch
    | Aggregate
    | Advance
    | Judge
    | Show
    | DrawPanel
    | OpenShard
    | Appeal
    | Unseal
    | Settle
    | Challenge
    | Report
    | Refund
    | Abandon
)


# -- events ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ChainMoved:
    """The job as the chain has it now."""

    job: JobState
    mine: Mine
    unsettled: tuple[Unsettled, ...]
    refundable_wei: int
    history: History | None = None  # asynchronous; None while the ledger's rows are behind the chain
    seats: tuple[Seat, ...] = ()  # ours, of rounds that are being judged, oldest first
    sealed: int | None = None  # as the requester: the position of the next shard to open, None if none is due
    wrong: int | None = None  # the first round whose settlement is wrong and can still be overturned
    final_at: int = 0  # Unix seconds; when the newest settlement can no longer be overturned
    charges: tuple[Charge, ...] = ()
    errands: tuple[Errand, ...] = ()


@dataclass(frozen=True, slots=True)
class Trained:
    work: Work


@dataclass(frozen=True, slots=True)
class Promised:
    """This piece and no other goes into its round: the journal knows, so it can be revealed after a crash."""

    work: Work


@dataclass(frozen=True, slots=True)
class Finished:
    """An action ended well; what it changed on chain arrives as ChainMoved."""

    action: Action


@dataclass(frozen=True, slots=True)
class Failed:
    """An action failed; it is asked for again after RETRY_S if it is still wanted."""

    action: Action


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = ChainMoved | Trained | Promised | Finished | Failed | Tick


# -- state -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class State:
    """Everything `step` may look at. `now` (Unix seconds) comes with each call."""

    me: Address
    trains: bool  # the role `train`, and data for the job's application
    chain: ChainMoved | None = None
    work: Work | None = None  # the newest that was trained
    promised: Work | None = None  # asynchronous: what goes, or went, into the newest round that had something
    watched: Cid | None = None  # the newest model whose loss we have measured as the requester
    under_way: frozenset[Action] = frozenset()
    not_before: tuple[tuple[Action, float], ...] = ()  # failed actions and when to try them again
    rank: int = 0  # 0..3: our place in the queue of those who send `advance`
