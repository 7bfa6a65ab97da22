"""Data maps: which rows a task finds easy, hard or ambiguous as it trains, and how alike that is.

Source: Swayamdipta et al., "Dataset Cartography", EMNLP 2020, https://arxiv.org/abs/2009.10795;
    for tasks: Sherif et al., "STG-MTL", 2023, https://arxiv.org/abs/2307.03374
Differs from the source: the affinity is the correlation of two maps over their rows; the source
    clusters the maps themselves, which `stg_mtl` does.
Shapes: N = rows, T = tasks, R = rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.errors import DataError, RunError, UsageError, unknown
from polytask.relate.base import Affinity, check_tasks
from polytask.relate.jackknife import jackknife


class DataMaps:
    """Mean and spread of the probability of the true class, of every task and row, over epochs.

        maps = DataMaps(tasks, rows=len(train))
        maps.observe("sea", rows_R, probability_R)   # once per row and epoch
        stg_mtl(maps, 3), maps.affinity()

    rows: N, of the training split. For regression tasks give exp(-loss) or another number in
    [0, 1] that is higher the better a row is met.
    """

    def __init__(self, tasks: Sequence[str], rows: int) -> None:
        check_tasks(tasks, "DataMaps")
        if rows < 1:
            raise UsageError(f"DataMaps: rows is {rows}; give those of the training split, >= 1.")
        self.tasks = tuple(tasks)
        self._count_TN = torch.zeros(len(tasks), rows, dtype=torch.float64)
        self._mean_TN, self._squares_TN = self._count_TN.clone(), self._count_TN.clone()

    def observe(self, task: str, rows_R: Tensor, probability_R: Tensor) -> None:
        """Add what a task gave the true class of some rows; leave rows without a label out.

        rows_R: different rows, as integers. Raises UsageError where a probability is none.
        """
        if task not in self.tasks:
            raise unknown("task", task, self.tasks, f"The tasks are: {', '.join(self.tasks)}.")
        rows_R = rows_R.detach().to("cpu", torch.int64).reshape(-1)
        given_R = probability_R.detach().to("cpu", torch.float64).reshape(-1)
        different = len(set(rows_R.tolist()))
        if len(rows_R) != len(given_R) or different != len(rows_R):
            raise UsageError(
                f"DataMaps: {len(rows_R)} rows ({different} different ones) and "
                f"{len(given_R)} probabilities; give one for each of different rows."
            )
        if not bool(((given_R >= 0) & (given_R <= 1)).all()):
            raise UsageError("DataMaps: probabilities of the true class lie in [0, 1].")
        t = self.tasks.index(task)
        self._count_TN[t, rows_R] += 1
        off_R = given_R - self._mean_TN[t, rows_R]
        self._mean_TN[t, rows_R] += off_R / self._count_TN[t, rows_R]
        self._squares_TN[t, rows_R] += off_R * (given_R - self._mean_TN[t, rows_R])

    def maps(self) -> Tensor:
        """Return confidence and variability, (T, N, 2); NaN where a row was never seen."""
        count_TN = self._count_TN
        spread_TN = (self._squares_TN / count_TN.clamp_min(1)).sqrt()
        return torch.stack([self._mean_TN, spread_TN], 2).masked_fill(
            count_TN[..., None] == 0, torch.nan
        )

    def affinity(self) -> Affinity:
        """Return the correlation of the tasks' maps over the rows that all of them have.

        A similarity, not a help: centre it before grouping. Needs 20 such rows or more.
        """
        maps_TN2 = self.maps()
        common_N = ~maps_TN2.isnan().any(2).any(0)
        common_TN2 = maps_TN2[:, common_N]

        def similarity(rows_N: Tensor) -> Tensor:
            chosen_TN2 = common_TN2[:, rows_N]
            return torch.corrcoef((chosen_TN2 - chosen_TN2.mean(1, keepdim=True)).flatten(1))

        values_TT, error_TT = jackknife(int(common_N.sum()), similarity, "DataMaps")
        return Affinity(self.tasks, values_TT, error_TT, "data-maps", zero=False)

    def complete(self) -> Tensor:
        """Return the maps (T, M, 2) of the rows that all tasks have, or raise DataError."""
        maps_TN2 = self.maps()
        common_N = ~maps_TN2.isnan().any(2).any(0)
        if not bool(common_N.any()):
            raise DataError("DataMaps: no row was seen with every task; they cannot be compared.")
        return maps_TN2[:, common_N]

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of all it knows."""
        tables = (self._count_TN, self._mean_TN, self._squares_TN)
        return {n: v.clone() for n, v in zip(_NAMES, tables, strict=True)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave; raise RunError where it is of other tasks or rows."""
        shape = self._count_TN.shape
        if set(state) != set(_NAMES) or any(state[n].shape != shape for n in _NAMES):
            raise RunError(
                f"DataMaps: the saved state is not of {shape[0]} tasks and {shape[1]} rows."
            )
        self._count_TN, self._mean_TN, self._squares_TN = (state[n].clone() for n in _NAMES)


_NAMES = ("count_TN", "mean_TN", "squares_TN")
