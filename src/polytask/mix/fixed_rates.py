"""Fixed rates: a constant share for each stream, chosen beforehand.

Source: none; "fixed" mixing is as old as mixing.
Differs from the source: nothing known.
Shapes: S = streams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.base import Now, State, Streams, Varies


@dataclass(frozen=True)
class FixedRates:
    """The rates given over their sum.

    rates: one number >= 0 per stream in their order, in a recipe parted by "/"; None: all 1. A
        stream of rate 0 is never drawn.
    """

    varies: ClassVar[Varies] = "never"
    observes: ClassVar[bool] = False

    rates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.rates is not None and not (
            all(0 <= rate < math.inf for rate in self.rates) and any(self.rates)
        ):
            raise UsageError(
                f"FixedRates: rates are {self.rates}; give finite numbers >= 0, not all 0."
            )

    def start(self, streams: Streams) -> State:
        """Return nothing; raise where the rates are for another number of streams."""
        if self.rates is not None:
            streams.each(self.rates, "FixedRates", "rates")
        return {}

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        rates_S = torch.tensor(self.rates or (1.0,) * len(streams), dtype=torch.float64)
        rates_S = rates_S / rates_S.max()  # their sum may be beyond the largest number
        return rates_S / rates_S.sum()
