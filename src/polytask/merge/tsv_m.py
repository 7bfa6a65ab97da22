"""TSV-M: each task's largest singular vectors, side by side, made orthogonal to each other.

Source: Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model Merging",
    CVPR 2025, https://arxiv.org/abs/2412.00081, algorithm 1, and the authors' code
Differs from the source: each task keeps int(R / M) vectors, and at least one, where R is the
    smaller side. Where the tasks' vectors together do not span as many directions as they are,
    such as those of equal models, the orthogonal factor is not determined; the source's code then
    returns what the solver leaves there, here nothing is added outside the span. So M equal models
    give the part of their change that R / M vectors hold. The source leaves `text_projection` of
    CLIP out by name; give such tensors another method.
    FusionBench follows the authors' code. mergekit has no TSV-M.
Shapes: M = tuned models, O, I = rows and columns of a matrix, R = vectors of one task.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.merge.checks import check_finite
from polytask.merge.spectra import Spectral, orthogonal, spectrum


@dataclass(frozen=True)
class TSVM(Spectral):
    """theta_0 + scale * U S V^T for matrices; the mean task vector for other tensors.

    U, V: the tasks' singular vectors, orthogonalised. S: their singular values as they were.
    scale: of the merged task vector.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_finite("TSVM", "scale", self.scale)

    def matrix(self, tau_MOI: Tensor) -> Tensor:
        """Return the merged task vector of one matrix, (O, I)."""
        each = max(1, min(tau_MOI.shape[1:]) // len(tau_MOI))
        parts = [spectrum(tau_OI).top(each) for tau_OI in tau_MOI if bool(tau_OI.any())]
        left_OC = orthogonal(torch.cat([part.left_OR for part in parts], 1))
        right_IC = orthogonal(torch.cat([part.right_RI for part in parts]).T)
        values_C = torch.cat([part.values_R for part in parts])
        return left_OC * values_C @ right_IC.T


def tsv_m(base_P: Tensor, tuned_MP: Tensor, scale: float = 1.0) -> Tensor:
    """Return M stacked tensors, (M, *shape), merged into one; see `TSVM`."""
    return TSVM(scale)(base_P, tuned_MP)
