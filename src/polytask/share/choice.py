"""Hard choices that can be learned: one of several, drawn anew in every pass while training.

Shapes: C = what there is to choose from.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from polytask.errors import UsageError


class Cooling:
    """How hot choices are drawn, by how far the training is: hot / sqrt(1 + 99 part).

    So it ends at a tenth of where it began; one who trains for 100 epochs divides by the root of
    the epoch's number. who: the method, for errors. hot: > 0.
    """

    def __init__(self, who: str, hot: float) -> None:
        if hot <= 0:
            raise UsageError(f"{who}: temperature is {hot}; give a number > 0 (default 5).")
        self._who, self._hot = who, hot
        self._part: float | None = None

    def at(self, part: float) -> None:
        """Take note that this part of the training is done."""
        self._part = part

    @property
    def part(self) -> float:
        """How far the training is. Raises UsageError where nobody told."""
        if self._part is None:
            raise UsageError(
                f"{self._who} draws its choices by how far the training is; call "
                "model.at(step / steps) before every update, as `fit` does."
            )
        return self._part

    @property
    def temperature(self) -> float:
        return self._hot / math.sqrt(1 + 99 * self.part)


def drawn(logits_C: Tensor, temperature: float) -> Tensor:
    """Return one-hot (..., C), drawn by the Gumbel-softmax, with the soft choice's gradient."""
    soft_C = functional.gumbel_softmax(logits_C, temperature)
    # In this order the numbers are 0 and 1 exactly.
    return likeliest(soft_C) + (soft_C - soft_C.detach())


def likeliest(logits_C: Tensor) -> Tensor:
    """Return one-hot (..., C) where the logits are largest; the first of several."""
    return functional.one_hot(logits_C.argmax(-1), logits_C.shape[-1]).to(logits_C)
