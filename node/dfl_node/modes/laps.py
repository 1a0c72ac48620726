"""What is to be thought of a lap's hops, from what their models measured. Pure: no files, no chain.

A hop begins from one of two models: that of the hop before it, if that is no worse than what the hop before
began from, else that older one. So everybody who measures the same files can say of each hop whether it
improved its parent, whether it chose its parent rightly, and which model the lap ends with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dfl_ledger.records import Cid
from dfl_node.modes.measuring import TOLERANCE, Measured, shown


@dataclass(frozen=True, slots=True)
class Link:
    """One hop, in the order of the lap."""

    parent: Cid  # as the chain has it
    model: Cid


def accepts(candidate: Measured, model: Measured) -> bool:
    """Whether the next hop goes on from the candidate: sound, and not worse."""
    return candidate.sound and candidate.loss <= model.loss


def objections(links: Sequence[Link], measured: Mapping[Cid, Measured]) -> tuple[str, ...]:
    """Why each hop is refused, "" if it stands. A refused hop earns nothing, whatever came after it."""
    misjudged = ("", *(_misjudged(before, hop, measured) for before, hop in pairwise(links)))
    return tuple(_spoiled(hop, measured) or why for hop, why in zip(links, misjudged, strict=True))


def gains(links: Sequence[Link], measured: Mapping[Cid, Measured]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Each hop's gain in 1e-9 of validation loss, and its depth: how many gains of this lap it began from.

    What was made from an unsound parent counts from the nearest sound model before that.
    """
    found, depths = [], []
    sound_before: dict[Cid, Cid] = {}  # a model of the lap -> the sound one that its maker began from
    depth_of: dict[Cid, int] = {}
    for hop in links:
        base = hop.parent if measured[hop.parent].sound else sound_before.get(hop.parent, hop.parent)
        depth = depth_of.get(hop.parent, 0)
        gain = measured[base].loss - measured[hop.model].loss
        found.append(gain)
        depths.append(depth)
        sound_before[hop.model] = base
        depth_of[hop.model] = depth + (gain > 0)
    return tuple(found), tuple(depths)


def final(links: Sequence[Link], measured: Mapping[Cid, Measured]) -> Cid:
    """The model that the lap ends with, of the two that the chain takes: the last hop's, or its parent."""
    last = links[-1]
    return last.model if accepts(measured[last.model], measured[last.parent]) else last.parent


def _spoiled(hop: Link, measured: Mapping[Cid, Measured]) -> str:
    """What is wrong with what the hop made."""
    made, parent = measured[hop.model], measured[hop.parent]
    if not made.sound:
        return made.why
    if hop.model == hop.parent:
        return "passes its parent on as it was"
    if made.loss > parent.loss:
        return f"made the model worse: validation loss {shown(parent.loss)} -> {shown(made.loss)}"
    return ""


def _misjudged(before: Link, hop: Link, measured: Mapping[Cid, Measured]) -> str:
    """What is wrong with what the hop began from."""
    if before.model == before.parent:
        return ""  # there was no choice
    made, parent = measured[before.model], measured[before.parent]
    change = f"{shown(parent.loss)} -> {shown(made.loss)}"
    if hop.parent != before.model:
        if made.sound and not parent.missing and made.loss + TOLERANCE < parent.loss:
            return f"began from an older model although the hop before improved it: validation loss {change}"
    elif not made.sound and not made.missing:
        return f"began from a file that is no sound model: {made.why}"
    elif made.sound and made.loss > parent.loss + TOLERANCE:
        return f"began from a model that the hop before made worse: validation loss {change}"
    return ""
