"""RegMean: each linear layer's weights answer as the tuned ones do on their own inputs.

The merged W minimises sum_t |X_t W^T - X_t W_t^T|^2, in closed form:

    W^T = (sum_t G_t)^-1 sum_t G_t W_t^T,   G_t = X_t^T X_t, off-diagonals times `diagonal`

Source: Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023,
    https://arxiv.org/abs/2212.09849
Differs from the source: convolutions are merged too, as linear layers of their unfolded inputs,
    per group. Where no task's inputs reach (units that are never active), the average stays: the
    source inverts there what is nearly singular. G_t is a mean over rows: tasks count alike.
    FusionBench's closed form agrees to 3e-8 (it scales off-diagonals in float32).
Shapes: B = rows, F = inputs of a layer, O = its outputs, Q = its groups (1 where it is linear),
    T = tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.merge.batches import Unlabelled, chunks, row_count, some, unlabelled
from polytask.merge.family import Family, Inputs, Merged, Tensors
from polytask.tasks import Task


@dataclass(frozen=True)
class RegMean:
    """Closed-form weights of linear and convolutional layers; everything else is averaged.

    examples: rows per task. diagonal: factor on the off-diagonals of G, in [0, 1]; the source has
        .95 for pictures and .6 for language. batch_size: rows of a pass.

    Takes any kind of task. Layers that no pass calls as modules (the projections inside
    `nn.MultiheadAttention`) and 3-d convolutions are averaged, and named in `notes`.
    """

    examples: int = 256
    diagonal: float = 0.95
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.examples < 1 or self.batch_size < 1 or not 0 <= self.diagonal <= 1:
            raise UsageError(
                f"RegMean: examples {self.examples}, batch_size {self.batch_size}, diagonal "
                f"{self.diagonal}; give whole numbers >= 1 and a diagonal in [0, 1]."
            )

    def __call__(self, family: Family, data: Unlabelled) -> Merged:
        """Return the merged tensors. data: task -> inputs."""
        inputs = unlabelled(family.tasks, data, "RegMean")
        merged = family.mean()
        tasks = list(enumerate(family.tasks))
        grams = [self.grams(family, task, inputs[task.name], i) for i, task in tasks]
        notes = []
        for name in family.names:
            if all(name in found for found in grams):
                merged[name] = self._solve(
                    [found[name] for found in grams],
                    [family.shared(task.name)[name] for task in family.tasks],
                )
        for name in _weights(family, next(iter(family.tasks))):
            if any(name not in found for found in grams):
                notes.append(f"{name} was averaged: its layer did not run as a module")
        return Merged(merged, notes=tuple(notes))

    def grams(self, family: Family, task: Task, inputs: Inputs, index: int = 0) -> Tensors:
        """Return each weight's G of one task, (Q, F, F) in float64, off-diagonals as they are."""
        taken = some(inputs, self.examples, self.seed, index)
        found: Tensors = {}

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def seen(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
                rows_QBF = unfolded(layer, args[0].detach()).double()
                gram_QFF = rows_QBF.mT @ rows_QBF / row_count(taken)
                found[name] = found[name] + gram_QFF if name in found else gram_QFF

            return seen

        weights = _weights(family, task)
        handles = [
            layer.register_forward_pre_hook(watch(name))
            for name, layers in weights.items()
            for layer in layers
            if mergeable(layer)
        ]
        try:
            device = next(iter(family.base.values())).device
            with torch.no_grad():
                for batch in chunks(taken, self.batch_size, device):
                    family.tuned_output(task.name, batch)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _solve(self, grams: list[Tensor], weights: list[Tensor]) -> Tensor:
        groups = len(grams[0])
        rows_TQFO = [w.double().reshape(groups, w.shape[0] // groups, -1).mT for w in weights]
        mean_QFO = torch.stack(rows_TQFO).mean(0)
        total_QFF, pulls_QFO = torch.zeros_like(grams[0]), torch.zeros_like(mean_QFO)
        for gram_QFF, rows_QFO in zip(grams, rows_TQFO, strict=True):
            own_QF = gram_QFF.diagonal(dim1=1, dim2=2)
            scaled_QFF = gram_QFF * self.diagonal + torch.diag_embed(own_QF * (1 - self.diagonal))
            total_QFF += scaled_QFF
            pulls_QFO += scaled_QFF @ (rows_QFO - mean_QFO)
        # Around the average: where inputs have no extent, the pseudo-inverse adds nothing to it.
        solved_QFO = mean_QFO + torch.linalg.pinv(total_QFF, hermitian=True) @ pulls_QFO
        solved: Tensor = solved_QFO.mT.reshape(weights[0].shape).to(weights[0].dtype)
        return solved


def mergeable(layer: nn.Module) -> bool:
    """Return whether the layer is linear in inputs that can be unfolded to rows."""
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))


def unfolded(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return the rows that each group of a layer multiplies with its weights, (Q, B, F)."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1])
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    if isinstance(layer, nn.Conv1d):
        padded = padded[:, :, None]
    one = (1,) * (2 - len(layer.kernel_size))
    patches_BXL = functional.unfold(
        padded, (*one, *layer.kernel_size), (*one, *layer.dilation), 0, (*one, *layer.stride)
    )
    rows = patches_BXL.mT.reshape(-1, layer.groups, patches_BXL.shape[1] // layer.groups)
    return rows.transpose(0, 1)


def _weights(family: Family, task: Task) -> dict[str, list[nn.Module]]:
    """Return the shared weights of linear and convolutional layers, with the layers they are in."""
    model = family.hooked(task.name)
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, list[nn.Module]] = {}
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            name = names.get(id(layer.weight), "")
            if name in family.base:
                found.setdefault(name, []).append(layer)
    return found
