"""Aligned-MTL: give the gradient matrix equal singular values, then add the tasks up.

Source: Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023,
    https://arxiv.org/abs/2305.19000, algorithm 1; authors' code https://github.com/SamsungLabs/MTL
Differs from the source: the Gramian is float64, not float32. Singular directions are dropped by
    the authors' rule, eigenvalue <= largest x K x float32 epsilon: with the smallest kept one as
    the common scale, a finer rule would let rounding errors shrink the whole update; TorchJD goes
    by the epsilon of the Gramian it is given, and prefers every task by 1 / K, not 1. A Gramian
    that is zero, of which the source says nothing, gives the preference itself.
Shapes: T = tasks of the run, K = tasks present, R = rank of the Gramian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.problem import (
    Normalise,
    check_length,
    check_normalise,
    check_preference,
    pose,
)
from polytask.errors import UsageError

ScaleMode = Literal["min", "median", "rmse"]


@dataclass(frozen=True)
class AlignedMTL:
    """Weights s V diag(1 / sigma) V' w, with G = V diag(sigma^2) V' and the common scale s.

    scale_mode: s is the smallest singular value ("min", the paper's), the lower median of them
        ("median"), or the root of the mean of their squares ("rmse").
    preference: w, one number >= 0 per task in the order of axis T; None: all 1. Absent tasks
        leave the others' preference as it is.
    normalise: which gradients it balances, see `Normalise`.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    scale_mode: ScaleMode = "min"
    preference: tuple[float, ...] | None = None
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        if self.scale_mode not in ("min", "median", "rmse"):
            raise UsageError(
                f"AlignedMTL: scale_mode is {self.scale_mode!r}; give 'min', 'median' or 'rmse'."
            )
        check_preference("AlignedMTL", self.preference)
        check_normalise("AlignedMTL", self.normalise)

    def start(self, tasks: int) -> State:
        """Return an empty state; raise where the preference is for another number of tasks."""
        check_length("AlignedMTL", self.preference, tasks)
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "AlignedMTL", self.normalise)
        gram_KK = torch.from_numpy(problem.gram_KK)
        if self.preference is None:
            preference_K = gram_KK.new_ones(len(gram_KK))
        else:
            preference_K = gram_KK.new_tensor(self.preference)[problem.signal.index_K.cpu()]
        weights_K = aligned(gram_KK, preference_K, self.scale_mode)
        return problem.update(state, weights_K.numpy())


def aligned(gram_KK: Tensor, preference_K: Tensor, scale_mode: ScaleMode) -> Tensor:
    """Return the balance matrix times the preference, (K,)."""
    squares_K, basis_KK = torch.linalg.eigh(gram_KK)  # ascending
    kept_K = squares_K > squares_K[-1] * len(gram_KK) * torch.finfo(torch.float32).eps
    if not bool(kept_K.any()):
        return preference_K
    sigma_R, basis_KR = squares_K[kept_K].sqrt(), basis_KK[:, kept_K]
    if scale_mode == "min":
        scale = sigma_R[0]
    elif scale_mode == "median":
        scale = sigma_R.median()
    else:
        scale = sigma_R.square().mean().sqrt()
    aligned_K: Tensor = basis_KR @ (scale / sigma_R * (basis_KR.T @ preference_K))
    return aligned_K
