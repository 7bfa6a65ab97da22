"""Matrices by their singular vectors, and only those that the matrix determines.

A singular value of 0 leaves its vectors open; whatever a solver returns for them would be noise
in a merged model. They are left out here.

Shapes: M = tuned models, O, I = rows and columns of a matrix, R = rank, C = columns.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from polytask.merge.base import Merge, Place, Reach, State
from polytask.merge.steps import moved, task_vectors, weighted_sum


@dataclass(frozen=True)
class Spectrum:
    """left_OR @ diag(values_R) @ right_RI, the largest values first, none of them 0."""

    left_OR: Tensor
    values_R: Tensor
    right_RI: Tensor

    def top(self, rank: int) -> Spectrum:
        """Return the part of at most so many largest values."""
        return Spectrum(self.left_OR[:, :rank], self.values_R[:rank], self.right_RI[:rank])


def spectrum(matrix_OI: Tensor) -> Spectrum:
    """Return the singular values that are not 0 to rounding, and their vectors."""
    left_OR, values_R, right_RI = torch.linalg.svd(matrix_OI, full_matrices=False)
    least = torch.finfo(matrix_OI.dtype).eps * max(matrix_OI.shape) * values_R[0]
    rank = int((values_R > least).sum())
    return Spectrum(left_OR, values_R, right_RI).top(rank)


def orthogonal(columns_OC: Tensor) -> Tensor:
    """Return the nearest matrix of orthonormal columns, (O, C); of their span, where it is less."""
    found = spectrum(columns_OC)
    return found.left_OR @ found.right_RI


class Spectral(Merge):
    """A rule for matrices; tensors of any other number of axes take the mean task vector."""

    reach: ClassVar[Reach] = "tensor"

    scale: float

    @abstractmethod
    def matrix(self, tau_MOI: Tensor) -> Tensor:
        """Return the merged task vector of one matrix, (O, I)."""

    @final
    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the merged tensor, in its shape."""
        tau_MP = task_vectors(base_P, tuned_MP)
        if base_P.dim() != 2:
            merged_P = weighted_sum(tau_MP) / len(tau_MP)
        elif not bool(tau_MP.any()):
            merged_P = torch.zeros_like(base_P)
        else:
            merged_P = self.matrix(tau_MP)
        return moved(base_P, merged_P, self.scale)
