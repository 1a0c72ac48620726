"""Base models on disk, where the worker reads them: a file may be as large as the node's memory."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from dfl_ledger.errors import DflError, UsageError


def missing(cid: str) -> UsageError:
    return UsageError(
        f"the base model {cid!r:.100} is not here",
        why="the trainer was not given the file that the job starts from",
        help_command="dfl-node blob get CID -o FILE",
    )


class Bases:
    """Files by the CID that models name them by, in a temporary directory. Blocking: for a thread."""

    def __init__(self) -> None:
        self._directory: TemporaryDirectory[str] | None = None
        self._paths: dict[str, Path] = {}

    def __contains__(self, cid: str) -> bool:
        return cid in self._paths

    def path(self, cid: str) -> Path:
        """Raises UsageError for a base that was never kept."""
        if cid not in self._paths:
            raise missing(cid)
        return self._paths[cid]

    def keep(self, cid: str, data: bytes) -> None:
        """Raises DflError if the disk does not take it."""
        if cid in self._paths:
            return
        try:
            if self._directory is None:
                self._directory = TemporaryDirectory(prefix="dfl-bases-", ignore_cleanup_errors=True)
            path = Path(self._directory.name) / f"{len(self._paths)}.safetensors"
            path.write_bytes(data)
        except OSError as bad:
            raise DflError("the base model cannot be kept", why=bad.strerror or str(bad)) from bad
        self._paths[cid] = path

    def close(self) -> None:
        """Delete them. Idempotent."""
        self._paths.clear()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None
