"""A folder with one file that a command left: read, and refused where it is something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from polytask.errors import RunError
from polytask.records import read_json


@dataclass(frozen=True)
class Found:
    """Such a folder. found: what its file holds, checked."""

    folder: Path
    found: Mapping[str, Any]

    @classmethod
    def read(
        cls, path: Path, block: Callable[[Self, str], object], what: str, command: str
    ) -> Self:
        """Return what the file at `path` holds, if `block` makes a page's block of it.

        what, command: for the RunError where it does not: "a relation of tasks", "relate".
        """
        raw = read_json(path)
        try:
            made = cls(path.parent, raw)
            block(made, "")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise RunError(
                f"{path} is not {what} ({type(error).__name__}: {error}); "
                f"give the `polytask {command}` command again to rewrite it."
            ) from error
        return made
