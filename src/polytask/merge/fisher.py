"""Fisher merging: an average weighted by how much each weight matters to its model's predictions.

    theta = sum_t lam_t (F_t + floor) theta_t / sum_t lam_t (F_t + floor)

Source: Matena & Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022,
    https://arxiv.org/abs/2111.09832
Differs from the source: the floor is added to every entry, not a least value. A regression counts
    as a normal distribution of variance 1 in the unit its loss sees; the source has classes alone.
    FusionBench averages in the same way (to 1e-5: it divides by norm + 1e-6), but squares the
    gradient of a sum over a batch's rows and classes, in which they cancel: its weights differ.
Shapes: T = tasks, B = rows, R = places of a row, C = classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from polytask.errors import UsageError
from polytask.merge.batches import Unlabelled, chunks, row_count, some, take, unlabelled
from polytask.merge.classes import log_probabilities
from polytask.merge.family import Family, Inputs, Merged, Tensors, wide
from polytask.tasks import DenseRegression, Regression, Task

MOST = 1024
"""Gradients per row that the exact expectation takes at most."""


@dataclass(frozen=True)
class Fisher:
    """The average of the tuned models, weighted by their diagonal Fisher information.

    examples: rows per task. batch_size: rows whose gradients are held at once: B copies of what is
        shared. floor: added to every entry. normalise: weigh each task by 1 / norm of its Fisher.
    draws: None: the expectation over classes is exact, one gradient per place and class. A number:
        so many labels are drawn per row instead, whatever the number of pixels or positions.

    Gradients of rows come from one batched pass; where a module has none (recurrent layers), from a
    loop over rows, with the same result.
    """

    examples: int = 256
    batch_size: int = 16
    floor: float = 1e-6
    normalise: bool = True
    draws: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.examples < 1 or self.batch_size < 1 or not self.floor > 0:
            raise UsageError(
                f"Fisher: examples {self.examples}, batch_size {self.batch_size}, floor "
                f"{self.floor}; give whole numbers >= 1 and a floor > 0."
            )

    def __call__(self, family: Family, data: Unlabelled) -> Merged:
        """Return the merged tensors; learned: `weight/TASK`, the lam of each task.

        data: task -> inputs.
        """
        inputs = unlabelled(family.tasks, data, "Fisher")
        numerator = {name: torch.zeros_like(wide(base)) for name, base in family.base.items()}
        total = {name: torch.zeros_like(wide(base)) for name, base in family.base.items()}
        learned: Tensors = {}
        for index, task in enumerate(family.tasks):
            fisher = self.information(family, task, inputs[task.name], index)
            squares = torch.stack([f.double().square().sum() for f in fisher.values()]).sum()
            norm = float(squares.sqrt())
            weight = 1 / norm if self.normalise and norm > 0 else 1.0
            learned[f"weight/{task.name}"] = torch.tensor(weight)
            tuned = family.shared(task.name)
            for name, f in fisher.items():
                scaled = weight * (f + self.floor)
                numerator[name] += scaled * wide(tuned[name])
                total[name] += scaled
        merged = {n: (numerator[n] / total[n]).to(base.dtype) for n, base in family.base.items()}
        return Merged(merged, learned=learned)

    def information(self, family: Family, task: Task, inputs: Inputs, index: int = 0) -> Tensors:
        """Return the diagonal Fisher of a task's tuned model: the mean over rows, per tensor.

        index: of the task; with the seed it says which rows are taken.
        """
        shared = family.shared(task.name)
        device = next(iter(shared.values())).device
        taken = some(inputs, self.examples, self.seed, index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        sums = {name: torch.zeros_like(wide(tensor)) for name, tensor in shared.items()}
        squares = _Squares(family, task, shared)
        for batch in chunks(taken, self.batch_size, device):
            with torch.no_grad():
                values_BRC, weights_BRC = _terms(task, family.output(task.name, shared, batch))
            for selector_BRC, weight_B in self._selectors(task, values_BRC, weights_BRC, generator):
                squares.add(batch, selector_BRC, weight_B, sums)
        return {name: total / row_count(taken) for name, total in sums.items()}

    def _selectors(
        self, task: Task, values_BRC: Tensor, weights_BRC: Tensor, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield factors of the terms, and the weight that the square of their gradient has."""
        places, classes = values_BRC.shape[1:]
        if self.draws is None:
            if places * classes > MOST:
                raise UsageError(
                    f"Fisher: a row of task {task.name!r} has {places} places and {classes} "
                    f"classes, {places * classes} gradients; give draws=1 to draw labels instead."
                )
            for place in range(places):
                for c in range(classes):
                    selector = torch.zeros_like(values_BRC)
                    selector[:, place, c] = 1
                    yield selector, weights_BRC[:, place, c]
            return
        weight_B = values_BRC.new_full((len(values_BRC),), 1 / self.draws)
        for _ in range(self.draws):
            if isinstance(task.kind, (Regression, DenseRegression)):
                noise = torch.randn(values_BRC.shape, generator=generator)
                yield noise.to(values_BRC), weight_B
                continue
            chances = weights_BRC.flatten(0, 1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator).to(values_BRC.device)
            one = torch.zeros_like(values_BRC).flatten(0, 1).scatter_(1, drawn, 1.0)
            yield one.reshape(values_BRC.shape), weight_B


def _terms(task: Task, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is differentiated, and how much the square of each gradient weighs, (B, R, C)."""
    if isinstance(task.kind, (Regression, DenseRegression)):
        values_BRC = output.reshape(len(output), -1, 1)
        return values_BRC, torch.ones_like(values_BRC)
    log_BRC = log_probabilities(task, output, "Fisher")
    return log_BRC, log_BRC.exp()


class _Squares:
    """Adds squared gradients of single rows: batched where the module allows it, else in a loop."""

    def __init__(self, family: Family, task: Task, shared: Tensors) -> None:
        self._shared = shared
        self._batched: bool | None = None

        def term(shared: Tensors, row: Inputs, selector_RC: Tensor) -> Tensor:
            one = row[None] if isinstance(row, Tensor) else {n: v[None] for n, v in row.items()}
            values_1RC, _ = _terms(task, family.output(task.name, shared, one))
            return (values_1RC[0] * selector_RC).sum()

        self._term: Callable[[Tensors, Inputs, Tensor], Tensor] = term
        self._together = vmap(grad(term), in_dims=(None, 0, 0))

    def add(self, batch: Inputs, selector_BRC: Tensor, weight_B: Tensor, sums: Tensors) -> None:
        if self._batched is not False:
            try:
                with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
                    # Where an operation has no rule for rows, torch loops over it and says so; for
                    # attention the plain form has one.
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    gradients = self._together(self._shared, batch, selector_BRC)
            except RuntimeError:
                if self._batched:  # it worked before, so this is no missing rule
                    raise
                self._batched = False
            else:
                self._batched = True
                for name, gradient in gradients.items():
                    sums[name] += torch.tensordot(
                        weight_B.to(sums[name].dtype), wide(gradient).square(), 1
                    )
                return
        leaves = {name: t.detach().requires_grad_() for name, t in self._shared.items()}
        for b in range(len(selector_BRC)):
            at = torch.tensor([b])
            one = take(batch, at, selector_BRC.device)
            row = one[0] if isinstance(one, Tensor) else {n: v[0] for n, v in one.items()}
            found = torch.autograd.grad(
                self._term(leaves, row, selector_BRC[b]), list(leaves.values()), allow_unused=True
            )
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None:
                    sums[name] += weight_B[b].to(sums[name].dtype) * wide(gradient).square()
