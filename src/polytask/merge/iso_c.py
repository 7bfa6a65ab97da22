"""Iso-C: the summed task vectors of a matrix, every direction made equally long.

Source: Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and
    Task-Specific Subspaces", ICML 2025, https://arxiv.org/abs/2502.04959, and the authors' code
Differs from the source: directions in which the sum is 0 stay 0; the source's code gives whatever
    vectors the solver returns for them the common length. The source tunes `scale` on validation
    data, and leaves `text_projection` of CLIP out by name; give such tensors another method.
    FusionBench follows the authors' code. mergekit has no Iso-C.
Shapes: M = tuned models, O, I = rows and columns of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polytask.merge.checks import check_finite
from polytask.merge.spectra import Spectral, spectrum
from polytask.merge.steps import weighted_sum


@dataclass(frozen=True)
class IsoC(Spectral):
    """theta_0 + scale * U mean(S) V^T for matrices; the mean task vector for other tensors.

    U S V^T: the sum of the task vectors. mean: over the smaller side, zeros included.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_finite("IsoC", "scale", self.scale)

    def matrix(self, tau_MOI: Tensor) -> Tensor:
        """Return the merged task vector of one matrix, (O, I)."""
        sum_OI = weighted_sum(tau_MOI)
        if not bool(sum_OI.any()):
            return sum_OI
        found = spectrum(sum_OI)
        mean = found.values_R.sum() / min(sum_OI.shape)
        return mean * (found.left_OR @ found.right_RI)


def iso_c(base_P: Tensor, tuned_MP: Tensor, scale: float = 1.0) -> Tensor:
    """Return M stacked tensors, (M, *shape), merged into one; see `IsoC`."""
    return IsoC(scale)(base_P, tuned_MP)
