"""What a mix that observes is shown: how well each training stream's tasks do on validation.

Shapes: S = training streams, T = tasks of the run, N = rows of a table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.fit import ranks
from polytask.fit.config import FitConfig
from polytask.fit.data import alike, table
from polytask.fit.step import task_losses
from polytask.fit.validate import evaluating
from polytask.share import SharedModel
from polytask.suites import Suite


class StreamLosses:
    """The mean validation losses of each training stream's tasks. One forward pass of the split."""

    def __init__(self, suite: Suite, config: FitConfig) -> None:
        self._tasks = suite.tasks.names
        self._tasks_of = [[t for t in self._tasks if t in s.targets] for s in suite.train]
        self._tables = [
            table([suite.val[s] for s in at], suite.tasks, config.device) for at in alike(suite.val)
        ]
        self._rows = max(config.batch_size, 256)
        self._precision = config.precision
        self._counts: dict[str, float] = {}
        for made in self._tables:
            for task, labels in made.counts(torch.arange(made.rows)).items():
                self._counts[task] = self._counts.get(task, 0.0) + labels

    def losses(self, model: SharedModel) -> Tensor:
        """Return the losses (S,), float64: the mean over the stream's tasks of each one's mean.

        The model's mode is kept. A task without a label is left out, a stream of such alone is
        NaN. Several processes take their rows each, and all of them return the same.
        """
        losses_T = torch.zeros(len(self._tasks), dtype=torch.float64)
        with evaluating(model), torch.no_grad():
            for made in self._tables:
                for rows_N in torch.split(torch.arange(made.rows), self._rows):
                    batch = made.batch(ranks.share(rows_N))
                    tasks, part_K = task_losses(model, [batch], self._counts, self._precision)
                    index_K = torch.tensor([self._tasks.index(task) for task in tasks])
                    if tasks:
                        losses_T.index_add_(0, index_K, part_K.to("cpu", torch.float64))
        losses_T = torch.stack(ranks.gather(losses_T)).sum(0)
        labelled_T = torch.tensor([task in self._counts for task in self._tasks])
        losses_T = torch.where(labelled_T, losses_T, torch.nan)
        of_S = [losses_T[[self._tasks.index(t) for t in tasks]] for tasks in self._tasks_of]
        return torch.stack([losses_K.nanmean() for losses_K in of_S])
