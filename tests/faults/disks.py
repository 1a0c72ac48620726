"""A file system of its own for one directory, small enough to be full. Needs root.

with SmallDisk(node.datadir) as disk:
    disk.fill()
    disk.free()
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK = 1 << 20


class SmallDisk:
    """A tmpfs of `size_mib` in place of `directory`, with what was in there."""

    def __init__(self, directory: Path, *, size_mib: int = 64) -> None:
        self._directory, self._size_mib = directory, size_mib

    def __enter__(self) -> Self:
        aside = self._directory.with_name(f"{self._directory.name}.aside")
        self._directory.rename(aside)
        self._directory.mkdir(mode=0o700)
        options = f"size={self._size_mib}m,mode=0700"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self._directory)]
        subprocess.run(command, check=True)
        shutil.copytree(aside, self._directory, dirs_exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # lazily: it goes when the last process that uses it has ended
        subprocess.run(["umount", "--lazy", str(self._directory)], check=True)

    def fill(self) -> None:
        """Up to the last byte."""
        with suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while file.write(bytes(CHUNK)):
                pass

    def free(self) -> None:
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        return self._directory / "ballast"
