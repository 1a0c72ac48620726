"""What every `Ledger` does about assets, settlements that follow from scores, and challenges. Part of the
CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dfl_ledger import merkle, rewards
from dfl_ledger.errors import Reverted
from dfl_ledger.evidence import Evidence
from dfl_ledger.ledger import Ledger
from dfl_ledger.merkle import RewardTree, ScoreTree
from dfl_ledger.records import (
    NOBODY,
    REFUSED,
    AssetKind,
    AssetUse,
    ClaimRequest,
    Fault,
    JobTerms,
    Leaf,
    Opening,
    Payee,
    ScoreLeaf,
    Tree,
)
from tests.conformance.ledger_bench import (
    BOND,
    MILLI,
    SCORED,
    Played,
    alike,
    bench,
    evidence_of,
    judge,
    open_job,
    opening_of,
    play,
    score,
    settlement_of,
    show,
    stake,
    words,
)
from tests.conformance.ledger_story import BUDGET, ETHER, STAKE, TERMS, World, cid, member, refused, state

ALL_USES = AssetUse.TRAIN | AssetUse.EVALUATE | AssetUse.COMMERCIAL | AssetUse.DERIVE


def mint(owner: Ledger, kind: AssetKind, price_bps: int = 0) -> int:
    name = cid(f"{kind.name} {owner.address} {price_bps}")
    return owner.mint_asset(kind, name, b"l" * 32, AssetUse.TRAIN, price_bps)


def check_assets(world: World) -> None:
    owner, user = world.wallet(), world.wallet()
    manifest = cid(f"manifest of {owner.address}")
    with refused("PriceTooHigh", priceBps=10_001):
        owner.mint_asset(AssetKind.DATASET, manifest, b"l" * 32, ALL_USES, 10_001)
    with refused("AssetUnknown", asset=10**9):
        owner.mint_asset(AssetKind.DATASET, manifest, b"l" * 32, ALL_USES, 0, [10**9])
    asset = owner.mint_asset(AssetKind.DATASET, manifest, b"l" * 32, ALL_USES, 250)
    with refused("ManifestTaken", asset=asset):
        user.mint_asset(AssetKind.MODEL, manifest, b"l" * 32, AssetUse.TRAIN, 0)
    child = user.mint_asset(AssetKind.MODEL, cid(f"child of {asset}"), bytes(32), AssetUse.TRAIN, 0, [asset])
    with refused("MayNotDerive", asset=child):
        user.mint_asset(AssetKind.MODEL, cid(f"grandchild of {asset}"), bytes(32), AssetUse(0), 0, [child])
    found, own = owner.asset(asset), owner.asset(child)
    assert found is not None
    assert own is not None
    assert (found.owner, found.kind, found.price_bps, found.uses, found.manifest, found.revoked) == (
        *(owner.address, AssetKind.DATASET, 250),
        *(ALL_USES, manifest, False),
    )
    assert (own.parents, own.owner, found.licence) == ((asset,), user.address, b"l" * 32)
    assert owner.asset(10**9) is None
    assert (owner.asset_by_manifest(manifest), owner.asset_by_manifest(cid("nothing"))) == (asset, 0)

    assert (owner.may_use(owner.address, asset), owner.may_use(user.address, asset)) == (True, False)
    owner.allow_asset(user.address, asset)
    assert owner.may_use(user.address, asset)
    with refused("NotAssetOwner", caller=user.address):
        user.price_asset(asset, 1)
    owner.price_asset(asset, 300)
    owner.transfer_asset(user.address, asset)
    with refused("NotAssetOwner", caller=owner.address):
        owner.revoke_asset(asset)
    user.revoke_asset(asset)
    with refused("AssetIsRevoked", asset=asset):
        user.revoke_asset(asset)
    found = owner.asset(asset)
    assert found is not None
    assert (found.owner, found.price_bps, found.revoked) == (user.address, 300, True)
    assert not owner.may_use(user.address, asset)


def check_terms_of_scoring(world: World) -> None:
    requester, owner = world.wallet(), world.wallet()
    model, dataset = mint(owner, AssetKind.MODEL, 700), mint(owner, AssetKind.DATASET)
    for term, wrong in (
        ("bond", replace(SCORED, bond_wei=STAKE + 1)),
        ("evaluators", replace(SCORED, evaluators=17)),
        ("audits", replace(SCORED, audits=9)),
        ("audits", replace(TERMS, audits=1)),
        ("dataBps", replace(TERMS, data_bps=1)),
        ("evaluatorBps", replace(SCORED, evaluator_bps=0)),
        ("evaluatorBps", replace(TERMS, evaluator_bps=1)),
        ("shares", replace(SCORED, data_bps=9500)),
        ("bonds", replace(SCORED, bond_wei=10 * ETHER // 3)),
        ("scoreWindow", replace(SCORED, score_window_s=0)),
        ("modelBps", replace(SCORED, model_bps=1)),
        ("windows", replace(SCORED, settle_window_s=30 * 86400 - 1)),
    ):
        with refused("TermOutOfRange", term=term):
            requester.create_job(wrong)
    with refused("AssetUnusable", asset=dataset):
        requester.create_job(replace(SCORED, model_asset=dataset, model_bps=700))
    with refused("ShareTooLow", asset=model, bps=699, priceBps=700):
        requester.create_job(replace(SCORED, model_asset=model, model_bps=699))
    job = requester.create_job(replace(SCORED, model_asset=model, model_bps=700))
    assert requester.payee(job, 0) == Payee(NOBODY, model)
    assert (requester.payee_count(job), requester.payee_of_asset(job, model)) == (1, 0)


def check_data_sets_are_declared_by_who_may_use_them(world: World) -> None:
    requester, a, b = world.wallet(), member(world), member(world)
    own, foreign, dear = (
        mint(a, AssetKind.DATASET),
        mint(b, AssetKind.DATASET),
        mint(a, AssetKind.DATASET, 2001),
    )
    job = requester.create_job(replace(SCORED, data_bps=2000))
    plain = requester.create_job(SCORED)
    with refused("ShareTooLow", asset=own, bps=0):
        a.join(plain, [own])
    with refused("ShareTooLow", asset=dear, bps=2000, priceBps=2001):
        a.join(job, [dear])
    with refused("MayNotUse", asset=foreign, node=a.address):
        a.join(job, [foreign])
    with refused("AssetUnusable", asset=10**9):
        a.join(job, [10**9])
    with refused("TooManyDatasets", count=9, most=8):
        a.join(job, [own] * 9)
    assert a.active_round(job, a.address) == 0
    a.join(job, [own], b"r" * 32)
    with refused("AlreadyDeclared", node=a.address):
        a.join(job, [own])
    b.allow_asset(a.address, foreign)
    b.join(job, [foreign])
    assert (a.dataset_count(job), a.dataset(job, 0), a.dataset(job, 1), a.dataset(job, 2)) == (
        2,
        own,
        foreign,
        0,
    )
    assert [a.payee(job, number) for number in range(4)] == [
        *(Payee(a.address, 0), Payee(NOBODY, own)),
        *(Payee(b.address, 0), Payee(NOBODY, foreign)),
    ]


def paying(world: World) -> tuple[JobTerms, Ledger, Ledger]:
    """Terms under which everything earns, and who owns model and algorithm."""
    modeller, author = world.wallet(), world.wallet()
    terms = replace(
        SCORED,
        data_bps=2000,
        model_bps=500,
        algorithm_bps=300,
        model_asset=mint(modeller, AssetKind.MODEL),
        algorithm_asset=mint(author, AssetKind.ALGORITHM),
    )
    return terms, modeller, author


def check_everything_that_was_used_is_paid(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        terms, modeller, author = paying(world)
        requester, a, b, c, d = world.wallet(), *(member(world) for _ in range(4))
        job = requester.create_job(replace(terms, min_nodes=3))
        data = mint(a, AssetKind.DATASET)
        a.join(job, [data])
        b.join(job)
        c.join(job)
        played = play(job, (a, b, c), (data,))
        d.join(job)  # too late to be paid for this round, but before the evaluators got their numbers

        # Worth 30, nothing, refused; the data set 12. One evaluator does not show its scores.
        silent = judges[2]
        scores = alike(judges[:2], (30 * MILLI, -5 * MILLI, REFUSED, 12 * MILLI, 1))
        too_early = evidence_of(played, {}).settlement(cid("evidence"))
        with refused("StillScoring", job=job, round=1):
            b.settle(too_early)
        shown = judge(judges, played, scores)
        world.reach(a.panel(job, 1).commit_until)
        with refused("StillScoring", job=job, round=1):
            b.settle(too_early)
        show(judges, played, shown)
        found = evidence_of(played, shown)
        settlement = found.settlement(cid("evidence"))
        found.check(settlement, (), Evidence.decode(found.encode()).facts)
        b.settle(settlement)
        settled = a.settlement(job, 1)
        assert settled is not None
        assert settled.payees == len(found.leaves) == 9  # two tools, a, its data, b, c, d, two evaluators
        assert Opening(settlement.score_root, settlement.weights, b.address) == opening_of(settlement, b)

        due = {(leaf.account, leaf.asset): leaf.reward_wei for leaf in found.leaves}
        assert due == {
            (NOBODY, terms.model_asset): 5 * ETHER,
            (NOBODY, terms.algorithm_asset): 3 * ETHER,
            (NOBODY, data): 20 * ETHER,
            (a.address, 0): 67 * ETHER,
            (b.address, 0): 0,
            (c.address, 0): 0,
            (d.address, 0): 0,
            **{(judge.address, 0): 5 * ETHER // 3 for judge in judges[:2]},
        }
        assert {leaf.account: leaf.score for leaf in found.leaves}[c.address] == REFUSED
        tree = found.reward_tree
        a.transfer_asset(d.address, data)  # whoever owns it when it is claimed is paid
        world.reach(settled.claimable_at)
        before = d.balance_wei(d.address)
        requests = [
            ClaimRequest(job, 1, tree.leaves[at], tree.proof(at))
            for at, leaf in enumerate(tree.leaves)
            if leaf.reward_wei
        ]
        with refused("TooManyClaims", count=33, most=32):
            requester.claim_many(requests[:1] * 33)
        with refused("NothingToClaim"):
            requester.claim_many([*requests, requests[0]])
        requester.claim_many(requests)
        for owner, paid in ((modeller, 5), (author, 3), (a, 67)):
            assert (
                owner.balance_wei(owner.address) - (1000 - (5 if owner is a else 0)) * ETHER == paid * ETHER
            )
        assert d.balance_wei(d.address) - before == 20 * ETHER
        assert silent.claimed_wei(job, silent.address, 0) == 0
        assert a.claimed_wei(job, NOBODY, data) == 20 * ETHER
        assert a.unclaimed_wei(job) == settled.total_wei - sum(due.values()) == 0
        event = [e for e in a.events(0, a.head()) if e.name == "Claimed" and e.args["job"] == job][-3]
        assert event.args["account"] in {d.address, *(x.address for x in (modeller, author, a, *judges))}


def check_nobody_judged_is_equal_shares(world: World) -> None:
    requester, job, nodes = open_job(world, SCORED, 3)
    played = play(job, nodes)
    found = evidence_of(played, {})
    world.reach(requester.panel(job, 1).commit_until)
    nodes[2].settle(found.settlement(cid("evidence")))
    assert [leaf.reward_wei for leaf in found.leaves] == [95 * ETHER // 3] * 3


def settled_round(world: World, judges: list[Ledger]) -> tuple[Ledger, Played, dict[int, bytes], Evidence]:
    """Two contributors, scored alike; what a settlement has to say, not yet settled."""
    requester, job, nodes = open_job(world, SCORED)
    played = play(job, nodes)
    shown = score(judges, played, alike(judges, (30 * MILLI, 10 * MILLI, 1)))
    return requester, played, shown, evidence_of(played, shown)


def check_a_right_settlement_stands(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        requester, played, shown, found = settled_round(world, judges)
        settlement = found.settlement(cid("evidence"))
        settler = judges[0]
        settler.settle(settlement)
        job, opening = played.job, opening_of(settlement, settler)
        scores, tree = found.score_tree, found.reward_tree
        node = played.nodes[1].address
        with refused("NotWrong", tree=int(Tree.SCORE), place=1):
            requester.challenge_score(
                job, 1, opening, 1, scores.leaves[1], scores.proof(1), node, words(played, shown, 1, node)
            )
        with refused("NotContributor", subject=1, node=played.nodes[0].address):
            other = played.nodes[0].address
            requester.challenge_score(
                job, 1, opening, 1, scores.leaves[1], scores.proof(1), other, words(played, shown, 1)
            )
        for place in range(len(tree.leaves)):
            scored = place < 2
            leaf, proof = tree.leaves[place], tree.proof(place)
            score_leaf = scores.leaves[place] if scored else None
            with refused("NotWrong", tree=int(Tree.REWARD), place=place):
                requester.challenge_reward(
                    job, 1, opening, place, leaf, proof, score_leaf, scores.proof(place) if scored else ()
                )
            with refused("NotWrong", tree=int(Tree.REWARD), place=place):
                requester.challenge_cumulative(job, 1, opening, place, leaf, proof, None, ())
        for kind, whole in ((Tree.REWARD, tree), (Tree.SCORE, scores)):
            for level in range(merkle.depth_of(len(whole.leaves)) + 1):
                own = whole.node(0, level)
                with refused("NotWrong", tree=int(kind)):
                    requester.challenge_node(job, 1, opening, kind, *own, whole.proof(0, level), b"")
        with refused("InvalidChallenge", tree=int(Tree.REWARD), place=0):
            wrong = replace(tree.leaves[0], reward_wei=1)
            requester.challenge_reward(job, 1, opening, 0, wrong, tree.proof(0), None, ())
        with refused("WrongOpening", job=job):
            requester.challenge_cumulative(
                job, 1, replace(opening, weights=1), 0, tree.leaves[0], tree.proof(0), None, ()
            )
        settled = requester.settlement(job, 1)
        assert settled is not None
        world.reach(settled.claimable_at)
        with refused("ChallengeOver", job=job):
            requester.challenge_cumulative(job, 1, opening, 0, tree.leaves[0], tree.proof(0), None, ())
        with refused("NotSettled", round=2):
            requester.challenge_cumulative(job, 2, opening, 0, tree.leaves[0], tree.proof(0), None, ())
        assert stake(settler) == 20 * ETHER


def check_a_wrong_score_is_overturned(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        requester, played, shown, found = settled_round(world, judges)
        settler = played.nodes[0]
        lie = ScoreTree(rewards.score_leaves(2, (90 * MILLI, 10 * MILLI)))
        wrong = replace(found.settlement(cid("lie")), score_root=lie.root, weights=lie.total)
        settler.settle(wrong)
        assert found.settlement(cid("lie")) != wrong
        job, node = played.job, settler.address
        requester.challenge_score(
            job,
            1,
            opening_of(wrong, settler),
            0,
            lie.leaves[0],
            lie.proof(0),
            node,
            words(played, shown, 0, node),
        )
        assert requester.settlement(job, 1) is None
        assert stake(settler) == STAKE - BOND
        assert (requester.final_at(job), requester.unclaimed_wei(job), state(requester, job).spent_wei) == (
            0,
            0,
            0,
        )
        with refused("NotSettled", round=1):
            requester.challenge_cumulative(
                job, 1, opening_of(wrong, settler), 0, found.leaves[0], found.reward_tree.proof(0), None, ()
            )
        last = [event for event in requester.events(0, requester.head()) if event.args.get("job") == job]
        overturned = next(event for event in last if event.name == "Overturned")
        assert (overturned.args["why"], overturned.args["challenger"]) == (
            int(Fault.SCORE),
            requester.address,
        )
        assert overturned.args["settler"] == settler.address

        # The round is open again, for another one with the stake.
        with refused("SettlerStakeTooLow", settler=settler.address):
            settler.settle(found.settlement(cid("evidence")))
        judges[1].settle(found.settlement(cid("evidence")))
        settled = requester.settlement(job, 1)
        assert settled is not None
        assert settled.epoch == 2
        world.reach(settled.claimable_at)
        tree = found.reward_tree
        requester.claim(job, 1, tree.leaves[0], tree.proof(0))


def check_a_wrong_reward_is_overturned(world: World) -> None:
    """A settler who pays himself; a line in another's name; a payee beyond the last."""

    def pays_himself(leaves: tuple[Leaf, ...]) -> tuple[int, list[Leaf]]:
        more = replace(
            leaves[1], reward_wei=leaves[1].reward_wei + 5, cumulative_wei=leaves[1].cumulative_wei + 5
        )
        less = replace(
            leaves[0], reward_wei=leaves[0].reward_wei - 5, cumulative_wei=leaves[0].cumulative_wei - 5
        )
        return 1, [less, more, *leaves[2:]]

    def to_another(leaves: tuple[Leaf, ...]) -> tuple[int, list[Leaf]]:
        return 0, [replace(leaves[0], account=leaves[1].account), *leaves[1:]]

    def another_score(leaves: tuple[Leaf, ...]) -> tuple[int, list[Leaf]]:
        return 0, [replace(leaves[0], score=7), *leaves[1:]]

    for lie in (pays_himself, to_another, another_score):
        with bench(world, 20, 30, 50) as judges:
            requester, played, _, found = settled_round(world, judges)
            place, lines = lie(found.leaves)
            settlement, tree = settlement_of(played, lines, found.score_tree)
            settler = judges[0]
            settler.settle(settlement)
            scores = found.score_tree
            requester.challenge_reward(
                played.job,
                1,
                opening_of(settlement, settler),
                place,
                tree.leaves[place],
                tree.proof(place),
                scores.leaves[place],
                scores.proof(place),
            )
            assert requester.settlement(played.job, 1) is None
            assert stake(settler) == 20 * ETHER - BOND


