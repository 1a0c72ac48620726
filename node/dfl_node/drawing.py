"""A job as a graph: models and pieces of work by CID, and who made which from what.

The ledger's rows are the whole input. Nodes of the graph are files (models, updates, hops, stages); an edge
leads from the file that a piece started from to the piece, and from the pieces of a round to the model they
became.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfl_ledger.rows import ContributionRow, JobRow, RoundRow

FORMATS = ("text", "dot")
_SHORT = 8  # characters of an address or of a CID's end


@dataclass(frozen=True, slots=True)
class Edge:
    source: str  # CID
    target: str  # CID
    label: str
    counts: bool  # False: the piece was refused, or its round is void


def graph(job: JobRow, contributions: Sequence[ContributionRow]) -> tuple[Edge, ...]:
    """Every edge, in the order in which the work was revealed."""
    edges = []
    for round_ in job.rounds:
        pieces = _of_round(round_, contributions)
        for piece in pieces:
            counts = piece.accepted is not False and round_.state != "void"
            edges.append(Edge(piece.parent, piece.cid, _piece(piece), counts))
        if round_.model is None:
            continue
        made_of = [p for p in pieces if p.accepted is not False and p.cid != round_.model]
        if not any(p.cid == round_.model for p in pieces):  # a hop's file is the model itself
            who = f"round {round_.round}: {_short(round_.aggregator or '')} combines"
            edges += [Edge(piece.cid, round_.model, who, True) for piece in made_of]
    return tuple(edges)


def text(job: JobRow, contributions: Sequence[ContributionRow]) -> str:
    """The graph for a terminal: one model a line, and between two models the work that lies between them."""
    lines = [
        f"job {job.job}, mode {job.mode}: {job.phase}, {job.completed} of {job.target_rounds} rounds",
        "",
    ]
    first = next((r.parent for r in job.rounds if r.parent is not None), job.model)
    lines.append(f"● {_end(first)}  the first model")
    for round_ in job.rounds:
        pieces = _of_round(round_, contributions)
        if round_.parent is None and not pieces:
            continue
        lines.append(f"│ round {round_.round}, {round_.state}")
        for place, piece in enumerate(pieces):
            arm = "╰" if place == len(pieces) - 1 else "├"
            start = "" if piece.parent == round_.parent else f"  from {_end(piece.parent)}"
            lines.append(f"{arm}─ {_end(piece.cid)}  {_piece(piece)}{start}")
        if round_.model is not None:
            lines.append(f"● {_end(round_.model)}  published by {_short(round_.aggregator or '')}")
    return "\n".join(lines)


def dot(job: JobRow, contributions: Sequence[ContributionRow]) -> str:
    """The graph in Graphviz' language (https://graphviz.org/doc/info/lang.html)."""
    edges = graph(job, contributions)
    models = (
        {r.model for r in job.rounds if r.model} | {r.parent for r in job.rounds if r.parent} | {job.model}
    )
    lines = [f"digraph job_{job.job} {{", "  rankdir=LR;", "  node [shape=box, fontname=monospace];"]
    names = sorted(models | {e.source for e in edges} | {e.target for e in edges})
    for name in names:
        shape = ', style=filled, fillcolor="#e8f0fe"' if name in models else ""
        lines.append(f'  "{name}" [label="{_end(name)}"{shape}];')
    for edge in edges:
        style = "" if edge.counts else ", style=dashed"
        lines.append(f'  "{edge.source}" -> "{edge.target}" [label="{edge.label}"{style}];')
    return "\n".join([*lines, "}"])


def _of_round(round_: RoundRow, contributions: Sequence[ContributionRow]) -> list[ContributionRow]:
    return [c for c in contributions if c.round == round_.round]


def _piece(piece: ContributionRow) -> str:
    worth = "" if piece.score is None else f"  worth {piece.score:+.4f}"
    refused = f"  refused: {piece.why}" if piece.accepted is False else ""
    return f"{piece.kind} of {_short(piece.node)}  {piece.samples} samples{worth}{_quoted(refused)}"


def _quoted(words: str) -> str:
    """Free of what would end a label: a refusal may quote a stranger's file."""
    return "".join(c if c.isprintable() and c not in '"\\' else "'" for c in words)


def _short(address: str) -> str:
    return f"{address[:_SHORT]}…" if address else "nobody"


def _end(cid: str) -> str:
    return f"…{cid[-_SHORT:]}"
