"""What TIES does with changes once they are known: trim, elect a sign, mean of those that agree.

Two methods differ only in the changes they start from: `TIES` takes the task vectors, `DareTies`
what is left of them after drawing.

Shapes: M = tuned models, P = elements of one piece.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from polytask.merge.base import Changes, Look, Moved, Over, Place, Signs, Sizes, State, Surveyor
from polytask.merge.ranks import Ranks
from polytask.merge.steps import (
    agreeing_mean,
    below_of,
    elect,
    moved,
    ranked,
    trim,
    weighted,
    weighted_sum,
)

RANKS = Ranks()


class Electing(Surveyor):
    """theta_0 + scale * the mean of the trimmed changes that go in the elected direction.

    Passes before the merge: two to find each model's threshold (a sample, then an exact count;
    rarely one more), one for the sign that most elements have.
    """

    density: float
    scale: float
    weights: tuple[float, ...]
    over: Over

    @property
    @abstractmethod
    def form(self) -> Changes:
        """What `changes` returns, as the kernels know it."""

    @abstractmethod
    def changes(self, base_P: Tensor, tuned_MP: Tensor, at: Place, stride: int = 1) -> Tensor:
        """Return what is trimmed, (M, P), of one element in `stride`; in memory of its own."""

    @final
    def begin(self, models: int, dtype: torch.dtype) -> State:
        """Return the state before anything was seen; where all is kept, no threshold is sought."""
        state = RANKS.begin(models, 1, dtype)
        return state | {"high_L": state["low_L"]} if self.density == 1 else state

    @final
    def sample(self, state: State) -> int:
        """Return how few elements the next pass needs."""
        return 1 if RANKS.settled(state) else RANKS.stride(state)

    @final
    def settled(self, state: State) -> bool:
        """Return True where thresholds and majority are known."""
        return "majority" in state

    @final
    def blank(self, state: State) -> State:
        """Return the sums of a new pass: counts of sizes, and then of signs."""
        if RANKS.settled(state):
            return {"signs": torch.zeros((), dtype=torch.float64)}
        return RANKS.blank(state, counters=self.over == "model")

    @final
    def look(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State, sums: State) -> None:
        """Count a piece."""
        elements = at.stands_for or base_P.numel()
        if RANKS.settled(state):
            change_MP = self._trimmed(self.changes(base_P, tuned_MP, at), state)
            sums["signs"] += weighted_sum(change_MP).sign_().sum(dtype=torch.float64).cpu()
        elif self.sees_all(at, elements):
            sizes_MP = self.changes(base_P, tuned_MP, at).abs_()
            RANKS.look_whole(sizes_MP, sums, self._ranks(elements))
        else:
            stride = 1 if at.stands_for else RANKS.stride(state)
            sizes_MP = self.changes(base_P, tuned_MP, at, stride).abs_()
            RANKS.look(sizes_MP, elements, state, sums)

    @final
    def looks(self, state: State) -> Look:
        """Return what `look` counts."""
        if RANKS.settled(state):
            return Signs(self._trimmed_form(state), self.weights)
        return Sizes(self.form)

    @final
    def settle(self, state: State, sums: State) -> State:
        """Return the state after a pass."""
        if RANKS.settled(state):
            return state | {"majority": sums["signs"].sign()}
        return RANKS.settle(state, sums, self._ranks(int(sums["elements"])))

    @final
    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the merged piece, (P,)."""
        change_MP = self._trimmed(self.changes(base_P, tuned_MP, at), state)
        sign_P = elect(change_MP, float(state["majority"]))
        return moved(base_P, agreeing_mean(change_MP, sign_P, self.weights), self.scale)

    @final
    def formed(self, models: int, state: State) -> Moved:
        """Return the same for the kernels."""
        majority = float(state["majority"])
        return Moved(self._trimmed_form(state), self.weights, self.scale, majority=majority)

    def _trimmed_form(self, state: State) -> Changes:
        return replace(self.form, below=below_of(RANKS.values(state)[:, 0]))

    def _ranks(self, elements: int) -> tuple[int]:
        return (ranked(elements, self.density),)

    def _trimmed(self, change_MP: Tensor, state: State) -> Tensor:
        least_M = RANKS.values(state)[:, 0]
        return weighted(trim(change_MP, least_M, out=change_MP), self.weights)
