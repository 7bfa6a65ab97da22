"""DSelect-k: gates that choose at most k experts, by smooth codes that become exactly 0 and 1.

Source: Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of Experts with
    Applications to Multi-Task Learning", NeurIPS 2021, https://arxiv.org/abs/2106.03760
Differs from the source: experts and gates read the encoder's features, whatever the encoder. As in
    the source's code the logarithm of the entropy has 1e-6 added, and where E is no power of 2 a
    term 1 / (part of the selection that falls on experts that exist) keeps codes from leaving.
    The penalties are those of each task's own gate and belong to that task's loss.
Shapes: R = rows, D = width of the features, E = experts, k = selectors of a gate, M = bits of an
    expert's code, A = asked tasks, W = width of an expert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import Gate, key
from polytask.share.experts import Experts, Stacked, run, stack
from polytask.share.mixture import Mixture
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet

TINY = 1e-6
"""Added inside the entropy's logarithm, as in the source's code: selections are exactly 0."""


class DSelectK(Trunk):
    """h_t = sum_j softmax(w_t)_j f_{e_j}(x): a mixture of the experts that k selectors chose.

    Selector j chooses by a code of M bits, each a smooth step of a trained number: below -gamma/2
    exactly 0, above gamma/2 exactly 1. Until all bits are settled it mixes experts.

    experts: all shared. tasks: names. k: selectors, at most as many as experts.
    per_example: codes and mixture are linear in the row's features instead of constants.
    gamma: > 0, width of the smooth step. entropy: >= 0, of the penalty on undecided selectors.
    """

    codes_EM: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        experts: Experts,
        *,
        k: int = 2,
        per_example: bool = False,
        gamma: float = 1.0,
        entropy: float = 1e-6,
    ) -> None:
        super().__init__(experts.inputs, experts.width)
        if experts.number < 2:
            raise UsageError("DSelect-k: there is nothing to select from 1 expert; give 2 or more.")
        if not 1 <= k <= experts.number:
            raise UsageError(
                f"DSelect-k: k is {k}; give 1 to {experts.number}, the number of experts."
            )
        if gamma <= 0 or entropy < 0:
            raise UsageError(
                f"DSelect-k: gamma is {gamma} and entropy {entropy}; give gamma > 0 and entropy "
                ">= 0."
            )
        self.experts, self.k, self.gamma, self.entropy = experts, k, gamma, entropy
        self.per_example = per_example
        bits = math.ceil(math.log2(experts.number))
        numbers = torch.arange(experts.number)[:, None] >> torch.arange(bits)
        self.register_buffer("codes_EM", (numbers & 1).bool(), persistent=False)
        self.gating = nn.ModuleDict()
        self._tasks: tuple[str, ...] = ()
        for task in tasks:
            self.add_task(task)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        experts: int = 4,
        k: int = 2,
        per_example: bool = False,
        gamma: float = 1.0,
        entropy: float = 1e-6,
        widths: tuple[int, ...] = (64,),
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        experts: how many. k, per_example, gamma, entropy: of the gates. widths: of each expert's
        layers. towers: of each task's own layers.
        """
        trunk = DSelectK(
            tasks.names,
            Experts(experts, width, widths),
            k=k,
            per_example=per_example,
            gamma=gamma,
            entropy=entropy,
        )
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    @property
    def penalises(self) -> bool:
        return self.entropy > 0 or self._leaves_codes_out

    @property
    def _leaves_codes_out(self) -> bool:
        experts, bits = self.codes_EM.shape
        return bool(experts < 2**bits)

    def stack(self, tasks: Sequence[str]) -> Stacked:
        gates = [self._gate(task) for task in tasks]
        stacked = stack("experts", [self.experts])
        stacked["codes"] = self.codes_EM
        # In units of gamma, so that the step that follows has width 1.
        stacked["steps"] = torch.stack([gate.steps for gate in gates]) / self.gamma
        stacked["mixture"] = torch.stack([gate.mixture for gate in gates])
        if self.per_example:
            biases = torch.stack([gate.step_bias for gate in gates])
            stacked["steps_bias"] = biases / self.gamma
            stacked["mixture_bias"] = torch.stack([gate.mixture_bias for gate in gates])
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Mixture:
        steps, logits = stacked["steps"], stacked["mixture"]  # (A, k, M), (A, k); r = 1 or R
        if "steps_bias" in stacked:
            steps = torch.einsum("rd,akmd->rakm", rows_RD, steps) + stacked["steps_bias"]
            logits = torch.einsum("rd,akd->rak", rows_RD, logits) + stacked["mixture_bias"]
        else:
            steps, logits = steps[None], logits[None]
        selectors_rAkE = selected(smooth_step(steps), stacked["codes"])
        weights_rAE = (logits.softmax(-1)[..., None] * selectors_rAkE).sum(2)
        weights_RAE = weights_rAE.expand(rows_RD.shape[0], -1, -1)
        if seen is not None:
            seen["selectors_rAkE"], seen["weights_RAE"] = selectors_rAkE, weights_RAE
        return Mixture(weights_RAE, run(stacked, "experts", rows_RD))

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        names = tuple(f"expert {e}" for e in range(self.experts.number))
        return [Gate(0, tuple(tasks), names, (None,) * len(names), seen["weights_RAE"])]

    def penalties(
        self, tasks: Sequence[str], seen: Seen, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        selectors_rAkE = seen["selectors_rAkE"]
        entropy_A = -(selectors_rAkE * (selectors_rAkE + TINY).log()).sum((2, 3)).mean(0)
        penalty_A = self.entropy * entropy_A
        if self._leaves_codes_out:
            penalty_A = penalty_A + selectors_rAkE.sum(3).reciprocal().sum(2).mean(0)
        return dict(zip(tasks, penalty_A.unbind(), strict=True))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the experts' parameters."""
        return list(self.experts.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's gate."""
        return list(self._gate(task).parameters())

    def add_task(self, task: str) -> None:
        inputs = self.experts.inputs if self.per_example else None
        bits = self.codes_EM.shape[1]
        self.gating[key(task)] = _Selectors(self.k, bits, self.gamma, inputs)
        self._tasks = (*self._tasks, task)

    def _gate(self, task: str) -> _Selectors:
        gate = self.gating[key(task)]
        assert isinstance(gate, _Selectors)
        return gate


class _Selectors(nn.Module):
    """One gate's numbers: steps (k, M), mixture (k); per example both times D, with a bias."""

    step_bias: Tensor
    mixture: Tensor
    mixture_bias: Tensor

    def __init__(self, k: int, bits: int, gamma: float, inputs: int | None) -> None:
        super().__init__()
        shape = () if inputs is None else (inputs,)
        # Near the middle of the step, where it is steepest.
        self.steps = nn.Parameter(torch.empty(k, bits, *shape).uniform_(-gamma / 100, gamma / 100))
        mixture = torch.empty(k, *shape).uniform_(-0.05, 0.05)
        if inputs is not None:
            self.step_bias = nn.Parameter(torch.zeros(k, bits))
        if k == 1:  # all of the one selector, whatever its number
            self.register_buffer("mixture", mixture, persistent=False)
            if inputs is not None:
                self.register_buffer("mixture_bias", torch.zeros(k), persistent=False)
            return
        self.mixture = nn.Parameter(mixture)
        if inputs is not None:
            self.mixture_bias = nn.Parameter(torch.zeros(k))


def smooth_step(x: Tensor) -> Tensor:
    """Return 0 below -1/2, 1 above 1/2, and -2 x^3 + 3/2 x + 1/2 between."""
    x = x.clamp(-0.5, 0.5)  # where the cubic is 0 and 1, with slope 0
    return (1.5 - 2 * x * x) * x + 0.5


def selected(ones_M: Tensor, codes_EM: Tensor) -> Tensor:
    """Return every expert's part (..., E) for bits that are 1 to a degree, (..., M)."""
    part = torch.ones_like(ones_M[..., :1])
    # Bit by bit, and not a product over M at once: its gradient needs no division by a bit of 0.
    for bit in range(codes_EM.shape[1]):
        one = ones_M[..., bit : bit + 1]
        part = part * torch.where(codes_EM[:, bit], one, 1 - one)
    return part
