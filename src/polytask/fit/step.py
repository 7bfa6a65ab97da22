"""One update, in the open: forward, losses with their own denominators, balance, step.

Shapes: K = tasks of a block that are present.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polytask.balance import Balancer, Weights
from polytask.fit import ranks
from polytask.fit.data import Batch, Step
from polytask.share import SharedModel
from polytask.tasks import Block


def task_losses(
    model: SharedModel, batches: Sequence[Batch], counts: Mapping[str, float], precision: str
) -> dict[str, Tensor]:
    """Return each present task's loss: the sum over its labels here over its labels in the update.

    batches: one per table; counts: labels per task in the whole update. A task not in `counts`
    is absent: its head does not run and it has no loss.
    """
    losses: dict[str, Tensor] = {}
    for batch in batches:
        present = [
            _present(block, target, counts)
            for block, target in zip(batch.blocks, batch.targets, strict=True)
        ]
        names = [task for block, _ in present for task in block.tasks]
        device = batch.targets[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(batch.inputs, tasks=names)
        for block, target in present:
            if not block.tasks:
                continue
            sums_K = block.loss_sums(outputs, target)
            total_K = sums_K.new_tensor([counts[task] for task in block.tasks])
            for task, loss in zip(block.tasks, (sums_K / total_K).unbind(), strict=True):
                losses[task] = losses[task] + loss if task in losses else loss
    return losses


def _present(block: Block, target: Tensor, counts: Mapping[str, float]) -> tuple[Block, Tensor]:
    """Return the block and its batch of targets without the tasks that are absent."""
    columns = [k for k, task in enumerate(block.tasks) if task in counts]
    if len(columns) == len(block.tasks):
        return block, target
    left = replace(block, tasks=tuple(block.tasks[k] for k in columns))
    return left, target[:, columns] if block.kind.stacks else target


def train_step(
    model: SharedModel,
    balancer: Balancer,
    optimiser: Optimizer,
    fed: Step,
    precision: str = "float32",
    clip: float | None = None,
) -> Weights:
    """Make one update; return the weights of the tasks present, and with them their losses.

    fed: see `Feed.step`; over several processes each is fed its share of the update, and the
    losses and gradients are those of the whole.
    clip: largest norm of all gradients together, None for no clipping.

    Raises RunError naming the task whose loss is not finite; nothing is updated then.
    """
    optimiser.zero_grad(set_to_none=True)
    weights: Weights | None = None
    for m, batches in enumerate(fed.micros):
        losses = task_losses(model, batches, fed.counts, precision)
        weights = balancer.backward(losses, accumulate=m < len(fed.micros) - 1)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    ranks.sum_gradients(parameters)
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    assert weights is not None, "an update is fed at least one batch"
    return weights
