"""What is thought of a lap's hops, from their losses alone."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from dfl_ledger.records import Cid
from dfl_node.modes import laps
from dfl_node.modes.laps import Link
from dfl_node.modes.measuring import TOLERANCE, WRECKED, Measured

UNSOUND = Measured(WRECKED, "a tensor holds NaN")
MISSING = Measured(WRECKED, "nobody delivered it", missing=True)
START = 100 * TOLERANCE  # the loss that a lap begins with

measured_models = st.one_of(st.integers(0, 200 * TOLERANCE).map(Measured), st.just(UNSOUND), st.just(MISSING))


def cid(number: int) -> Cid:
    """Of the lap's nth model; 0 is the one it begins with."""
    return Cid.of(b"model %d" % number, 0x70)


def lap(
    models: Sequence[Measured | int], accepts: Sequence[bool] | None = None, start: Measured | None = None
) -> tuple[list[Link], dict[Cid, Measured]]:
    """Hops whose models measure this, and which accept the hop before them as `accepts` says (all do)."""
    found = [m if isinstance(m, Measured) else Measured(m) for m in models]
    measured = {cid(0): start or Measured(START)}
    measured |= {cid(i): m for i, m in enumerate(found, 1)}
    links, parent = list[Link](), cid(0)
    for i in range(1, len(found) + 1):
        if i > 1 and (accepts is None or accepts[i - 1]):
            parent = cid(i - 1)
        links.append(Link(parent, cid(i)))
    return links, measured


def honest(
    models: Sequence[Measured], start: Measured | None = None
) -> tuple[list[Link], dict[Cid, Measured]]:
    """As nodes choose who all measure alike."""
    _, measured = lap(models, start=start)
    links, parent = list[Link](), cid(0)
    for i in range(1, len(models) + 1):
        if i > 1 and laps.accepts(measured[cid(i - 1)], measured[parent]):
            parent = cid(i - 1)
        links.append(Link(parent, cid(i)))
    return links, measured


def test_hops_that_improve_stand_and_the_last_is_the_laps_model() -> None:
    links, measured = lap([90_000, 80_000, 75_000])
    assert laps.objections(links, measured) == ("", "", "")
    assert laps.gains(links, measured) == ((10_000, 10_000, 5_000), (0, 1, 2))
    assert laps.final(links, measured) == cid(3)


def test_a_hop_that_made_the_model_worse_is_refused_and_its_successor_began_before_it() -> None:
    links, measured = lap([90_000, 95_000, 80_000], accepts=[True, True, False])
    assert links[2].parent == cid(1)
    first, worse, last = laps.objections(links, measured)
    assert (first, last) == ("", "")
    assert worse == "made the model worse: validation loss 0.000090 -> 0.000095"
    assert laps.gains(links, measured) == ((10_000, -5_000, 10_000), (0, 1, 1))


def test_the_lap_ends_with_the_last_accepted_model_where_the_last_hop_is_worse_or_no_model() -> None:
    for last in (Measured(95_000), UNSOUND, MISSING):
        links, measured = lap([90_000, last])
        assert laps.final(links, measured) == cid(1)
        assert laps.objections(links, measured)[1]


def test_an_equal_hop_is_no_worse() -> None:
    links, measured = lap([START, 90_000])
    assert laps.objections(links, measured) == ("", "")
    assert laps.gains(links, measured)[0] == (0, 10_000)


def test_a_hop_that_passes_its_parent_on_is_refused() -> None:
    links, measured = [Link(cid(0), cid(0)), Link(cid(0), cid(1))], lap([90_000])[1]
    assert laps.objections(links, measured) == ("passes its parent on as it was", "")
    assert laps.gains(links, measured) == ((0, 10_000), (0, 0))


def test_whoever_rejects_a_better_model_is_refused_and_its_victim_keeps_its_gain() -> None:
    links, measured = lap([50_000, 60_000], accepts=[True, False])
    victim, rejecter = laps.objections(links, measured)
    assert victim == ""
    assert "although the hop before improved it" in rejecter
    assert laps.gains(links, measured) == ((50_000, 40_000), (0, 0))


def test_a_rejection_within_the_tolerance_of_other_machines_is_no_fault() -> None:
    links, measured = lap([START - TOLERANCE, 90_000], accepts=[True, False])
    assert laps.objections(links, measured) == ("", "")


def test_an_acceptance_within_the_tolerance_of_other_machines_is_no_fault() -> None:
    links, measured = lap([START + TOLERANCE, 90_000])
    first, second = laps.objections(links, measured)
    assert "made the model worse" in first
    assert second == ""


def test_whoever_begins_from_what_was_made_worse_or_is_no_model_is_refused() -> None:
    links, measured = lap([START + 2 * TOLERANCE, 90_000])
    assert "that the hop before made worse" in laps.objections(links, measured)[1]
    links, measured = lap([UNSOUND, 90_000])
    assert "no sound model: a tensor holds NaN" in laps.objections(links, measured)[1]


def test_nobody_is_blamed_for_what_only_we_cannot_get() -> None:
    links, measured = lap([MISSING, 90_000])
    assert laps.objections(links, measured) == (MISSING.why, "")
    links, measured = lap([90_000, 80_000], accepts=[True, False], start=MISSING)
    assert laps.objections(links, measured) == ("", "")


def test_a_repair_is_paid_for_what_it_gained_beyond_the_last_sound_model() -> None:
    links, measured = lap([90_000, UNSOUND, UNSOUND, 85_000])
    gains, depths = laps.gains(links, measured)
    assert (gains[0], gains[3]) == (10_000, 5_000)
    assert (depths[0], depths[3]) == (0, 1)


@given(st.lists(measured_models, min_size=1, max_size=8), measured_models)
def test_honest_choosers_are_refused_for_their_own_model_alone(
    models: list[Measured], start: Measured
) -> None:
    links, measured = honest(models, start)
    for link, why in zip(links, laps.objections(links, measured), strict=True):
        made, parent = measured[link.model], measured[link.parent]
        assert bool(why) == (not made.sound or made.loss > parent.loss)


@given(st.lists(measured_models, min_size=1, max_size=8))
def test_a_lap_of_honest_choosers_never_ends_worse_than_it_began(models: list[Measured]) -> None:
    links, measured = honest(models)
    final = measured[laps.final(links, measured)]
    assert final.sound
    assert final.loss == min([START, *(m.loss for m in models)])


@given(st.lists(measured_models, min_size=1, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_whatever_is_chosen_each_hop_is_judged_and_no_depth_exceeds_its_place(
    models: list[Measured], accepts: list[bool]
) -> None:
    links, measured = lap(models, accepts)
    gains, depths = laps.gains(links, measured)
    assert len(laps.objections(links, measured)) == len(gains) == len(links)
    assert all(0 <= depth <= place for place, depth in enumerate(depths))
    assert laps.final(links, measured) in (links[-1].model, links[-1].parent)
