"""How a merge tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how far a merge is; calls come one at a time, and must be cheap."""

    def phase(self, text: str, total: int) -> None:
        """A pass begins. total: elements of the result, or bytes where files are checked."""

    def advance(self, done: int) -> None:
        """So many more of them are done."""


class Silent:
    """Shows nothing."""

    def phase(self, text: str, total: int) -> None:
        """Show nothing."""

    def advance(self, done: int) -> None:
        """Show nothing."""
