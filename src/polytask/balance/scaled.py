"""Gradients of losses times a scale, as half precision asks for; methods see them without it.

`torch.amp.GradScaler` scales losses so that their gradients do not vanish in float16, and divides
`.grad` by the scale before the optimiser's step. A method that saw scaled losses or gradients
would weigh by the scale; one that saw an overflow would take it into its state.

Shapes: K = tasks present, P = shared parameters.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from polytask.balance.base import Update
from polytask.balance.losses import Given
from polytask.errors import UsageError


class LossScale:
    """The scale of one call's losses. None: there is no scaler.

    overflowed: whether scaled gradients were not finite, so that the method was not asked, or its
        answer is not to be used.
    """

    def __init__(self, factor: float | None = None) -> None:
        if factor is not None and not 0 < factor < math.inf:
            raise UsageError(
                f"Balancer: scale is {factor}; give a number > 0, scaler.get_scale(), or leave it "
                "out."
            )
        self.factor = factor
        self.overflowed = False

    @property
    def times(self) -> float:
        """Return what the losses are multiplied by; 1 without a scaler."""
        return 1.0 if self.factor is None else self.factor

    def up(self, given: Given) -> Given:
        """Return the losses times the scale."""
        if self.factor is None:
            return given
        if isinstance(given, Tensor):
            return given * self.factor
        return [loss * self.factor for loss in given]

    def overflows(self, values: Tensor) -> bool:
        """Return whether there is a scaler, and scaled values that are not finite."""
        if self.factor is not None and not bool(values.isfinite().all()):
            self.overflowed = True
        return self.overflowed

    def down(self, values: Tensor | None, times: int = 1) -> Tensor | None:
        """Return the values without the scale that is in them so many times."""
        if self.factor is None or values is None:
            return values
        for _ in range(times):
            values = values / self.factor
        return values

    def answer(self, update: Update) -> Update:
        """Return the update with all that is added to `.grad` times the scale, weights aside."""
        factor = self.factor
        if factor is None:
            return update
        penalty, direction_P = update.penalty, update.direction_P
        return replace(
            update,
            penalty=None if penalty is None else penalty * factor,
            direction_P=None if direction_P is None else direction_P * factor,
        )
