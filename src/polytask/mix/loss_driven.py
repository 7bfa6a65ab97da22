"""Loss-driven: more of the streams whose loss, or gap to a reference, is largest.

Source: Gottumukkala et al., "Dynamic Sampling Strategies for Multi-Task Reading Comprehension",
    ACL 2020, https://doi.org/10.18653/v1/2020.acl-main.86 (the gap to the single-task model)
Differs from the source: evidence is the abstract; the rest is derived. Gaps are of losses, relative
    to the reference, where the source has differences of accuracies; power and floor are ours.
Shapes: S = streams, W = looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.errors import RunError, UsageError
from polytask.mix.base import Now, State, Streams, Varies
from polytask.mix.looks import known, seen, unseen


@dataclass(frozen=True)
class LossDriven:
    """Shares in proportion to (the last loss, or gap) ** power, beside a floor for all.

    reference: the loss each stream's own model reaches, > 0, in the streams' order: the gap is
        loss / reference - 1, or 0 where the loss is lower. None: the loss itself, for losses on
        one scale.
    power: > 0; larger means more for the largest. floor: from 0 to 1, what is shared equally.

    Uniform before the first look, and where all gaps are 0.
    """

    varies: ClassVar[Varies] = "never"
    observes: ClassVar[bool] = True

    reference: tuple[float, ...] | None = None
    power: float = 1.0
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise UsageError(f"LossDriven: power is {self.power}; give a finite value > 0.")
        if not 0 <= self.floor <= 1:
            raise UsageError(f"LossDriven: floor is {self.floor}; give a value from 0 to 1.")
        if self.reference is not None and not all(0 < r < math.inf for r in self.reference):
            raise UsageError(f"LossDriven: reference is {self.reference}; give finite losses > 0.")

    def start(self, streams: Streams) -> State:
        """Return the state without a look; raise where references are for other streams."""
        if self.reference is not None:
            streams.each(self.reference, "LossDriven", "references")
        return unseen(len(streams), 1)

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        drive_S = known(state["losses_WS"][-1])
        if self.reference is not None:
            reference_S = torch.tensor(self.reference, dtype=torch.float64)
            drive_S = (drive_S / reference_S - 1).clamp(min=0)
        even_S = torch.full((len(streams),), 1 / len(streams), dtype=torch.float64)
        if not bool(drive_S.max() > 0):  # all 0, or NaN: nothing was seen yet
            return even_S
        parts_S = (drive_S / drive_S.max()) ** self.power
        return self.floor * even_S + (1 - self.floor) * parts_S / parts_S.sum()

    def observe(self, losses_S: Tensor, streams: Streams, now: Now, state: State) -> State:
        """Return the state with this look; raise where a loss is negative."""
        for name, loss in zip(streams.names, losses_S.tolist(), strict=True):
            if loss < 0:
                raise RunError(
                    f"LossDriven: the loss of stream {name!r} is {loss:g}; it takes losses bounded "
                    "below by 0. Use such a loss, or SkillIt."
                )
        return seen(losses_S, state)
