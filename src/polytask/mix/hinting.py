"""Task hinting: an easier task that hints at the main one takes a share of every step.

Source: Awasthi & Gupta, "Improving Length-Generalization in Transformers via Task Hinting", 2023,
    https://arxiv.org/abs/2310.00726
Differs from the source: evidence is the abstract. `fade` is ours; it draws both from their own
    streams, whose rows say which task is asked.
Shapes: S = streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.among import among, check_inner, check_part, check_some, most_varying
from polytask.mix.base import Mix, Now, State, Streams, Varies
from polytask.mix.proportional import Proportional


@dataclass(frozen=True)
class Hinting:
    """Shares of the main streams, beside a share of the hints.

    hints: the auxiliary streams' names, in a recipe parted by "/". share: what they get together,
        above 0 and below 1. fade: their share falls evenly to 0 until this part of the run; None
        keeps it.
    by: mixes the main streams among themselves, and the hints.
    """

    observes: ClassVar[bool] = False

    hints: tuple[str, ...] = ()
    share: float = 0.5
    fade: float | None = None
    by: Mix = field(default_factory=Proportional)

    def __post_init__(self) -> None:
        check_inner("Hinting", self.by)
        if not 0 < self.share < 1:
            raise UsageError(f"Hinting: share is {self.share}; give a share above 0 and below 1.")
        if self.fade is not None:
            check_part("Hinting", "fade", self.fade)

    @property
    def varies(self) -> Varies:
        return most_varying(self.by.varies, "never" if self.fade is None else "by run")

    def start(self, streams: Streams) -> State:
        """Return nothing; raise where the hints are none, all, or unknown."""
        check_some("Hinting", "hints", streams.at(self.hints, "Hinting"), streams)
        self(streams, Now(0, 1), {})  # a mix that does not fit either part says so here
        return {}

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        hints = streams.at(self.hints, "Hinting")
        main = [s for s in range(len(streams)) if s not in hints]
        share = self.share
        if self.fade is not None:
            share *= max(0.0, 1 - now.part / self.fade)
        main_S, hints_S = (among(self.by, streams, part, now) for part in (main, hints))
        return main_S * (1 - share) + hints_S * share
