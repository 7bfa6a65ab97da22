"""What Gramian methods read from a signal and how they answer: normalised, on the host, float64.

A K x K problem is a matter of microseconds on the host, of milliseconds on an accelerator.

Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from polytask.balance.base import Signal, State, TaskFault, Update
from polytask.balance.solvers import Floats
from polytask.errors import UsageError

Normalise = Literal["none", "norm", "loss", "loss-norm"]
"""Which gradients a method balances: g; g / |g|; g / L, those of log L; g / (L |g|)."""


@dataclass(frozen=True)
class Problem:
    """A Gramian of gradients, each times its scale. A gradient of zero keeps the scale 1."""

    signal: Signal
    gram_KK: Floats
    scale_K: Floats

    def update(self, state: State, weights_K: Floats, note: str | None = None) -> Update:
        """Return the answer: weights of the gradients as they are, from those of the scaled."""
        assert self.signal.gram_KK is not None
        given_K = torch.from_numpy(weights_K * self.scale_K)
        return Update(state, given_K.to(self.signal.gram_KK.device), note=note)


def pose(signal: Signal, method: str, normalise: Normalise = "none") -> Problem:
    """Return the problem to solve.

    Raises TaskFault where a gradient is not finite, or a loss to divide by is not > 0.
    """
    assert signal.gram_KK is not None, "the engine gives the Gramian to methods that need it"
    gram_KK: Floats = signal.gram_KK.detach().cpu().numpy()
    squares_K = gram_KK.diagonal()
    for k in np.flatnonzero(~np.isfinite(squares_K)):
        raise TaskFault(
            f"{method}: the gradient of task {{task}} in the shared parameters is not finite, or "
            "its square is not. Check the task's loss, lower the learning rate, or scale the loss.",
            int(signal.index_K[k]),
        )
    scale_K = np.ones(len(gram_KK))
    if normalise in ("loss", "loss-norm"):
        losses_K = signal.losses_K.detach().cpu().to(torch.float64).numpy()
        for k in np.flatnonzero(losses_K <= 0):
            raise TaskFault(
                f"{method}: the loss of task {{task}} is {losses_K[k]:g}; normalise={normalise!r} "
                "divides by it, so it must be > 0. Use a loss bounded below by 0, or another "
                "normalise.",
                int(signal.index_K[k]),
            )
        scale_K /= losses_K
    if normalise in ("norm", "loss-norm"):
        norms_K = np.sqrt(np.maximum(squares_K, 0.0))
        np.divide(scale_K, norms_K, out=scale_K, where=norms_K > 0)
    return Problem(signal, gram_KK * scale_K[:, None] * scale_K, scale_K)


def check_normalise(method: str, normalise: str) -> None:
    """Return nothing, or raise UsageError where `normalise` is none of its words."""
    if normalise not in get_args(Normalise):
        raise UsageError(
            f"{method}: normalise is {normalise!r}; give 'none', 'norm', 'loss' or 'loss-norm'."
        )


def check_preference(method: str, preference: tuple[float, ...] | None) -> None:
    """Return nothing, or raise UsageError where the numbers are no preference."""
    if preference is not None and not (
        all(0 <= w < math.inf for w in preference) and any(preference)
    ):
        raise UsageError(
            f"{method}: preference is {preference}; give finite numbers >= 0, not all 0."
        )


def check_length(method: str, preference: tuple[float, ...] | None, tasks: int) -> None:
    """Return nothing, or raise UsageError where the preference is for another number of tasks."""
    if preference is not None and len(preference) != tasks:
        raise UsageError(
            f"{method}: preference has {len(preference)} numbers for {tasks} tasks; give one per "
            "task."
        )


def preferred(signal: Signal, preference: tuple[float, ...] | None) -> Floats:
    """Return the preference of the tasks present, (K,); 1 / K each where there is none."""
    present = len(signal.index_K)
    if preference is None:
        return np.full(present, 1 / present)
    preference_K: Floats = np.array(preference)[signal.index_K.cpu().numpy()]
    return preference_K.astype(np.float64)
