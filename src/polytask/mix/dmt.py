"""DMT: specialised streams first, then the general ones with a little of the specialised.

Source: Dong et al., "How Abilities in Large Language Models are Affected by Supervised Fine-tuning
    Data Composition", ACL 2024, https://arxiv.org/abs/2310.05492 (dual-stage mixed fine-tuning)
Differs from the source: evidence is the abstract and the card. The second stage draws specialised
    rows at the rate of a part of their stream, from all of it; the source keeps one part of the
    rows. The stages are parts of one run, with one optimiser.
Shapes: S = streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.among import among, check_part, check_some
from polytask.mix.base import Now, State, Streams, Varies
from polytask.mix.proportional import Proportional


@dataclass(frozen=True)
class DMT:
    """Shares in proportion to rows: of the special streams; then of the general and a part of them.

    special: the specialised streams' names, in a recipe parted by "/". until: the part of the run
        on them alone. kept: from 0 to 1, the part of their rows that counts in the second stage.
    """

    varies: ClassVar[Varies] = "by run"
    observes: ClassVar[bool] = False

    special: tuple[str, ...] = ()
    until: float = 0.5
    kept: float = 1 / 256

    def __post_init__(self) -> None:
        check_part("DMT", "until", self.until)
        if not 0 <= self.kept <= 1:
            raise UsageError(f"DMT: kept is {self.kept}; give a part of the rows, from 0 to 1.")

    def start(self, streams: Streams) -> State:
        """Return nothing; raise where the special streams are none, all, or unknown."""
        check_some("DMT", "special", streams.at(self.special, "DMT"), streams)
        return {}

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        special = streams.at(self.special, "DMT")
        if now.part < self.until:
            return among(Proportional(), streams, special, now)
        rows_S = streams.sizes_S.to(torch.float64)
        rows_S[special] *= self.kept
        return rows_S / rows_S.sum()
