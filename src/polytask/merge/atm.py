"""ATM: tune on every task for a little, merge, and begin again from there.

    theta_{k+1} = theta_k + (scale / T) sum_t tau_t,   tau_t from tuning theta_k on task t

Source: Zhou et al., "ATM: Improving Model Merging by Alternating Tuning and Merging", 2024,
    https://arxiv.org/abs/2411.03055
Differs from the source: only its abstract was at hand, and a summary. Heads go on from
    round to round.
Shapes: T = tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from polytask.merge.alternate import Tune, alternate, moved_mean, nothing
from polytask.tasks import TaskSet


def atm(
    models: Mapping[str, nn.Module],
    tasks: TaskSet,
    tune: Tune,
    *,
    rounds: int = 10,
    scale: float = 1.0,
    own: Sequence[str] | None = None,
    after: Callable[[int, dict[str, nn.Module]], None] = nothing,
) -> dict[str, nn.Module]:
    """Return each task's model after all rounds; all share the merged tensors.

    models: task -> copy of the base with its head. tune: model, task -> the tuned model; the source
        gives it one epoch. scale: 1 moves to the mean of the tuned models, T is task arithmetic
        with coefficient 1; one round is task arithmetic with coefficient scale / T. own: as in
        `Family`. after: is told the rounds done, and the models: to save, or to look at validation.

    To go on from a saved round, give its models and the rounds that are left.
    """
    return alternate(
        "ATM", models, tasks, tune, lambda family: moved_mean(family, scale), rounds, own, after
    )
