"""Iso-CTS: directions common to all tasks and some of each task's own, all equally long.

Source: Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and
    Task-Specific Subspaces", ICML 2025, https://arxiv.org/abs/2502.04959, and the authors' code
Differs from the source: directions that the task vectors do not determine are left out, see
    `IsoC`. As in the authors' code, the number of common directions is moved so that the tasks
    share the others evenly, and the mean length is taken before directions are made orthogonal.
    FusionBench follows the authors' code. mergekit has no Iso-CTS.
Shapes: M = tuned models, O, I = rows and columns of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.checks import check_finite
from polytask.merge.spectra import Spectral, orthogonal, spectrum
from polytask.merge.steps import weighted_sum


@dataclass(frozen=True)
class IsoCTS(Spectral):
    """theta_0 + scale * U mean(S) V^T for matrices; the mean task vector for other tensors.

    U, V: the largest singular vectors of the summed task vectors, and of each task vector with
    that common part projected out, orthogonalised together.
    common: share of the directions that are common, in [0, 1].
    """

    scale: float = 1.0
    common: float = 0.8

    def __post_init__(self) -> None:
        check_finite("IsoCTS", "scale", self.scale)
        if not 0 <= self.common <= 1:
            raise UsageError(f"IsoCTS: common is {self.common}; give a share in [0, 1].")

    def matrix(self, tau_MOI: Tensor) -> Tensor:
        """Return the merged task vector of one matrix, (O, I)."""
        whole = min(tau_MOI.shape[1:])
        common, each = self.directions(whole, len(tau_MOI))
        shared = spectrum(weighted_sum(tau_MOI)).top(common)
        parts = [shared]
        for tau_OI in tau_MOI:
            own_OI = tau_OI - shared.left_OR @ (shared.left_OR.T @ tau_OI)
            # What is left of a task within the common part is rounding, not directions.
            if own_OI.norm() > torch.finfo(own_OI.dtype).eps * whole * tau_OI.norm():
                parts.append(spectrum(own_OI).top(each))
        left_OC = orthogonal(torch.cat([part.left_OR for part in parts], 1))
        right_IC = orthogonal(torch.cat([part.right_RI for part in parts]).T)
        mean = torch.cat([part.values_R for part in parts]).sum() / whole
        return mean * (left_OC @ right_IC.T)

    def directions(self, whole: int, models: int) -> tuple[int, int]:
        """Return how many of `whole` directions are common, and how many each task adds."""
        own = whole - int(whole * self.common)
        each = min(round(own / models), whole // models)
        return whole - each * models, each


def iso_cts(base_P: Tensor, tuned_MP: Tensor, scale: float = 1.0, common: float = 0.8) -> Tensor:
    """Return M stacked tensors, (M, *shape), merged into one; see `IsoCTS`."""
    return IsoCTS(scale, common)(base_P, tuned_MP)
