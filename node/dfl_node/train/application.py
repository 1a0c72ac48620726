"""The `Application` Protocol: whose data a job trains on, found by the entry point group `dfl.apps`.

Nothing here imports numpy: an application does so inside its methods, which only the trainer's worker calls.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from dfl_ledger.errors import UsageError

if TYPE_CHECKING:
    from dfl_node.train.rows import Rows

GROUP = "dfl.apps"


class Application(Protocol):
    """Where rows come from, and which of them are whose.

    Every method is deterministic: two nodes with the same arguments hold the same rows. They raise UsageError
    for data that is missing or malformed.
    """

    name: str
    input_shape: tuple[int, ...]  # of one row
    classes: int
    loss: str  # "cross-entropy"

    def load(self, path: str | None, shard: tuple[int, int, int], alpha: float | None) -> Rows:
        """The training rows of parts first..last of `of`, from `path` or from the application's own data.

        Parts are disjoint and together hold every training row; equally many rows each (alpha None), or by
        Dirichlet(alpha) over the labels.
        """
        ...

    def validation(self) -> Rows:
        """What a requester scores updates with. Never among the rows of `load` without a path."""
        ...

    def holdout(self) -> Rows:
        """What nobody trains on or scores with: the final examination."""
        ...


def load_application(name: str) -> Application:
    """The installed application of this name. Raises UsageError."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        installed = ", ".join(sorted(points)) or "none"
        raise UsageError(
            f"no application {name!r:.80} is installed",
            why=f"installed: {installed}",
            help_command="pip install 'dfl[apps]'",
        )
    app: Application = points[name].load()
    return app
