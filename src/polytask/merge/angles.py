"""Methods that ask a tensor only for the lengths and angles of its models, and then mix them.

Shapes: M = models, P = elements of one piece, G = elements of one block.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import final

import torch
from torch import Tensor

from polytask.merge.base import GRAIN, Mixture, Over, Place, State, Surveyor


class Angles(Surveyor):
    """A mix of base and models, per tensor, by their inner products, in float64.

    Products are summed over blocks of GRAIN elements, and the blocks in order, so that a tensor
    cut into pieces gives the same sum to the last bit.
    """

    @abstractmethod
    def vectors(self, base_P: Tensor, tuned_MP: Tensor) -> Tensor:
        """Return the vectors whose inner products are asked for, (M, P); they may overwrite the
        tuned ones.

        tuned_MP: in memory of its own.
        """

    @abstractmethod
    def mix(self, gram_MM: Tensor) -> tuple[float, tuple[float, ...]]:
        """Return what the base is multiplied by, and each model. gram_MM: the inner products."""

    @property
    @final
    def over(self) -> Over:
        """Each tensor by itself."""
        return "tensor"

    @final
    def begin(self, models: int, dtype: torch.dtype) -> State:
        """Return the empty state."""
        return {}

    @final
    def settled(self, state: State) -> bool:
        """Return True after one pass."""
        return "gram_MM" in state

    @final
    def blank(self, state: State) -> State:
        """Return no sum yet; the number of models comes with the first piece."""
        return {}

    @final
    def look(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State, sums: State) -> None:
        """Add the inner products of one piece."""
        models = len(tuned_MP)
        if "gram_MM" not in sums:
            sums["gram_MM"] = torch.zeros(models, models, dtype=torch.float64)
        # tensor_split would cut evenly; blocks must start where they do in every other cut.
        for start in range(0, tuned_MP.shape[1], GRAIN):
            block = slice(start, start + GRAIN)
            # In memory of its own: where a block lies must not matter to the sums of its products.
            tuned_MG = tuned_MP[:, block].to(torch.float64, copy=True)
            vectors_MG = self.vectors(base_P[block].to(torch.float64), tuned_MG)
            sums["gram_MM"] += (vectors_MG @ vectors_MG.T).cpu()

    @final
    def settle(self, state: State, sums: State) -> State:
        """Return the inner products."""
        return sums

    @final
    def mixture(self, models: int, state: State) -> Mixture:
        """Return the mix."""
        of_base, of_tuned = self.mix(state["gram_MM"])
        return Mixture(of_tuned, base=of_base)

    @final
    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the mixed piece, (P,)."""
        return self.mixture(len(tuned_MP), state)(
            base_P if self.needs_base else base_P[:0], tuned_MP
        )


def cosine(gram_MM: Tensor, i: int, j: int) -> float:
    """Return the cosine between vectors i and j, in [-1, 1]; 0 where one of them is 0."""
    lengths = gram_MM[i, i].sqrt(), gram_MM[j, j].sqrt()
    if float(lengths[0]) == 0 or float(lengths[1]) == 0:
        return 0.0
    return max(-1.0, min(1.0, float(gram_MM[i, j] / lengths[0] / lengths[1])))
