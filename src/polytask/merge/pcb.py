"""PCB: weigh every change by its size within its task and its agreement with the other tasks.

Source: Du et al., "Parameter Competition Balancing for Model Merging", NeurIPS 2024,
    https://arxiv.org/abs/2410.02396, and the authors' code
Differs from the source: nothing known where task vectors have unequal elements. Where all of a
    task's clamped changes, or all of its scores, are equal, min-max has nothing to divide by: the
    source's code then returns NaN, here they count as the bottom, 0. The search for one scale per
    task needs labels; give what was found as `weights`. mergekit and FusionBench have no PCB.
Shapes: M = tuned models, P = elements of one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.merge.base import Over, Place, State, Surveyor
from polytask.merge.checks import check_finite, check_share, check_weights
from polytask.merge.ranks import Ranks
from polytask.merge.steps import moved, per_model, task_vectors, weighted, weighted_sum

SIZES, SCORES = Ranks(), Ranks(signed=True)

OUTLIERS = 1e-4
"""Share of a task's changes, at either end of their sizes, that is clamped."""


@dataclass(frozen=True)
class PCB(Surveyor):
    """theta_0 + scale * sum_m s_m w_m c_m / sum_m s_m.

    c: changes, outliers clamped. s: scores above their (1 - ratio) quantile, from 0 to 1.
    ratio: share of each task's elements that count, in (0, 1]; the source takes 0.1, and 0.05
        where it searches weights. scale: of the merged task vector. weights: one per model.

    Passes before the merge: two or three for the sizes, and as many for the scores.
    """

    ratio: float = 0.1
    scale: float = 1.0
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_share("PCB", "ratio", self.ratio)
        check_finite("PCB", "scale", self.scale)
        check_weights("PCB", self.weights)

    @property
    def over(self) -> Over:
        """The whole model."""
        return "model"

    def begin(self, models: int, dtype: torch.dtype) -> State:
        """Return the state before anything was seen."""
        return _under("size", SIZES.begin(models, 2, dtype)) | _under(
            "score", SCORES.begin(models, 2, dtype)
        )

    def sample(self, state: State) -> int:
        """Return how few elements the next pass needs."""
        size, score = _of("size", state), _of("score", state)
        return SCORES.stride(score) if SIZES.settled(size) else SIZES.stride(size)

    def settled(self, state: State) -> bool:
        """Return True where sizes and scores are ranked."""
        return SIZES.settled(_of("size", state)) and SCORES.settled(_of("score", state))

    def blank(self, state: State) -> State:
        """Return the sums of a new pass."""
        if SIZES.settled(_of("size", state)):
            return SCORES.blank(_of("score", state))
        return SIZES.blank(_of("size", state))

    def look(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State, sums: State) -> None:
        """Count sizes, and then scores."""
        size, score = _of("size", state), _of("score", state)
        sized = SIZES.settled(size)
        ranks, own = (SCORES, score) if sized else (SIZES, size)
        elements = at.stands_for or base_P.numel()
        alone = self.sees_all(at, elements)
        stride = 1 if alone or at.stands_for else ranks.stride(own)
        tau_MP = task_vectors(base_P[::stride], tuned_MP[:, ::stride])
        values_MP = _scores(tau_MP, SIZES.values(size)) if sized else tau_MP.abs()
        if alone:
            asked = self._score_ranks(elements) if sized else _size_ranks(elements)
            ranks.look_whole(values_MP, sums, asked)
        else:
            ranks.look(values_MP, elements, own, sums)

    def settle(self, state: State, sums: State) -> State:
        """Return the state after a pass."""
        size, elements = _of("size", state), int(sums["elements"])
        if SIZES.settled(size):
            score = SCORES.settle(_of("score", state), sums, self._score_ranks(elements))
            return state | _under("score", score)
        return state | _under("size", SIZES.settle(size, sums, _size_ranks(elements)))

    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the merged piece, (P,)."""
        tau_MP = task_vectors(base_P, tuned_MP)
        ends_MK = SIZES.values(_of("size", state))
        share_MP = _minmax(_scores(tau_MP, ends_MK), SCORES.values(_of("score", state)))
        clamped_MP = weighted(tau_MP.sign() * _clamped(tau_MP.abs(), ends_MK), self.weights)
        whole_P = weighted_sum(share_MP).clamp_(min=1e-12)
        return moved(base_P, weighted_sum(share_MP * clamped_MP) / whole_P, self.scale)

    def _score_ranks(self, elements: int) -> tuple[int, int]:
        """Return the ranks of the best score and of the least that counts."""
        return 1, elements - min(int(elements * (1 - self.ratio)), elements - 1)


def pcb(
    base_P: Tensor,
    tuned_MP: Tensor,
    ratio: float = 0.1,
    scale: float = 1.0,
    weights: tuple[float, ...] = (),
) -> Tensor:
    """Return M stacked tensors merged into one, as if they were the whole model; see `PCB`."""
    return PCB(ratio, scale, weights)(base_P, tuned_MP)


def _size_ranks(elements: int) -> tuple[int, int]:
    """Return the ranks that the authors' code clamps sizes to: the largest kept, the least."""
    return elements - max(int(elements * (1 - OUTLIERS) - 1), 0), elements - int(
        elements * OUTLIERS
    )


def _scores(tau_MP: Tensor, ends_MK: Tensor) -> Tensor:
    """Return how much each change competes for its place, (M, P)."""
    within_MP = torch.exp(len(tau_MP) * _minmax(tau_MP.abs(), ends_MK).square())
    return within_MP * torch.tanh(tau_MP * weighted_sum(tau_MP))


def _clamped(values_MP: Tensor, ends_MK: Tensor) -> Tensor:
    """Return values between the ends, (most, least), of their model."""
    clamped_MP = torch.empty_like(values_MP)
    for m, (most, least) in enumerate(ends_MK.tolist()):
        torch.clamp(values_MP[m], least, most, out=clamped_MP[m])
    return clamped_MP


def _minmax(values_MP: Tensor, ends_MK: Tensor) -> Tensor:
    """Return values clamped and spread from 0 to 1 between the ends, (most, least)."""
    range_M = ends_MK[:, 0] - ends_MK[:, 1]
    least_M1 = per_model(ends_MK[:, 1], values_MP)
    range_M1 = per_model(torch.where(range_M > 0, range_M, 1.0), values_MP)
    return (_clamped(values_MP, ends_MK) - least_M1) / range_M1


def _under(prefix: str, state: State) -> State:
    return {f"{prefix}.{key}": value for key, value in state.items()}


def _of(prefix: str, state: State) -> State:
    return {
        key.removeprefix(f"{prefix}."): value
        for key, value in state.items()
        if key.startswith(f"{prefix}.")
    }
