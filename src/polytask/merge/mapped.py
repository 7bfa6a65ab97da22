"""A file as the system maps it: its bytes are looked at where they lie, without a copy.

What was looked at is let go a little behind, so that a merge holds as much of a large file as of a
small one. A disk that fails, or a file that is cut short in the very moment it is looked at, ends
the process: a merge that is given again goes on.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polytask.errors import DataError

BEHIND = 2 << 20
"""Bytes of a file after which those before are let go; a large page has as many."""

HELD = 5 << 20
"""Bytes that are held of each file, by each thread: BEHIND, and what the system maps around."""


class Mapped:
    """A file in memory. Raises OSError or ValueError where the system cannot map it."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path, self._handle = path, handle
        self._memory = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        self._madvise: Any = getattr(self._memory, "madvise", None)
        if self._madvise is None:
            raise OSError("this system does not let go of what was mapped")
        self._begin: int = np.frombuffer(self._memory, dtype=np.uint8).ctypes.data

    def place(self, model: object, name: str, begin: int, end: int, trails: Trails) -> int:
        """Return where these bytes lie in memory, until the same thread asks for others.

        model, name: whose they are. Raises DataError where the file has become shorter.
        """
        if os.lseek(self._handle, 0, os.SEEK_END) < end:  # fstat takes five times as long
            raise cut_short(self._path, name)
        trail = trails.get(model)
        if (
            trail is None
            or trail.file is not self
            or not trail.begin <= begin <= trail.end + BEHIND
        ):
            if trail is not None:
                trail.file.let_go(trail.begin, trail.end)
            trails[model] = Trail(self, begin, end)
        else:
            trail.end = max(trail.end, end)
            if begin - trail.begin >= BEHIND:
                behind = begin // BEHIND * BEHIND
                self.let_go(trail.begin, behind)
                trail.begin = behind
        return self._begin + begin

    def let_go(self, begin: int, end: int) -> None:
        """Hold these bytes no longer; whoever looks at them again has them back."""
        first = begin // BEHIND * BEHIND
        if end > first:
            self._madvise(mmap.MADV_DONTNEED, first, end - first)


@dataclass
class Trail:
    """The bytes of a file that were looked at and not let go."""

    file: Mapped
    begin: int
    end: int


Trails = dict[object, Trail]
"""One thread's, by model: the file that it looked at last."""


def cut_short(path: Path, name: str) -> DataError:
    """Return the error for a file that ends where it should not."""
    return DataError(
        f"{path} ends inside tensor {name!r}: it was cut short since its header was read. Fetch or "
        "save it again."
    )
