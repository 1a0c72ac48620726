"""The in-memory twin of ScoreBoard.sol: panels, their scores, and what is judged by the medians."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from dfl_ledger import sortition, vectors
from dfl_ledger.median import Medians, Vote, is_outlier, weighted_medians
from dfl_ledger.memory_chain import Blocks, Transaction
from dfl_ledger.memory_job import Job, add_payee
from dfl_ledger.memory_jobs import MemoryJobs
from dfl_ledger.memory_panel import NO_PANEL, AuditRecord, Panel
from dfl_ledger.memory_registry import MemoryRegistry
from dfl_ledger.records import NOBODY, Address, Cid, Interval, PanelPhase, PanelState, Payee, Seat, Word

_NAME = "ScoreBoard"
_VIEW = Address("")  # the sender of a read


class MemoryBoard:
    """Panels by (job, round, number)."""

    def __init__(self, blocks: Blocks, registry: MemoryRegistry, jobs: MemoryJobs) -> None:
        self._blocks = blocks
        self._registry = registry
        self._jobs = jobs
        self._panels: defaultdict[tuple[int, int, int], Panel] = defaultdict(Panel)
        self.audits: defaultdict[tuple[int, int, int], AuditRecord] = defaultdict(AuditRecord)
        self._denounced: set[tuple[int, int]] = set()

    # -- scores ---------------------------------------------------------------------------------------
    def draw(self, tx: Transaction, number: int, round_: int, panel: int) -> None:
        own = self._panels[number, round_, panel]
        if own.is_drawn:
            raise tx.refused("AlreadyDrawn", job=number, round=round_, panel=panel)
        job, started_at, draw_block = self._clock(tx, number, round_, panel)
        late = tx.timestamp >= started_at + job.terms.score_window_s // 2
        if late or tx.block <= draw_block or self._blocks.hash_seen(draw_block, tx.block) is not None:
            return self._draw(tx, number, round_, panel)
        own.draw_block = tx.block
        tx.emit(_NAME, "DrawPostponed", job=number, round=round_, panel=panel, drawBlock=tx.block)

    def commit(
        self, tx: Transaction, number: int, round_: int, panel: int, seat: int, commitment: bytes
    ) -> None:
        own = self._panels[number, round_, panel]
        if not own.is_drawn:
            self._check_commit(tx, number, round_, panel, seat, commitment)
            self._draw(tx, number, round_, panel)
        if own.phase_now(tx.timestamp) is not PanelPhase.COMMIT:
            raise tx.refused("CommitOver", job=number, round=round_, panel=panel)
        place = self._own_seat(tx, own, number, round_, panel, seat)
        if seat in own.committed:
            raise tx.refused("AlreadyDone", job=number, round=round_, panel=panel, seat=seat)
        if not any(commitment):
            raise tx.refused("EmptyCommitment")
        own.seats[seat] = replace(place, root=commitment)
        own.committed.add(seat)
        key = {"job": number, "round": round_, "panel": panel, "seat": seat}
        tx.emit(_NAME, "ScoresCommitted", **key, evaluator=place.evaluator)
        if panel == 0:
            index = add_payee(tx, self._jobs.jobs[number], Payee(place.evaluator, 0))
            own.payees = max(own.payees, index + 1)

    def reveal(
        self, tx: Transaction, number: int, round_: int, panel: int, seat: int, vector: bytes, salt: bytes
    ) -> None:
        own = self._panels[number, round_, panel]
        key = {"job": number, "round": round_, "panel": panel}
        if not own.is_drawn or own.phase_now(tx.timestamp) is not PanelPhase.REVEAL:
            raise tx.refused("NotRevealing", **key)
        place = self._own_seat(tx, own, number, round_, panel, seat)
        if seat not in own.committed:
            raise tx.refused("NothingCommitted", **key, seat=seat)
        if seat in own.revealed:
            raise tx.refused("AlreadyDone", **key, seat=seat)
        length = own.subjects(panel) * vectors.SCORE_BYTES
        if len(vector) != length:
            raise tx.refused("WrongLength", **key, length=len(vector), expected=length)
        computed = vectors.commitment(number, round_, panel, place.evaluator, vector, salt)
        if computed != place.root:
            raise tx.refused("ScoresMismatch", **key, seat=seat, computed="0x" + computed.hex())
        own.seats[seat] = replace(place, root=vectors.VectorTree(vector).root)
        own.revealed.add(seat)
        shown = "0x" + vector.hex()
        tx.emit(_NAME, "ScoresRevealed", **key, seat=seat, evaluator=place.evaluator, vector=shown)

    # -- offences -------------------------------------------------------------------------------------
    def punish_seat(self, tx: Transaction, number: int, round_: int, panel: int, seat: int) -> None:
        own = self._done_panel(tx, number, round_, panel)
        key = {"job": number, "round": round_, "panel": panel, "seat": seat}
        if seat >= len(own.seats) or seat in own.revealed:
            raise tx.refused("NothingHidden", **key)
        if seat in own.punished:
            raise tx.refused("AlreadyDone", **key)
        evaluator = own.seats[seat].evaluator
        if seat not in own.committed and self._may_decline(number, round_, own, evaluator):
            raise tx.refused("SeatDeclined", **key, evaluator=evaluator)
        own.punished.add(seat)
        tx.emit(_NAME, "ScoresWithheld", **key, evaluator=evaluator)
        self._slash(tx, number, evaluator)

    def penalize(
        self,
        tx: Transaction,
        number: int,
        round_: int,
        seat: int,
        subject: int,
        node: Address,
        words: Sequence[Word],
    ) -> None:
        own = self._done_panel(tx, number, round_, 0)
        key: dict[str, object] = {"job": number, "round": round_}
        if seat in own.penalized:
            raise tx.refused("AlreadyDone", **key, panel=0, seat=seat)
        if subject < own.contributions:
            self._check_contributor(tx, number, round_, subject, node)
        elif node != NOBODY:
            raise tx.refused("NotContributor", **key, subject=subject, node=node)
        if subject >= own.audit_subject(0):
            raise tx.refused("NoSubject", **key, panel=0, subject=subject)
        middle, upper = self._medians(tx, number, round_, 0, subject, node, words)
        word = next((w.word for w in words if w.seat == seat), None)
        if word is None:
            raise tx.refused("NotYourSeat", **key, panel=0, seat=seat, account=NOBODY)
        score = vectors.score_in(word, subject)
        for median in (middle, upper):
            if not is_outlier(score, median):
                raise tx.refused("NoOutlier", **key, seat=seat, subject=subject, score=score, median=median)
        own.penalized.add(seat)
        evaluator = own.seats[seat].evaluator
        told = {"subject": subject, "score": score, "median": middle}
        tx.emit(_NAME, "OutlierPenalized", **key, seat=seat, evaluator=evaluator, **told)
        self._slash(tx, number, evaluator)

    def accuse(
        self, tx: Transaction, number: int, round_: int, audit: int, node: Address, words: Sequence[Word]
    ) -> None:
        own = self._done_panel(tx, number, round_, 0)
        key: dict[str, object] = {"job": number, "round": round_}
        record = self.audits[number, round_, audit]
        if record.node != NOBODY:
            raise tx.refused("AlreadyJudged", **key, audit=audit)
        index = self.audited_index(tx, number, round_, audit)
        self._check_contributor(tx, number, round_, index, node)
        subject = own.audit_subject(audit)
        verdict = self._medians(tx, number, round_, 0, subject, node, words).upper
        if verdict >= 0:
            raise tx.refused("NotFailed", **key, subject=subject, median=verdict)
        job = self._jobs.jobs[number]
        record.node = node
        record.appeal_until = tx.timestamp + job.terms.challenge_window_s
        tx.emit(_NAME, "AuditFailed", **key, node=node, audit=audit, appealUntil=record.appeal_until)
        self._jobs.ban(tx, job, node)

    def appeal(self, tx: Transaction, number: int, round_: int, audit: int) -> None:
        record = self.audits[number, round_, audit]
        node, until = record.node, record.appeal_until
        if not self._acts_for(tx, node) or record.appealed or tx.timestamp >= until:
            raise tx.refused(
                "MayNotAppeal", job=number, round=round_, audit=audit, account=tx.sender, until=until
            )
        record.appealed = True
        jury = self._panels[number, round_, audit + 1]
        jury.started_at, jury.draw_block = tx.timestamp, tx.block
        tx.emit(_NAME, "Appealed", job=number, round=round_, node=node, audit=audit)

    def decide(self, tx: Transaction, number: int, round_: int, audit: int, words: Sequence[Word]) -> None:
        record = self.audits[number, round_, audit]
        key: dict[str, object] = {"job": number, "round": round_}
        node = record.node
        if node == NOBODY or record.decided:
            raise tx.refused("NothingToDecide", **key, audit=audit)
        upheld = True
        if record.appealed:
            if self._phase(number, round_, audit + 1, tx.timestamp) is not PanelPhase.DONE:
                raise tx.refused("NotDone", **key, panel=audit + 1)
            upheld = self._medians(tx, number, round_, audit + 1, 0, node, words).upper < 0
        elif tx.timestamp < record.appeal_until:
            raise tx.refused("AppealOpen", **key, audit=audit, until=record.appeal_until)
        record.decided = True
        tx.emit(_NAME, "AuditDecided", **key, node=node, audit=audit, upheld=upheld)
        if upheld:
            self._slash(tx, number, node, 2 if record.appealed else 1)
        else:
            self._jobs.unban(tx, self._jobs.jobs[number], node)

    def denounce(
        self, tx: Transaction, number: int, round_: int, publisher: Address, words: Sequence[Word]
    ) -> None:
        own = self._done_panel(tx, number, round_, 0)
        key: dict[str, object] = {"job": number, "round": round_}
        if (number, round_) in self._denounced:
            raise tx.refused("AlreadyJudged", **key, audit=0)
        publication = self._jobs.jobs[number].publication(round_)
        assert publication is not None  # its panel is done  # noqa: S101
        self._check_contributor(tx, number, round_, publication.publisher_index, publisher)
        verdict = self._medians(tx, number, round_, 0, own.model_subject, publisher, words).upper
        if verdict >= 0:
            raise tx.refused("NotFailed", **key, subject=own.model_subject, median=verdict)
        self._denounced.add((number, round_))
        tx.emit(_NAME, "ModelDenounced", **key, publisher=publisher)
        self._slash(tx, number, publisher)

    def open_shard(self, tx: Transaction, number: int, round_: int, audit: int, boxes: Cid) -> None:
        index = self.audited_index(tx, number, round_, audit)
        revealed = self._jobs.jobs[number].revealed
        senders = (tx.sender, self._registry.principal_of(tx.sender))
        node = next((sender for sender in senders if (round_, sender) in revealed), senders[1])
        self._check_contributor(tx, number, round_, index, node)
        cid = "0x" + boxes.digest.hex()
        tx.emit(_NAME, "ShardOpened", job=number, round=round_, node=node, audit=audit, boxes=cid)

    # -- views ----------------------------------------------------------------------------------------
    def panel(self, number: int, round_: int, panel: int, now: int) -> PanelState:
        job = self._jobs.jobs.get(number)
        publication = None if job is None else job.publication(round_)
        own = self._panels[number, round_, panel]
        if job is None or publication is None or (panel and not own.started_at):
            return NO_PANEL
        started_at = own.started_at if panel else publication.published_at
        window_s = job.terms.score_window_s if job.terms.evaluators else 0
        contributions = 0 if panel else publication.contributions
        datasets = 0 if panel else own.datasets
        audits = 0 if panel else min(contributions, job.terms.audits)
        return PanelState(
            phase=own.phase(now, started_at, window_s),
            seats=len(own.seats),
            committed=len(own.committed),
            revealed=len(own.revealed),
            subjects=1 if panel else contributions + datasets + audits + 1,
            contributions=contributions,
            datasets=datasets,
            audits=audits,
            commit_until=started_at + window_s,
            reveal_until=started_at + 2 * window_s,
            seed=own.seed,
        )

    def seats(self, number: int, round_: int, panel: int) -> tuple[Seat, ...]:
        """Who sits where: as drawn, or as it would be drawn now; empty if it could not."""
        own = self._panels[number, round_, panel]
        if own.is_drawn:
            return tuple(Seat(seat.evaluator, seat.weight) for seat in own.seats)
        tx = Transaction("seats", _VIEW, 0, self._blocks.newest.number + 1)
        job, _, draw_block = self._clock(tx, number, round_, panel)
        block_hash = self._blocks.hash_seen(draw_block, tx.block)
        if block_hash is None:
            return ()
        seed = sortition.seed_of(block_hash, number, round_, panel)
        return tuple(Seat(i.node, i.weight) for i in self._drawn(seed, draw_block, job.terms.evaluators))

    def seat(self, number: int, round_: int, panel: int, seat: int) -> Seat | None:
        seats = self._panels[number, round_, panel].seats
        return seats[seat] if seat < len(seats) else None

    def seat_of(self, number: int, round_: int, panel: int, account: Address) -> tuple[int, bool] | None:
        return self._panels[number, round_, panel].seat_of(account)

    def shown_by(self, number: int, round_: int) -> tuple[tuple[Seat, bool], ...]:
        """The seats of a round's panel, and whether each showed its scores."""
        own = self._panels[number, round_, 0]
        return tuple((seat, at in own.revealed) for at, seat in enumerate(own.seats))

    def done(self, number: int, round_: int, now: int) -> bool:
        return self._phase(number, round_, 0, now) is PanelPhase.DONE

    def outcome(self, job: Job, round_: int, now: int) -> tuple[bool, int]:
        """Whether a round is scored, and one more than the highest payee number among its evaluators."""
        publication = job.publication(round_)
        assert publication is not None  # it is to be settled  # noqa: S101
        own = self._panels[job.job, round_, 0]
        phase = own.phase(now, publication.published_at, job.terms.score_window_s)
        return phase is PanelPhase.DONE, own.payees

    def audited_index(self, tx: Transaction, number: int, round_: int, audit: int) -> int:
        own = self._panels[number, round_, 0]
        if not own.is_drawn:
            raise tx.refused("NotDrawn", job=number, round=round_, panel=0)
        if audit >= own.audits:
            subject = own.audit_subject(audit)
            raise tx.refused("NoSubject", job=number, round=round_, panel=0, subject=subject)
        return sortition.audited_index(own.seed, audit, own.contributions)

    def median(
        self,
        tx: Transaction,
        number: int,
        round_: int,
        panel: int,
        subject: int,
        excluded: Address,
        words: Sequence[Word],
    ) -> int:
        """The lower one, which is paid for."""
        return self._medians(tx, number, round_, panel, subject, excluded, words).lower

    def _medians(
        self,
        tx: Transaction,
        number: int,
        round_: int,
        panel: int,
        subject: int,
        excluded: Address,
        words: Sequence[Word],
    ) -> Medians:
        own = self._panels[number, round_, panel]
        key = {"job": number, "round": round_, "panel": panel}
        subjects = own.subjects(panel)
        if own.is_drawn and subject >= subjects:
            raise tx.refused("NoSubject", **key, subject=subject)
        judges = [s for s in sorted(own.revealed) if own.seats[s].evaluator != excluded]
        votes = []
        for seat, word in zip(judges, words, strict=False):
            root = own.seats[seat].root
            if word.seat != seat or not vectors.holds(root, subjects, subject, word.word, word.proof):
                raise tx.refused("InvalidWord", **key, seat=seat)
            votes.append(Vote(vectors.score_in(word.word, subject), seat, own.seats[seat].weight))
        if len(judges) != len(words):
            raise tx.refused("WordsMissing", **key, words=len(words), expected=len(judges))
        return weighted_medians(votes)

    # -- the draw -------------------------------------------------------------------------------------
    def _check_draw(
        self, tx: Transaction, number: int, round_: int, panel: int
    ) -> tuple[Job, int, int, bytes]:
        job, started_at, draw_block = self._clock(tx, number, round_, panel)
        key = {"job": number, "round": round_, "panel": panel}
        if tx.timestamp >= started_at + job.terms.score_window_s:
            raise tx.refused("NotDrawn", **key)
        if tx.block <= draw_block:
            raise tx.refused("DrawBlockAhead", **key, drawBlock=draw_block)
        block_hash = self._blocks.hash_seen(draw_block, tx.block)
        if block_hash is None:
            raise tx.refused("DrawBlockTooOld", **key, drawBlock=draw_block)
        return job, started_at, draw_block, sortition.seed_of(block_hash, number, round_, panel)

    def _draw(self, tx: Transaction, number: int, round_: int, panel: int) -> None:
        job, started_at, draw_block, seed = self._check_draw(tx, number, round_, panel)
        own = self._panels[number, round_, panel]
        own.seed = seed
        own.started_at = started_at
        own.window_s = job.terms.score_window_s
        publication = job.publication(round_)
        if panel == 0 and publication is not None:
            # from now on it is settled what the round's panel judges
            own.contributions = publication.contributions
            own.datasets = len(job.datasets)
            own.audits = min(publication.contributions, job.terms.audits)
        drawn = self._drawn(seed, draw_block, job.terms.evaluators)
        own.seats = [Seat(interval.node, interval.weight) for interval in drawn]
        tx.emit(
            _NAME,
            "PanelDrawn",
            job=number,
            round=round_,
            panel=panel,
            evaluators=[interval.node for interval in drawn],
            weights=[interval.weight for interval in drawn],
            subjects=own.subjects(panel),
        )

    def _drawn(self, seed: bytes, block: int, most: int) -> tuple[Interval, ...]:
        evaluators = self._registry.evaluators
        return sortition.draw(
            seed, evaluators.total_at(block), lambda point: evaluators.owner_at(point, block), most
        )

    def _clock(self, tx: Transaction, number: int, round_: int, panel: int) -> tuple[Job, int, int]:
        """When the panel's clock started, and the block that it is drawn from."""
        own = self._panels[number, round_, panel]
        started_at, draw_block = own.started_at, own.draw_block
        job = self._jobs.jobs.get(number)
        publication = None if job is None else job.publication(round_)
        if panel == 0 and publication is not None:
            started_at, draw_block = publication.published_at, draw_block or publication.seal_block
        if job is None or not started_at or not job.terms.evaluators:
            raise tx.refused("NoPanel", job=number, round=round_, panel=panel)
        return job, started_at, draw_block

    # -- checks ---------------------------------------------------------------------------------------
    def _check_commit(
        self, tx: Transaction, number: int, round_: int, panel: int, seat: int, commitment: bytes
    ) -> None:
        """What would be refused after the draw, which then must not have been."""
        job, _, draw_block, seed = self._check_draw(tx, number, round_, panel)
        drawn = self._drawn(seed, draw_block, job.terms.evaluators)
        key = {"job": number, "round": round_, "panel": panel}
        if not drawn:
            raise tx.refused("CommitOver", **key)
        if seat >= len(drawn) or not self._acts_for(tx, drawn[seat].node):
            raise tx.refused("NotYourSeat", **key, seat=seat, account=tx.sender)
        if not any(commitment):
            raise tx.refused("EmptyCommitment")

    def _phase(self, number: int, round_: int, panel: int, now: int) -> PanelPhase:
        return self.panel(number, round_, panel, now).phase

    def _may_decline(self, number: int, round_: int, own: Panel, evaluator: Address) -> bool:
        """An evaluator that has committed has taken its seat, and is not asked about."""
        job = self._jobs.jobs[number]
        publication = job.publication(round_)
        assert publication is not None  # its panel is drawn  # noqa: S101
        draw_block, bond_wei = own.draw_block or publication.seal_block, job.terms.bond_wei
        return self._registry.may_decline(evaluator, draw_block, own.window_s, bond_wei)

    def _done_panel(self, tx: Transaction, number: int, round_: int, panel: int) -> Panel:
        own = self._panels[number, round_, panel]
        if not own.is_drawn:
            raise tx.refused("NotDrawn", job=number, round=round_, panel=panel)
        if own.phase_now(tx.timestamp) is not PanelPhase.DONE:
            raise tx.refused("NotDone", job=number, round=round_, panel=panel)
        return own

    def _own_seat(self, tx: Transaction, own: Panel, number: int, round_: int, panel: int, seat: int) -> Seat:
        if seat >= len(own.seats) or not self._acts_for(tx, own.seats[seat].evaluator):
            raise tx.refused(
                "NotYourSeat", job=number, round=round_, panel=panel, seat=seat, account=tx.sender
            )
        return own.seats[seat]

    def _acts_for(self, tx: Transaction, node: Address) -> bool:
        """True if the sender is the node, or its delegate."""
        return node != NOBODY and node in (tx.sender, self._registry.principal_of(tx.sender))

    def _check_contributor(
        self, tx: Transaction, number: int, round_: int, index: int, node: Address
    ) -> None:
        own = self._jobs.jobs[number].revealed.get((round_, node))
        if own is None or own.index != index:
            raise tx.refused("NotContributor", job=number, round=round_, subject=index, node=node)

    def _slash(self, tx: Transaction, number: int, node: Address, bonds: int = 1) -> None:
        self._registry.slash(tx, node, bonds * self._jobs.jobs[number].terms.bond_wei, tx.sender)
