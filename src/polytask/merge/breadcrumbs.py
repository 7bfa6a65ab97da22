"""Model Breadcrumbs: leave out the smallest changes and the very largest, then task arithmetic.

Source: Davari & Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse
    Masks", ECCV 2024, https://arxiv.org/abs/2312.06795, and the authors' code
Differs from the source: shares are of each tensor ("layer-wise" in the paper); the authors' code
    takes them of each row, along the last axis. Elements as large as the largest kept, or as
    small as the least kept, are kept as well. `beta` is the share kept, as in the authors' code
    and README; in the paper it is the share left out.
    mergekit's `breadcrumbs` takes the same shares of each tensor, as density and gamma (0.01), and
    drops some of equal size by their place; where gamma * P < 1 it drops the whole tensor.
Shapes: M = tuned models, P = elements of one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from polytask.errors import UsageError
from polytask.merge.base import Changes, Look, Moved, Over, Place, Sizes, State, Surveyor
from polytask.merge.checks import check_finite, check_share, check_weights
from polytask.merge.ranks import Ranks
from polytask.merge.steps import below_of, moved, ranked, task_vectors, trim, weighted_sum

RANKS = Ranks(keeps=True)


@dataclass(frozen=True)
class Breadcrumbs(Surveyor):
    """theta_0 + scale * sum_m w_m tau_m, each tau without its largest and its smallest elements.

    beta: share of the elements kept, in (0, 1]. gamma: share of the largest left out, in [0, 1);
    both together at most 1. scale: of the sum (the source's alpha). weights: one per model; 1
    each where none are given.
    """

    beta: float = 0.2
    gamma: float = 0.1
    scale: float = 0.4
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_share("Breadcrumbs", "beta", self.beta)
        check_share("Breadcrumbs", "gamma", self.gamma, zero=True)
        if self.beta + self.gamma > 1 + 1e-9:
            raise UsageError(
                f"Breadcrumbs: beta {self.beta} + gamma {self.gamma} is more than all elements; "
                "keep beta + gamma at most 1."
            )
        check_finite("Breadcrumbs", "scale", self.scale)
        check_weights("Breadcrumbs", self.weights)

    @property
    def over(self) -> Over:
        """Each tensor by itself."""
        return "tensor"

    def begin(self, models: int, dtype: torch.dtype) -> State:
        """Return the state before anything was seen."""
        return RANKS.begin(models, 2, dtype)

    def sample(self, state: State) -> int:
        """Return how few elements the next pass needs."""
        return RANKS.stride(state)

    def settled(self, state: State) -> bool:
        """Return True where both ends of what is kept are known."""
        return RANKS.settled(state)

    def blank(self, state: State) -> State:
        """Return the sums of a new pass."""
        return RANKS.blank(state, counters=False)  # a tensor in one piece needs none

    def look(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State, sums: State) -> None:
        """Count sizes of changes."""
        elements = at.stands_for or base_P.numel()
        if self.sees_all(at, elements):
            sizes_MP = task_vectors(base_P, tuned_MP).abs_()
            RANKS.look_whole(sizes_MP, sums, self._ranks(elements))
        else:
            stride = 1 if at.stands_for else RANKS.stride(state)
            sizes_MP = task_vectors(base_P[::stride], tuned_MP[:, ::stride]).abs_()
            RANKS.look(sizes_MP, elements, state, sums)

    def looks(self, state: State) -> Look:
        """Return what `look` counts."""
        return Sizes(Changes())

    def settle(self, state: State, sums: State) -> State:
        """Return the state after a pass."""
        return RANKS.settle(state, sums, self._ranks(int(sums["elements"])))

    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the merged piece, (P,)."""
        ends_MK = RANKS.values(state)
        tau_MP = task_vectors(base_P, tuned_MP)
        trim(tau_MP, ends_MK[:, 1], out=tau_MP)
        for m, most in enumerate(ends_MK[:, 0].tolist()):
            tau_MP[m] -= functional.hardshrink(tau_MP[m], most)  # what is larger, less itself
        return moved(base_P, weighted_sum(tau_MP, self.weights), self.scale)

    def formed(self, models: int, state: State) -> Moved:
        """Return the same for the kernels."""
        ends_MK = RANKS.values(state)
        kept = Changes(below=below_of(ends_MK[:, 1]), most=tuple(ends_MK[:, 0].tolist()))
        return Moved(kept, self.weights, self.scale)

    def _ranks(self, elements: int) -> tuple[int, int]:
        """Return the ranks of the largest and of the least element kept."""
        left_out = min(int(elements * self.gamma + 0.5), elements - 1)
        return left_out + 1, min(left_out + ranked(elements, self.beta), elements)


def breadcrumbs(
    base_P: Tensor,
    tuned_MP: Tensor,
    beta: float = 0.2,
    gamma: float = 0.1,
    scale: float = 0.4,
    weights: tuple[float, ...] = (),
) -> Tensor:
    """Return M stacked tensors merged into one, (P,); see `Breadcrumbs`."""
    return Breadcrumbs(beta, gamma, scale, weights)(base_P, tuned_MP)
