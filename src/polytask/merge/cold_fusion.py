"""ColD Fusion: contributors tune the common model, and their average is the next one.

Source: Don-Yehiya et al., "ColD Fusion: Collaborative Descent for Distributed Multitask
    Finetuning", ACL 2023, https://arxiv.org/abs/2212.01378
Differs from the source: only its abstract was at hand, and a summary. Every task contributes in
    every round; the source samples contributors. Heads stay with their contributor.
Shapes: T = tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from polytask.merge.alternate import Tune, alternate, nothing
from polytask.merge.family import Family
from polytask.tasks import TaskSet


def cold_fusion(
    models: Mapping[str, nn.Module],
    tasks: TaskSet,
    tune: Tune,
    *,
    rounds: int = 10,
    own: Sequence[str] | None = None,
    after: Callable[[int, dict[str, nn.Module]], None] = nothing,
) -> dict[str, nn.Module]:
    """Return each task's model after all rounds; all share the averaged tensors.

    models: task -> copy of the base with its head. tune: model, task -> the tuned model. own: as in
        `Family`. after: is told the rounds done, and the models.
    """
    return alternate("ColD Fusion", models, tasks, tune, Family.mean, rounds, own, after)
