"""Unmixed: every step is fed by one stream alone, as often as another mix says.

Source: Li et al., "Uni-Perceiver v2: A Generalist Model for Large-Scale Vision and Vision-Language
    Tasks", CVPR 2023, https://arxiv.org/abs/2211.09808 (unmixed sampling)
Differs from the source: evidence is the abstract. By default the steps of a stream are spread
    evenly; the source draws them. Its optimiser is `MTAdamW`.
Shapes: S = streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.among import most_varying
from polytask.mix.base import Mix, Now, Observer, State, Streams, Varies
from polytask.mix.mt_adamw import MTAdamW
from polytask.mix.spread import offset, spread


@dataclass(frozen=True)
class Unmixed:
    """The share 1 of one stream, chosen so that each has its share of the steps.

    mix: what says how often, in a recipe before it: `temperature+unmixed`.
    order: "spread": a stream's steps lie nearly evenly, so that its part of the first n steps is
        within a few of n times its share; "drawn": every step is drawn by itself.
    seed: of what is drawn.
    optimiser: what `fit` updates with: "adamw"; or "mt-adamw", `MTAdamW` with the shares of `mix`,
        which must then stand still.
    """

    mix: Mix
    order: Literal["spread", "drawn"] = "spread"
    seed: int = 0
    optimiser: Literal["adamw", "mt-adamw"] = "adamw"

    def __post_init__(self) -> None:
        if self.optimiser not in ("adamw", "mt-adamw"):
            raise UsageError(
                f"Unmixed: optimiser is {self.optimiser!r}; give 'adamw' or 'mt-adamw'."
            )
        if self.optimiser == "mt-adamw" and (self.mix.varies != "never" or self.mix.observes):
            raise UsageError(
                f"Unmixed: MTAdamW needs shares that stand still, and those of "
                f"{type(self.mix).__name__} move. Give another mix, or optimiser=adamw."
            )
        if self.order not in ("spread", "drawn"):
            raise UsageError(f"Unmixed: order is {self.order!r}; give 'spread' or 'drawn'.")
        if self.seed < 0:
            raise UsageError(f"Unmixed: seed is {self.seed}; give an integer >= 0.")

    def shares(self, streams: Streams) -> dict[str, float]:
        """Return the streams' shares of the steps, without those that are never drawn."""
        shares_S = self.mix(streams, Now(0), self.mix.start(streams)).tolist()
        return {name: s for name, s in zip(streams.names, shares_S, strict=True) if s}

    def optimiser_for(
        self, groups: list[dict[str, Any]], streams: Streams, *, lr: float, weight_decay: float
    ) -> MTAdamW | None:
        """Return `MTAdamW` with the streams' shares where it was asked for."""
        if self.optimiser == "adamw":
            return None
        return MTAdamW(groups, self.shares(streams), lr=lr, weight_decay=weight_decay)

    @property
    def varies(self) -> Varies:
        return most_varying("by step", self.mix.varies)

    @property
    def observes(self) -> bool:
        return self.mix.observes

    def start(self, streams: Streams) -> State:
        """Return the state of the mix inside."""
        return self.mix.start(streams)

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64: one 1 and else 0."""
        edges_S = self.mix(streams, now, state).cumsum(0).numpy()
        # One number more than the schedule's own, so that they are not the same.
        own = (self.seed, len(streams), 1)
        if self.order == "spread":
            place = spread(offset(own), now.step)
        else:
            place = float(np.random.default_rng((*own, now.step)).random())
        at = int(np.searchsorted(edges_S, place * edges_S[-1], side="right"))
        shares_S = torch.zeros(len(streams), dtype=torch.float64)
        # Rounding may reach the very end; a stream of share 0 is never taken there.
        shares_S[min(at, int(np.flatnonzero(np.diff(edges_S, prepend=0))[-1]))] = 1.0
        return shares_S

    def observe(self, losses_S: Tensor, streams: Streams, now: Now, state: State) -> State:
        """Show the mix inside the losses."""
        assert isinstance(self.mix, Observer), "the schedule shows losses only to what observes"
        return self.mix.observe(losses_S, streams, now, state)
