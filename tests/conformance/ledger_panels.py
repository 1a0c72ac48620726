"""What every `Ledger` does about panels: who is drawn, what scores cost, who is punished. Part of the
CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dfl_ledger import sortition, vectors
from dfl_ledger.errors import Reverted
from dfl_ledger.records import BANNED, REFUSED, PanelPhase, Phase, Seat
from tests.conformance.ledger_bench import (
    BOND,
    MILLI,
    SCORED,
    alike,
    bench,
    commit_then_reveal,
    finish,
    judge,
    open_job,
    play,
    score,
    show,
    stake,
    words,
)
from tests.conformance.ledger_story import (
    ETHER,
    STAKE,
    TERMS,
    World,
    cid,
    commit_all,
    member,
    refused,
    reveal_all,
    salt,
    state,
    turns,
    work,
)

AUDITED = replace(SCORED, audits=1)


def check_stake_and_delegates(world: World) -> None:
    cold, hot, friend = member(world), world.wallet(), world.wallet()
    friend.top_up(cold.address, ETHER)
    assert stake(cold) == STAKE + ETHER
    with refused("NodeUnknown", node=hot.address):
        friend.top_up(hot.address, 1)
    with refused("NotNamed", node=cold.address, delegate=hot.address):
        hot.act_for(cold.address)
    assert cold.delegate_of(cold.address) is None
    cold.set_delegate(hot.address)
    assert hot.principal_of(hot.address) == hot.address
    hot.act_for(cold.address)
    assert (hot.principal_of(hot.address), cold.delegate_of(cold.address)) == (cold.address, hot.address)
    hot.limit_seats(2, STAKE)
    assert cold.may_decline(cold.address, cold.head(), 1, STAKE)
    assert not cold.may_decline(hot.address, cold.head(), 1, STAKE)
    with refused("IsDelegate", delegate=hot.address, node=cold.address):
        hot.register(b"k" * 32, 0, [])
    with refused("DelegateIsNode", delegate=cold.address):
        cold.act_for(cold.address)

    # The hot key works, the cold wallet is the node.
    requester, other = world.wallet(), member(world)
    job = requester.create_job(TERMS)
    hot.join(job)
    other.join(job)
    assert hot.active_round(job, cold.address) == 1
    own = work(cold, job)
    hot.commit(own, salt(cold))
    other.commit(work(other, job), salt(other))
    hot.reveal(own, salt(cold))
    found = hot.contribution(job, 1, cold.address)
    assert found is not None
    assert (found.index, found.samples, hot.contribution(job, 1, hot.address)) == (0, 640, None)

    # Taken back, the key acts for nobody.
    cold.set_delegate(None)
    assert hot.principal_of(hot.address) == hot.address
    hot.act_for(None)
    hot.register(b"k" * 32, 0, [])
    cold.unbond()
    with refused("StakeLocked"):
        cold.withdraw()
    with refused("NodeIsUnbonding", node=cold.address):
        friend.top_up(cold.address, 1)


def check_evaluators(world: World) -> None:
    poor = world.wallet()
    poor.register(b"k" * 32, poor.min_evaluator_stake_wei() - 1, [])
    with refused("EvaluatorStakeTooLow", node=poor.address):
        poor.enlist()
    with refused("NotEnlisted", node=poor.address):
        poor.delist()
    with bench(world, 20, 30) as (a, b):
        before = a.head()
        with refused("AlreadyEnlisted", node=a.address):
            a.enlist()
        assert a.evaluator_weight_at(before) == 50 * ETHER
        found = {a.evaluator_at(point * ETHER, before).node for point in (0, 19, 20, 49)}
        assert found == {a.address, b.address}
        interval = a.evaluator_at(49 * ETHER, before)
        assert interval.start <= 49 * ETHER < interval.start + interval.weight
        b.top_up(b.address, 5 * ETHER)
        assert (a.evaluator_weight_at(a.head()), a.evaluator_weight_at(before)) == (55 * ETHER, 50 * ETHER)
        b.unbond()
        assert not a.is_evaluator(b.address)
        assert a.evaluator_weight_at(a.head()) == 20 * ETHER


def check_nobody_is_punished_for_a_seat_it_declined(world: World) -> None:
    """Whoever creates a job that gives nobody time for its scores must not live on the bonds."""
    with bench(world, 20, 30, 50) as judges:
        quick, bold, late = judges
        least = quick.min_evaluator_stake_wei()
        for window_s, bond_wei in ((601, STAKE), (600, least - 1)):
            with refused("SeatLimitOutOfRange", leastWindow=window_s, mostBond=bond_wei, mostWindow=600):
                quick.limit_seats(window_s, bond_wei)
        assert not quick.may_decline(quick.address, quick.head(), 1, 2**96 - 1)
        quick.limit_seats(301, 2**96 - 1)
        bold.limit_seats(300, BOND)
        (limited,) = (e for e in quick.events(quick.head(), quick.head()) if e.name == "SeatsLimited")
        assert limited.args == {"node": bold.address, "leastWindow": 300, "mostBond": BOND}
        since = quick.head()
        for window_s, bond_wei, declined in ((300, BOND, False), (299, 0, True), (300, BOND + 1, True)):
            assert bold.may_decline(bold.address, since, window_s, bond_wei) is declined
            assert not bold.may_decline(bold.address, since - 1, window_s, bond_wei)

        requester, job, nodes = open_job(world, SCORED)
        play(job, nodes)
        publication = requester.publication(job, 1)
        assert publication is not None
        late.limit_seats(600, least)  # after the block that the panel is drawn from
        assert late.may_decline(late.address, late.head(), SCORED.score_window_s, BOND)
        requester.draw(job, 1)
        world.reach(requester.panel(job, 1).reveal_until)
        for number, seat in enumerate(requester.seats(job, 1)):
            before = requester.node(seat.evaluator)
            assert before is not None
            if seat.evaluator == quick.address:
                with refused("SeatDeclined", seat=number, evaluator=quick.address):
                    requester.punish_seat(job, 1, 0, number)
                assert requester.node(seat.evaluator) == before
            else:
                requester.punish_seat(job, 1, 0, number)
                assert requester.node(seat.evaluator) == replace(before, stake_wei=before.stake_wei - BOND)


def check_whoever_commits_has_taken_its_seat(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        for ledger in judges:
            ledger.limit_seats(600, STAKE)
        requester, job, nodes = open_job(world, SCORED)
        played = play(job, nodes)
        judge(judges[:1], played, alike(judges[:1], (1, 2, 1)))
        finish(world, played)
        for number, seat in enumerate(requester.seats(job, 1)):
            if seat.evaluator == judges[0].address:
                requester.punish_seat(job, 1, 0, number)
            else:
                with refused("SeatDeclined", seat=number):
                    requester.punish_seat(job, 1, 0, number)
        assert [stake(ledger) for ledger in judges] == [20 * ETHER - BOND, 30 * ETHER, 50 * ETHER]


def check_the_seal_is_the_block_of_the_last_contribution(world: World) -> None:
    """While anyone could choose when to reveal, nobody knew who would be audited."""
    _, job, nodes = open_job(world, TERMS)
    commit_all(nodes, job)
    committed = nodes[0].head()
    reveal_all(nodes, job)
    sealed = nodes[0].head()
    turns(nodes, job)[0][1].publish_model(job, 1, cid("model 1"))
    first = nodes[0].publication(job, 1)
    assert first is not None
    assert committed < first.seal_block == sealed < nodes[0].head()

    # Not all have revealed: it is the block in which their time was called over.
    other, few, members = open_job(world, replace(TERMS, quorum=1))
    commit_all(members, few)
    reveal_all(members[:1], few)
    world.reach(state(other, few).deadline)
    other.advance(few)
    called = other.head()
    turns(members[:1], few)[0][1].publish_model(few, 1, cid("model 1"))
    second = other.publication(few, 1)
    assert second is not None
    assert second.seal_block == called


def check_the_draw_is_the_stakes_and_the_block(world: World) -> None:
    with bench(world, 20, 30, 50, 80, 5) as judges:
        _, job, nodes = open_job(world, SCORED)
        with refused("NoPanel", job=job, round=1):
            nodes[0].seats(job, 1)
        played = play(job, nodes)
        publication = nodes[0].publication(job, 1)
        assert publication is not None
        # Whoever comes now, comes too late for this round.
        judges[4].top_up(judges[4].address, 900 * ETHER)
        block = publication.seal_block
        seed = sortition.seed_of(bytes.fromhex(nodes[0].block(block).hash[2:]), job, 1, 0)
        total = nodes[0].evaluator_weight_at(block)
        assert total == 185 * ETHER
        drawn = sortition.draw(seed, total, lambda point: nodes[0].evaluator_at(point, block), 3)
        seats = tuple(Seat(interval.node, interval.weight) for interval in drawn)
        assert nodes[0].seats(job, 1) == seats
        assert nodes[0].panel(job, 1).phase is PanelPhase.COMMIT
        nodes[0].draw(job, 1)
        with refused("AlreadyDrawn", job=job, panel=0):
            nodes[0].draw(job, 1)
        assert nodes[0].seats(job, 1) == seats
        state_ = nodes[0].panel(job, 1)
        assert (state_.seed, state_.seats, state_.subjects) == (seed, 3, 3)
        assert (state_.contributions, state_.datasets, state_.audits, state_.model_subject) == (2, 0, 0, 2)
        assert nodes[0].seat_of(job, 1, 0, seats[1].evaluator) == (1, False)
        assert nodes[0].seat_of(job, 1, 0, nodes[0].address) is None
        assert nodes[0].seat(job, 1, 0, 2) == seats[2]
        finish(world, played)
        assert nodes[0].panel(job, 1).phase is PanelPhase.DONE


def check_scores(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        _, job, nodes = open_job(world, SCORED)
        played = play(job, nodes)
        seats = nodes[0].seats(job, 1)
        by = {ledger.address: ledger for ledger in judges}
        first, second = by[seats[0].evaluator], by[seats[1].evaluator]
        vector = vectors.encode((5, 7, 1))
        sealed = vectors.commitment(job, 1, 0, first.address, vector, b"s" * 32)
        with refused("NotYourSeat", seat=0, account=second.address):
            second.commit_scores(job, 1, 0, 0, sealed)
        with refused("EmptyCommitment"):
            first.commit_scores(job, 1, 0, 0, bytes(32))
        first.commit_scores(job, 1, 0, 0, sealed)
        assert nodes[0].payee_of(job, first.address) == 2
        with refused("AlreadyDone", seat=0):
            first.commit_scores(job, 1, 0, 0, sealed)
        with refused("NotRevealing", job=job):
            first.reveal_scores(job, 1, 0, 0, vector, b"s" * 32)
        assert not nodes[0].scored(job, 1)

        world.reach(nodes[0].panel(job, 1).commit_until)
        assert nodes[0].panel(job, 1).phase is PanelPhase.REVEAL
        with refused("CommitOver", job=job):
            second.commit_scores(job, 1, 0, 1, sealed)
        with refused("NothingCommitted", seat=1):
            second.reveal_scores(job, 1, 0, 1, vector, b"s" * 32)
        with refused("WrongLength", length=16, expected=24):
            first.reveal_scores(job, 1, 0, 0, vector[:16], b"s" * 32)
        with refused("ScoresMismatch", seat=0):
            first.reveal_scores(job, 1, 0, 0, vector, b"t" * 32)
        first.reveal_scores(job, 1, 0, 0, vector, b"s" * 32)
        assert nodes[0].scored(job, 1)  # all who committed have revealed
        assert nodes[0].seat(job, 1, 0, 0) == Seat(
            first.address, seats[0].weight, vectors.VectorTree(vector).root
        )
        event = nodes[0].events(0, nodes[0].head())[-1]
        assert (event.name, event.args["vector"]) == ("ScoresRevealed", "0x" + vector.hex())
        word = [vectors.word_of(0, vector, 1)]
        assert nodes[0].median(job, 1, 0, 1, None, word) == 7
        with refused("WordsMissing", words=0, expected=1):
            nodes[0].median(job, 1, 0, 1, None, [])
        with refused("InvalidWord", seat=0):
            nodes[0].median(job, 1, 0, 1, None, [replace(word[0], word=bytes(32))])
        with refused("NoSubject", subject=3):
            nodes[0].median(job, 1, 0, 3, None, word)

        # Who withheld pays: a tenth to the reporter, the rest burned. Once.
        reporter = world.wallet()
        for seat in (1, 2):
            reporter.punish_seat(job, 1, 0, seat)
            with refused("AlreadyDone", seat=seat):
                reporter.punish_seat(job, 1, 0, seat)
        with refused("NothingHidden", seat=0):
            reporter.punish_seat(job, 1, 0, 0)
        assert reporter.balance_wei(reporter.address) == 1000 * ETHER + 2 * (BOND // 10)
        assert stake(second) == seats[1].weight - BOND
        assert played.round == 1


def check_the_median_is_by_stake_and_without_the_judged(world: World) -> None:
    """A contributor that is an evaluator too does not judge its own work."""
    with bench(world, 20, 30, 40) as judges:
        requester, other = world.wallet(), member(world)
        job = requester.create_job(SCORED)
        nodes = [judges[0], other]
        for node in nodes:
            node.join(job)
        played = play(job, nodes)
        scores = {
            judges[0].address: (900 * MILLI, 10 * MILLI, 1),
            judges[1].address: (30 * MILLI, 20 * MILLI, 1),
            judges[2].address: (50 * MILLI, 60 * MILLI, 1),
        }
        shown = score(judges, played, scores)
        own = judges[0].address
        # of (30 by 30, 50 by 40) the lower median is 50; of (10 by 20, 20 by 30, 60 by 40) it is 20
        assert requester.median(job, 1, 0, 0, own, words(played, shown, 0, own)) == 50 * MILLI
        assert requester.median(job, 1, 0, 1, None, words(played, shown, 1)) == 20 * MILLI


def check_outliers(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        requester, job, nodes = open_job(world, SCORED)
        played = play(job, nodes)
        odd = judges[0]
        scores = alike(judges, (40 * MILLI, 10 * MILLI, 1)) | {odd.address: (51 * MILLI, REFUSED, 1)}
        shown = score(judges, played, scores)
        found = requester.seat_of(job, 1, 0, odd.address)
        assert found is not None
        seat = found[0]
        of = nodes[0].address
        with refused("NotContributor", subject=1, node=of):
            requester.penalize(job, 1, seat, 1, of, words(played, shown, 1))
        with refused("NoSubject", subject=2):
            requester.penalize(job, 1, seat, 2, None, words(played, shown, 2))
        honest = next(s for s in shown if s != seat)
        with refused("NoOutlier", seat=honest, score=40 * MILLI, median=40 * MILLI):
            requester.penalize(job, 1, honest, 0, of, words(played, shown, 0))
        requester.penalize(job, 1, seat, 0, of, words(played, shown, 0))
        assert stake(odd) == 20 * ETHER - BOND
        with refused("AlreadyDone", seat=seat):
            requester.penalize(job, 1, seat, 1, nodes[1].address, words(played, shown, 1))


def check_nobody_loses_by_the_word_of_half(world: World) -> None:
    """Members judge each other, all with the same stake: without the judged two are left, and one may lie."""
    with bench(world, 30, 30, 30) as judges:
        requester = world.wallet()
        job = requester.create_job(replace(AUDITED, min_nodes=3))
        for node in judges:
            node.join(job, shard=b"r" * 32)
        played = play(job, judges)
        requester.draw(job, 1)
        audited = requester.audited_index(job, 1, 0)
        publisher = played.nodes.index(played.publisher)
        # Each is judged wrongly by the one after it, and rightly by the one after that.
        honest = (40 * MILLI, 40 * MILLI, 40 * MILLI, 1, 1)
        scores = {node.address: list(honest) for node in played.nodes}
        lies = {0: -90 * MILLI, 1: 90 * MILLI, 2: REFUSED, 3: -1, 4: -1}
        for judged, (subject, lie) in zip((0, 1, 2, audited, publisher), lies.items(), strict=True):
            scores[played.nodes[(judged + 1) % 3].address][subject] = lie
        shown = score(judges, played, scores)
        for subject, judged in enumerate(played.nodes):
            own = judged.address
            for said, seat in enumerate(requester.seats(job, 1)):
                if seat.evaluator != own:
                    told = scores[seat.evaluator][subject]
                    with refused("NoOutlier", seat=said, score=told, median=told):
                        requester.penalize(job, 1, said, subject, own, words(played, shown, subject, own))
        own = played.nodes[audited].address
        with refused("NotFailed", subject=3, median=1):
            requester.accuse(job, 1, 0, own, words(played, shown, 3, own))
        own = played.publisher.address
        with refused("NotFailed", subject=4, median=1):
            requester.denounce(job, 1, own, words(played, shown, 4, own))
        assert [stake(node) for node in judges] == [30 * ETHER] * 3


def check_a_jury_in_doubt_clears(world: World) -> None:
    for verdicts in ((-1, 1), (0, 0), (-1, 0)):
        with bench(world, 30, 30) as judges:
            requester, job, nodes = open_job(world, AUDITED, 2)
            played = play(job, nodes)
            shown = score(judges, played, alike(judges, (3, 2, -1, 1)))
            accused = nodes[requester.audited_index(job, 1, 0)]
            requester.accuse(job, 1, 0, accused.address, words(played, shown, 2))
            accused.appeal(job, 1, 0)
            nodes[0].top_up(nodes[0].address, 1)  # a block after the appeal's, for the jury to be drawn
            before = stake(accused)
            said = {judge_.address: (verdict,) for judge_, verdict in zip(judges, verdicts, strict=True)}
            shown = score(judges, played, said, panel=1)
            requester.decide(job, 1, 0, words(played, shown, 0, panel=1))
            assert stake(accused) == before
            assert requester.active_round(job, accused.address) == 0


def check_a_failed_audit(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        requester, job, nodes = open_job(world, AUDITED, 3)
        with refused("ShardMissing", job=job):
            member(world).join(job)
        played = play(job, nodes)
        with refused("NotDrawn", job=job):
            requester.audited_index(job, 1, 0)
        shown = score(judges, played, alike(judges, (3, 2, 1, -1, 1)))
        index = requester.audited_index(job, 1, 0)
        guilty, innocent = nodes[index], nodes[(index + 1) % 3]
        assert index == sortition.audited_index(requester.panel(job, 1).seed, 0, 3)
        subject = requester.panel(job, 1).audit_subject(0)
        assert subject == 3
        with refused("NotContributor", node=innocent.address):
            innocent.open_shard(job, 1, 0, cid("boxes"))
        guilty.open_shard(job, 1, 0, cid("boxes"))
        with refused("NotContributor", node=innocent.address):
            requester.accuse(job, 1, 0, innocent.address, words(played, shown, subject))
        with refused("NothingToDecide", audit=0):
            requester.decide(job, 1, 0, [])
        requester.accuse(job, 1, 0, guilty.address, words(played, shown, subject))
        assert requester.active_round(job, guilty.address) == BANNED
        with refused("AlreadyJudged", audit=0):
            requester.accuse(job, 1, 0, guilty.address, words(played, shown, subject))
        with refused("NotActive", node=guilty.address):
            guilty.commit(work(guilty, job), salt(guilty))
        with refused("Banned", node=guilty.address):
            guilty.join(job)
        record = requester.audit(job, 1, 0)
        assert record is not None
        assert (record.node, record.appealed, record.decided) == (guilty.address, False, False)
        with refused("AppealOpen", audit=0):
            requester.decide(job, 1, 0, [])
        with refused("MayNotAppeal", account=innocent.address):
            innocent.appeal(job, 1, 0)
        world.reach(record.appeal_until)
        with refused("MayNotAppeal", account=guilty.address):
            guilty.appeal(job, 1, 0)
        requester.decide(job, 1, 0, [])
        assert stake(guilty) == STAKE - BOND
        with refused("NothingToDecide", audit=0):
            requester.decide(job, 1, 0, [])
        with refused("Banned", node=guilty.address):
            requester.expel(job, guilty.address)


def check_an_appeal(world: World) -> None:
    for verdict in (1, -1):
        with bench(world, 20, 30, 50) as judges:
            requester, job, nodes = open_job(world, AUDITED, 2)
            played = play(job, nodes)
            shown = score(judges, played, alike(judges, (3, 2, -1, 1)))
            accused = nodes[requester.audited_index(job, 1, 0)]
            accused.top_up(accused.address, 10 * ETHER)
            before = stake(accused)
            requester.accuse(job, 1, 0, accused.address, words(played, shown, 2))
            accused.appeal(job, 1, 0)
            jury = requester.panel(job, 1, 1)
            assert (jury.phase, jury.subjects) == (PanelPhase.COMMIT, 1)
            requester.top_up(requester.address, 0) if requester.node(requester.address) else None
            nodes[0].top_up(nodes[0].address, 1)  # a block after the appeal's, for the jury to be drawn
            with refused("NotDone", panel=1):
                requester.decide(job, 1, 0, [])
            before = stake(accused)
            said = score(judges, played, alike(judges, (verdict,)), panel=1)
            # jurors earn nothing, and so get no number
            requester.decide(job, 1, 0, words(played, said, 0, panel=1))
            if verdict > 0:
                assert stake(accused) == before
                assert requester.active_round(job, accused.address) == 0
                accused.join(job)
            else:
                assert stake(accused) == before - 2 * BOND
                assert requester.active_round(job, accused.address) == BANNED


def check_a_wrong_model(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        requester, job, nodes = open_job(world, SCORED)
        played = play(job, nodes)
        shown = score(judges, played, alike(judges, (3, 2, -1)))
        other = next(node for node in nodes if node is not played.publisher)
        with refused("NotContributor", node=other.address):
            requester.denounce(job, 1, other.address, words(played, shown, 2))
        requester.denounce(job, 1, played.publisher.address, words(played, shown, 2))
        assert stake(played.publisher) == STAKE - BOND
        with refused("AlreadyJudged"):
            requester.denounce(job, 1, played.publisher.address, words(played, shown, 2))

        again = play(job, nodes)
        shown = score(judges, again, alike(judges, (3, 2, 1)))
        with refused("NotFailed", subject=2, median=1):
            requester.denounce(job, 2, again.publisher.address, words(again, shown, 2))


def check_a_reveal_withheld(world: World) -> None:
    terms = replace(SCORED, evaluators=0, evaluator_bps=0, quorum=1)
    requester, job, nodes = open_job(world, terms)
    with refused("NothingWithheld", round=1):
        requester.punish(job, 1, nodes[0].address)
    round_ = commit_then_reveal(job, nodes, nodes[:1], world)
    requester.punish(job, round_, nodes[1].address)
    assert stake(nodes[1]) == STAKE - BOND
    assert requester.balance_wei(requester.address) == 800 * ETHER + BOND // 10
    for node in nodes:
        with refused("NothingWithheld", node=node.address):
            requester.punish(job, round_, node.address)

    # Nobody stays a member with less than the stake.
    with refused("StakeSuffices", node=nodes[0].address):
        requester.expel(job, nodes[0].address)
    requester.expel(job, nodes[1].address)
    assert requester.active_round(job, nodes[1].address) == 0
    with refused("NotActive", node=nodes[1].address):
        requester.expel(job, nodes[1].address)


def check_a_round_that_nobody_scored(world: World) -> None:
    _, job, nodes = open_job(world, SCORED)
    play(job, nodes)
    before = nodes[0].panel(job, 1)
    assert (before.phase, before.seats, before.subjects) == (PanelPhase.COMMIT, 0, 3)
    assert not nodes[0].scored(job, 1)
    world.reach(before.commit_until)
    assert nodes[0].scored(job, 1)
    with refused("NotDrawn", job=job):
        nodes[0].draw(job, 1)
    with refused("NotDrawn", job=job):
        nodes[0].punish_seat(job, 1, 0, 0)
    with pytest.raises(Reverted):
        nodes[0].commit_scores(job, 1, 0, 0, b"c" * 32)
    assert nodes[0].panel(job, 2).phase is PanelPhase.NONE


def check_shards_are_unsealed_in_turn(world: World) -> None:
    from eth_hash.auto import keccak

    last = b"k" * 32
    first = keccak(last)
    requester, job, nodes = open_job(world, replace(TERMS, seal_anchor=keccak(first)))
    assert requester.unsealed(job) == (0, keccak(first))
    with refused("ShardNotDue", position=0, next=0):
        requester.unseal(job, 0, first)
    for node in nodes:
        node.commit(work(node, job), salt(node))
    assert state(requester, job).phase is Phase.REVEAL
    with refused("WrongKey", position=0):
        requester.unseal(job, 0, last)
    with refused("ShardNotDue", position=1, next=0):
        requester.unseal(job, 1, last)
    nodes[1].unseal(job, 0, first)
    assert requester.unsealed(job) == (1, first)
    with refused("ShardNotDue", position=0, next=1):
        requester.unseal(job, 0, first)
    with refused("ShardNotDue", position=1, next=1):
        requester.unseal(job, 1, last)


def check_juries_and_panels_do_not_mix(world: World) -> None:
    with bench(world, 20, 30) as judges:
        requester, job, nodes = open_job(world, AUDITED)
        played = play(job, nodes)
        shown = judge(judges, played, alike(judges, (3, 2, 1, 1)))
        show(judges, played, shown)
        assert requester.panel(job, 1, 1).phase is PanelPhase.NONE
        with refused("NotFailed", subject=2, median=1):
            index = requester.audited_index(job, 1, 0)
            requester.accuse(job, 1, 0, nodes[index].address, words(played, shown, 2))
        with refused("NoSubject"):
            requester.audited_index(job, 1, 1)
        with refused("NoPanel", panel=1):
            requester.seats(job, 1, 1)


PANEL_CHECKS: tuple[Callable[[World], None], ...] = (
    check_stake_and_delegates,
    check_evaluators,
    check_nobody_is_punished_for_a_seat_it_declined,
    check_whoever_commits_has_taken_its_seat,
    check_the_seal_is_the_block_of_the_last_contribution,
    check_the_draw_is_the_stakes_and_the_block,
    check_scores,
    check_the_median_is_by_stake_and_without_the_judged,
    check_outliers,
    check_nobody_loses_by_the_word_of_half,
    check_a_jury_in_doubt_clears,
    check_a_failed_audit,
    check_an_appeal,
    check_a_wrong_model,
    check_a_reveal_withheld,
    check_a_round_that_nobody_scored,
    check_shards_are_unsealed_in_turn,
    check_juries_and_panels_do_not_mix,
)
