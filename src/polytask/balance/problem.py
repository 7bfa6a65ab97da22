"""What Gramian methods read from a signal and how they answer: normalised, on the host, float64.

A K x K problem is a matter of microseconds on the host, of milliseconds on an accelerator.

Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from polytask.balance.base import Signal, State, TaskFault, Update, check_losses
from polytask.balance.solvers import Floats
from polytask.errors import UsageError

Indices = NDArray[np.intp]
Normalise = Literal["none", "norm", "loss", "loss-norm"]
"""Which gradients a method balances: g ("none"), g / |g| ("norm"), g / L, which is that of the
logarithm of the loss ("loss"), or both ("loss-norm").

Losses to divide by must be >= 0. A task whose loss is exactly 0 is left out of the step, and a
note says so; its gradient is 0 or next to it."""


@dataclass(frozen=True)
class Problem:
    """A Gramian of gradients, each times its scale. A gradient of zero keeps the scale 1.

    signal: of the tasks in the problem: those given, without those left out.
    at_K: where they stand among those given. given: how many there were.
    """

    signal: Signal
    gram_KK: Floats
    scale_K: Floats
    at_K: Indices
    given: int
    note: str | None = None

    def update(self, state: State, weights_K: Floats, note: str | None = None) -> Update:
        """Return the answer: weights of the gradients as they are, 0 for tasks left out."""
        assert self.signal.gram_KK is not None
        notes = [text for text in (self.note, note) if text is not None]
        given_K = np.zeros(self.given)
        given_K[self.at_K] = weights_K * self.scale_K
        answer_K = torch.from_numpy(given_K).to(self.signal.gram_KK.device)
        return Update(state, answer_K, note="; ".join(notes) or None)


def pose(signal: Signal, method: str, normalise: Normalise = "none") -> Problem:
    """Return the problem to solve.

    A task whose loss is 0 is left out where gradients are divided by losses, unless all are.
    Raises TaskFault where a gradient is not finite, or a loss to divide by is negative.
    """
    assert signal.gram_KK is not None, "the engine gives the Gramian to methods that need it"
    given = len(signal.losses_K)
    at_K: Indices = np.arange(given)
    gram_KK: Floats = signal.gram_KK.detach().cpu().numpy()
    for k in np.flatnonzero(~np.isfinite(gram_KK.diagonal())):
        raise TaskFault(
            f"{method}: the gradient of task {{task}} in the shared parameters is not finite, or "
            "its square is not. Check the task's loss, lower the learning rate, or scale the loss.",
            int(signal.index_K[k]),
        )
    scale_K, note = np.ones(given), None
    if normalise in ("loss", "loss-norm"):
        note = check_losses(f"{method}(normalise={normalise!r})", signal)
        losses_K = signal.losses_K.detach().cpu().to(torch.float64).numpy()
        if not losses_K.any():
            note = "every loss is 0; balanced the gradients without dividing by them"
        else:
            at_K = np.flatnonzero(losses_K)
            scale_K = 1 / losses_K[at_K]
        if len(at_K) < given:
            signal, gram_KK = _only(signal, at_K), gram_KK[np.ix_(at_K, at_K)]
    if normalise in ("norm", "loss-norm"):
        norms_K = np.sqrt(np.maximum(gram_KK.diagonal(), 0.0))
        np.divide(scale_K, norms_K, out=scale_K, where=norms_K > 0)
    return Problem(signal, gram_KK * scale_K[:, None] * scale_K, scale_K, at_K, given, note)


def _only(signal: Signal, at_K: Indices) -> Signal:
    """Return the signal of some of its tasks."""
    assert signal.gram_KK is not None
    chosen_K = torch.from_numpy(at_K).to(signal.index_K.device)
    return replace(
        signal,
        losses_K=signal.losses_K[chosen_K],
        index_K=signal.index_K[chosen_K],
        gram_KK=signal.gram_KK[chosen_K][:, chosen_K],
        rows_KP=None if signal.rows_KP is None else signal.rows_KP[chosen_K],
    )


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
