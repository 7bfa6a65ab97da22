"""What outputs say of classes: log-probabilities, their entropy, and how well they fit a teacher's.

The objectives of the methods that need no labels. A kind without classes has none of them, and is
refused by name.

Shapes: B = rows, R = places of a row that have a class each (labels, positions, pixels; else 1),
C = classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.errors import UsageError
from polytask.tasks import Binary, DenseLabels, Multiclass, Multilabel, SequenceLabels, Task

Objective = Callable[[Task, Tensor], Tensor]
"""A task and its output -> what is minimised, a scalar."""


def log_probabilities(task: Task, output: Tensor, who: str) -> Tensor:
    """Return the log-probability of every class, (B, R, C), in float32 at least.

    Positions that only pad a sequence count like others: outputs do not tell them apart.
    who: the method that asks, for the error.

    Raises UsageError for a kind without a distribution over classes.
    """
    kind = task.kind
    output = output if output.dtype == torch.float64 else output.float()
    if isinstance(kind, Multiclass):
        return F.log_softmax(output, 1)[:, None]
    if isinstance(kind, (Binary, Multilabel)):
        logits_BR = output.reshape(len(output), -1)
        return torch.stack([F.logsigmoid(-logits_BR), F.logsigmoid(logits_BR)], 2)
    if isinstance(kind, SequenceLabels):
        return F.log_softmax(output, 2)
    if isinstance(kind, DenseLabels):
        return F.log_softmax(output, 1).flatten(2).mT
    raise UsageError(
        f"{who} reads the probabilities of classes; task {task.name!r} is of the kind {kind.name}, "
        "which has none. Leave the task out of this method's tasks, or merge with one that takes "
        "any kind: RegMean without labels, SelfPositioning or ATLAS with labels."
    )


def entropy(task: Task, output: Tensor, who: str) -> Tensor:
    """Return the mean entropy of the predicted distributions, in nats."""
    log_BRC = log_probabilities(task, output, who)
    return -(log_BRC.exp() * log_BRC).sum(2).mean()


def disagreement(
    log_BRC: Tensor, teacher_BRC: Tensor, *, only_trusted: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the mean cross entropy to the teacher's most probable classes, and the part used.

    only_trusted: leave out places where the two differ and the teacher is the less confident.
    Where nothing is left, the loss is 0 and still has a (zero) gradient.
    """
    sure_BR, says_BR = teacher_BRC.max(2)
    nats_BR = -log_BRC.gather(2, says_BR[..., None])[..., 0]
    kept_BR = torch.ones_like(nats_BR, dtype=torch.bool)
    if only_trusted:
        own_BR, own_says_BR = log_BRC.detach().max(2)
        kept_BR = (own_says_BR == says_BR) | (sure_BR >= own_BR)
    used = kept_BR.sum()
    loss = torch.where(kept_BR, nats_BR, 0.0).sum() / used.clamp(min=1)
    return loss, used / kept_BR.numel()
