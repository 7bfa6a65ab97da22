"""Synthetic regression tasks, and training on them with the pieces of the library's own loop.

Shapes: N = rows, I = inputs, T = tasks, K = tasks of a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from found import KEPT
from torch import Tensor, nn

from polytask.balance import Balancer, Equal
from polytask.fit import Feed, Step, step_losses, train_step
from polytask.fit.validate import evaluating
from polytask.mix import Proportional, Schedule
from polytask.share import SharedModel
from polytask.suites import Split, Stream
from polytask.tasks import Regression, Task, TaskSet

Function = Callable[[Tensor], Tensor]
"""Rows (N, I) -> numbers (N, T)."""

TUNED_ON = 100
"""The seed settings are picked with; no claim is decided on it."""
LOOKS = 20
"""How often a run looks at the validation losses; the weights of the best look are kept."""


@dataclass(frozen=True)
class Problem:
    """Tasks whose true functions are known. Test targets have no noise."""

    tasks: TaskSet
    splits: Mapping[Split, Stream]

    @property
    def inputs(self) -> int:
        return int(self.splits["train"].inputs.shape[1])  # type: ignore[union-attr]

    def only(self, names: Sequence[str]) -> Problem:
        """Return the problem of the named tasks alone, the same rows."""
        splits = {
            split: replace(stream, targets={name: stream.targets[name] for name in names})
            for split, stream in self.splits.items()
        }
        return Problem(self.tasks.only(names), splits)

    def fed(self, split: Split) -> Step:
        """Return the whole split as one step."""
        stream = self.splits[split]
        schedule = Schedule(Proportional(), [len(stream)], len(stream), seed=0)
        return Feed((stream,), self.tasks, schedule).step(0, schedule.start())[0]

    def batches(self, rows: int, seed: int) -> Iterator[Step]:
        """Return batches of training rows without end."""
        stream = self.splits["train"]
        schedule = Schedule(Proportional(), [len(stream)], rows, seed)
        feed, cursors_S = Feed((stream,), self.tasks, schedule), schedule.start()
        for step in itertools.count():
            fed, cursors_S = feed.step(step, cursors_S)
            yield fed


def problem(
    truth: Function,
    rows: Callable[[int, torch.Generator], Tensor],
    names: Sequence[str],
    sizes: Mapping[Split, int],
    noise: float,
    random: torch.Generator,
) -> Problem:
    """Return the tasks `truth`, each scaled to mean 0 and deviation 1 over many rows.

    rows: how many, random -> inputs (N, I). noise: deviation of what is added to the targets of
        training and validation.
    """
    many_NT = truth(rows(20_000, random))
    scale_T, mean_T = torch.std_mean(many_NT, 0)
    splits: dict[Split, Stream] = {}
    for split, size in sizes.items():
        inputs_NI = rows(size, random)
        targets_NT = (truth(inputs_NI) - mean_T) / scale_T
        if split != "test":
            targets_NT = targets_NT + noise * torch.randn(targets_NT.shape, generator=random)
        of_task = dict(zip(names, targets_NT.unbind(1), strict=True))
        splits[split] = Stream("rows", inputs_NI, of_task)
    # Fixed scales, and not fitted ones: all errors are in deviations of the true function.
    return Problem(TaskSet(Task(name, Regression()) for name in names), splits)


def normal(inputs: int) -> Callable[[int, torch.Generator], Tensor]:
    """Return the sampler of standard normal rows."""
    return lambda count, random: torch.randn(count, inputs, generator=random)


def random_layer(inputs: int, outputs: int, random: torch.Generator) -> Function:
    """Return a random layer, linear with ReLU: weights of variance 2 / inputs, biases of 1 / 4."""
    weight_IO = torch.randn(inputs, outputs, generator=random) * (2 / inputs) ** 0.5
    bias_O = 0.5 * torch.randn(outputs, generator=random)
    return lambda rows_NI: (rows_NI @ weight_IO + bias_O).relu()


def train(
    model: SharedModel,
    given: Problem,
    batches: Iterator[Step],
    *,
    steps: int,
    lr: float | Mapping[str, float],
    keep: str = "best",
) -> list[float]:
    """Train with Adam on the sum of the losses; return the mean validation loss of every look.

    lr: of all parameters, or by what a parameter's name begins with; "" stands for all others.
    keep: "best", the weights of the best look, or "last".
    """
    rates = lr if isinstance(lr, Mapping) else {"": lr}
    groups: dict[str, list[nn.Parameter]] = {begin: [] for begin in rates}
    for name, parameter in model.named_parameters():
        begins = max((b for b in rates if name.startswith(b)), key=len)
        groups[begins].append(parameter)
    optimiser = torch.optim.Adam(
        [{"params": groups[begin], "lr": rate} for begin, rate in rates.items()],
        fused=True,  # with hundreds of small tensors a fifth of the time
    )
    balancer = Balancer(Equal(), model.shared_parameters(), tasks=given.tasks.names)
    val, seen, best = given.fed("val"), [], model.state_dict()
    model.train()
    for step in range(steps):
        model.at(step / steps)
        train_step(model, balancer, optimiser, next(batches))
        if (step + 1) % (steps // LOOKS) == 0:
            seen.append(fmean(losses(model, val).values()))
            if seen[-1] == min(seen):
                best = {name: value.clone() for name, value in model.state_dict().items()}
    if keep == "best":
        model.load_state_dict(best)
    model.eval()
    return seen


def losses(model: SharedModel, fed: Step) -> dict[str, float]:
    """Return every task's loss, evaluation mode."""
    with evaluating(model):
        tasks, losses_K = step_losses(model, fed, "float32")
    return dict(zip(tasks, losses_K.tolist(), strict=True))


def picked(
    name: str,
    settings: Sequence[Mapping[str, Any]],
    run: Callable[[Mapping[str, Any], int], dict[str, Any]],
) -> Mapping[str, Any]:
    """Return the setting with the least validation loss `val` on a draw of its own, `TUNED_ON`.

    name: of the runs kept. run: setting, seed -> what came of it.
    """
    tried = [
        KEPT.run(f"{name}/tuned/{at}", lambda s=setting: run(s, TUNED_ON))["val"]
        for at, setting in enumerate(settings)
    ]
    return settings[tried.index(min(tried))]
