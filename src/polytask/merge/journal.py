"""What of a merge is already written, so that one that was killed goes on where it was.

The first line says which merge this is and on which start of the machine it began; then one line
per finished tensor, and a mark whenever all before it had reached the disk. After a kill every line
counts; after the machine itself went down, those before the last mark.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

NAME = "journal"


def read(folder: Path, digest: str) -> set[str] | None:
    """Return the finished tensors of this merge; None where another one, or none, was here."""
    try:
        lines = (folder / NAME).read_text().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError):
        return None
    rows = [_parsed(line) for line in lines if line.endswith("\n")]  # the last may be half a line
    if not rows or not isinstance(rows[0], dict) or rows[0].get("digest") != digest:
        return None
    same = bool(_boot()) and rows[0].get("boot") == _boot()
    done: set[str] = set()
    sure: set[str] = set()
    for row in rows[1:]:
        if isinstance(row, str):
            done.add(row)
        elif row == {"synced": True}:
            sure |= done
    return done if same else sure


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


class Journal:
    """Appends to the journal of a folder; a line is written whole or, in a kill, not read."""

    def __init__(self, folder: Path, digest: str, kept: set[str] | None) -> None:
        path = folder / NAME
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self._file = os.open(path, flags | os.O_TRUNC, 0o644)
        self._line({"digest": digest, "boot": _boot()})
        # Written anew: what another start of the machine may have lost is no longer in it.
        for name in sorted(kept or ()):
            self._line(name)

    def finished(self, name: str) -> None:
        """Note that a tensor is written."""
        self._line(name)

    def synced(self) -> None:
        """Note that everything noted so far has reached the disk."""
        self._line({"synced": True})
        os.fsync(self._file)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)

    def _line(self, value: Any) -> None:
        os.write(self._file, (json.dumps(value) + "\n").encode())


def _boot() -> str:
    """Return what names this start of the machine; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