def check_wrong_cumulative_rewards_are_overturned_with_all_later_ones(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        requester, played, _, found = settled_round(world, judges)
        judges[0].settle(found.settlement(cid("evidence")))
        job, nodes = played.job, played.nodes
        again = play(job, nodes)
        shown = score(judges, again, alike(judges, (10 * MILLI, 10 * MILLI, 1)))
        true = evidence_of(again, shown, found.leaves)
        forgotten = [replace(leaf, cumulative_wei=leaf.reward_wei) for leaf in true.leaves[:1]]
        extra = replace(
            true.leaves[1], cumulative_wei=true.leaves[1].cumulative_wei + found.leaves[0].reward_wei
        )
        settlement, tree = settlement_of(again, [*forgotten, extra, *true.leaves[2:]], true.score_tree)
        settler = judges[1]
        settler.settle(settlement)
        before = found.reward_tree
        proof = (before.leaves[0], before.proof(0))
        requester.challenge_cumulative(
            job, 2, opening_of(settlement, settler), 0, tree.leaves[0], tree.proof(0), *proof
        )
        # The one before stands, and pays.
        assert requester.settlement(job, 1) is not None
        assert requester.settlement(job, 2) is None
        assert state(requester, job).spent_wei == found.reward_tree.total_wei
        judges[2].settle(true.settlement(cid("evidence")))
        settled = requester.settlement(job, 2)
        assert settled is not None
        assert (settled.previous_round, settled.payees) == (1, 5)
        world.reach(settled.claimable_at)
        newest = true.reward_tree
        requester.claim(job, 2, newest.leaves[0], newest.proof(0))
        assert requester.claimed_wei(job, nodes[0].address, 0) == newest.leaves[0].cumulative_wei


def check_an_overturned_settlement_takes_later_ones_with_it(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        requester, played, _, found = settled_round(world, judges)
        lie = [replace(found.leaves[0], score=7), *found.leaves[1:]]
        settlement, tree = settlement_of(played, lie, found.score_tree)
        judges[0].settle(settlement)
        again = play(played.job, played.nodes)
        shown = score(judges, again, alike(judges, (10 * MILLI, 10 * MILLI, 1)))
        second = evidence_of(again, shown, found.leaves)
        judges[1].settle(second.settlement(cid("evidence")))
        scores = found.score_tree
        requester.challenge_reward(
            played.job,
            1,
            opening_of(settlement, judges[0]),
            0,
            tree.leaves[0],
            tree.proof(0),
            scores.leaves[0],
            scores.proof(0),
        )
        assert requester.settlement(played.job, 1) is None
        assert requester.settlement(played.job, 2) is None
        assert stake(judges[1]) == 30 * ETHER
        with pytest.raises(Reverted):
            judges[1].settle(second.settlement(cid("evidence")))
        judges[1].settle(found.settlement(cid("evidence")))
        judges[1].settle(second.settlement(cid("evidence")))
        assert requester.unclaimed_wei(played.job) == second.reward_tree.total_wei


def check_a_tree_that_is_none_is_overturned(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        requester, played, shown, found = settled_round(world, judges)
        job = played.job
        # The sum of the root is not that of its children.
        inflated = replace(found.settlement(cid("lie")), weights=found.score_tree.total + 1)
        judges[0].settle(inflated)
        opening = opening_of(inflated, judges[0])
        scores = found.score_tree
        children = (scores.node(0), scores.node(1))
        requester.challenge_node(
            job,
            1,
            opening,
            Tree.SCORE,
            scores.root,
            inflated.weights,
            (),
            merkle.preimage_of(Tree.SCORE, children),
        )
        assert requester.settlement(job, 1) is None

        # A line for a payee who is none.
        more = [*found.leaves, Leaf(requester.address, 0, 0, 0, 1)]
        settlement, tree = settlement_of(played, more, found.score_tree)
        assert len(found.leaves) == 5
        judges[1].settle(settlement)
        own = tree.node(5)
        requester.challenge_node(
            job,
            1,
            opening_of(settlement, judges[1]),
            Tree.REWARD,
            own.hash,
            own.sum,
            tree.proof(5),
            merkle.preimage_of(Tree.REWARD, more[5]),
        )
        assert requester.settlement(job, 1) is None
        assert shown


def check_a_score_line_too_many_is_overturned(world: World) -> None:
    with bench(world, 20, 30, 50) as judges:
        requester, job, nodes = open_job(world, SCORED, 3)
        played = play(job, nodes)
        shown = score(judges, played, alike(judges, (3 * MILLI, 2 * MILLI, 0, 1)))
        found = evidence_of(played, shown)
        lie = ScoreTree([*found.score_tree.leaves, ScoreLeaf(5, rewards.contribution_weight(5))])
        wrong = replace(found.settlement(cid("lie")), score_root=lie.root, weights=lie.total)
        judges[0].settle(wrong)
        requester.challenge_score(
            job, 1, opening_of(wrong, judges[0]), 3, lie.leaves[3], lie.proof(3), None, ()
        )
        assert requester.settlement(job, 1) is None


def check_more_than_was_settled_is_never_claimed(world: World) -> None:
    """Two settlements of no true scores contradict each other: what the first one paid is missing in the
    second.
    """
    requester, a, b = world.wallet(), member(world), member(world)
    job = requester.create_job(TERMS)
    a.join(job)
    b.join(job)
    one = RewardTree([Leaf(a.address, 0, 0, BUDGET, BUDGET), Leaf(b.address, 0, 0, 0, 0)])
    two = RewardTree([Leaf(a.address, 0, 0, 0, 0), Leaf(b.address, 0, 0, 2 * BUDGET, 2 * BUDGET)])
    for round_, tree in ((1, one), (2, two)):
        played = play(job, (a, b))
        assert played.round == round_
        a.settle(settlement_of(played, tree.leaves, None)[0])
    world.reach(requester.final_at(job))
    requester.claim(job, 1, one.leaves[0], one.proof(0))
    with refused("JobFundsExceeded", amount=2 * BUDGET, left=BUDGET):
        requester.claim(job, 2, two.leaves[1], two.proof(1))


def check_what_was_claimed_twice_saves_no_later_settlement(world: World) -> None:
    """Rounds 1 and 2 gave the same money to one node each, and nobody objected in time."""
    requester, job, (a, b) = open_job(world, replace(TERMS, rounds=3, bond_wei=STAKE, settle_window_s=20_000))
    lines = (
        [Leaf(a.address, 0, 0, BUDGET, BUDGET), Leaf(b.address, 0, 0, 0, 0)],
        [Leaf(a.address, 0, 0, 0, 0), Leaf(b.address, 0, 0, 2 * BUDGET, 2 * BUDGET)],
        [Leaf(a.address, 0, 0, 0, 0), Leaf(b.address, 0, 0, 0, 3 * BUDGET)],
    )
    played = [play(job, (a, b)) for _ in lines]
    (first, one), (second, two), (third, three) = (
        settlement_of(round_, leaves, None) for round_, leaves in zip(played, lines, strict=True)
    )
    a.settle(first)
    a.settle(second)
    world.reach(requester.final_at(job))
    a.settle(third)
    requester.claim(job, 1, one.leaves[0], one.proof(0))
    requester.claim(job, 2, two.leaves[1], two.proof(1))
    assert requester.unclaimed_wei(job) == 0

    before = (two.leaves[1], two.proof(1))
    requester.challenge_cumulative(job, 3, opening_of(third, a), 1, three.leaves[1], three.proof(1), *before)
    assert requester.settlement(job, 3) is None
    assert stake(a) == 0
    # Nothing of the escrow is left, for the third round or the requester; and none is another job's.
    spent = 2 * BUDGET
    assert (requester.unclaimed_wei(job), requester.refundable_wei(job)) == (0, 0)
    found = state(requester, job)
    assert (found.spent_wei, found.refunded_wei) == (spent, BUDGET)
    with refused("TotalOutOfRange", total=spent + 1, least=spent, most=spent):
        b.settle(replace(third, total_wei=spent + 1))
    b.settle(replace(third, total_wei=spent))
    world.reach(requester.final_at(job) + 20_000)
    assert requester.refundable_wei(job) == 0
    with refused("NothingToRefund", job=job):
        requester.refund(job)


MONEY_CHECKS: tuple[Callable[[World], None], ...] = (
    check_assets,
    check_terms_of_scoring,
    check_data_sets_are_declared_by_who_may_use_them,
    check_everything_that_was_used_is_paid,
    check_nobody_judged_is_equal_shares,
    check_a_right_settlement_stands,
    check_a_wrong_score_is_overturned,
    check_a_wrong_reward_is_overturned,
    check_wrong_cumulative_rewards_are_overturned_with_all_later_ones,
    check_an_overturned_settlement_takes_later_ones_with_it,
    check_a_tree_that_is_none_is_overturned,
    check_a_score_line_too_many_is_overturned,
    check_more_than_was_settled_is_never_claimed,
    check_what_was_claimed_twice_saves_no_later_settlement,
)
