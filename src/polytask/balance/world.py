"""The processes that share one global batch: what each must know of the others.

Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor

from polytask.balance.losses import At, Axis
from polytask.balance.sharded import is_sharded, pieces
from polytask.balance.wrapped import Watch
from polytask.errors import UsageError


class World:
    """A process group. None: all processes, where torch.distributed is initialised, else one."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._watch = Watch(group)

    @property
    def size(self) -> int:
        if self._group is None and not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self._group)

    @property
    def rank(self) -> int:
        return dist.get_rank(self._group) if self.size > 1 else 0

    def gather(self, tensor: Tensor) -> Tensor:
        """Return every process's tensor, all of one shape, along a new dim 0."""
        theirs = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(theirs, tensor.contiguous(), group=self._group)
        return torch.stack(theirs)

    def everywhere(self, here: bool, device: torch.device) -> bool:
        """Return whether it is so in every process."""
        count = torch.tensor(float(here), device=device)
        self.add_up(count)
        return int(count) == self.size

    def anywhere(self, flag: Tensor, shared: Sequence[Tensor]) -> bool:
        """Return whether the number is not 0 in any process. shared: on devices that can talk."""
        if self.size > 1:
            flag = flag.to(shared[0].device if shared else flag.device)
            self.add_up(flag)
        return bool(flag)

    def add_up(self, tensor: Tensor) -> None:
        """Replace the tensor by its sum over the processes, in place."""
        dist.all_reduce(tensor, group=self._group)

    def side_by_side(self, rows_KN: Tensor) -> tuple[Tensor, slice]:
        """Return every process's columns, in the order of the processes, and which are this one's.

        rows_KN: as many rows in every process, of one dtype; any number of columns.
        """
        columns = rows_KN.shape[1]
        counts = self.gather(torch.tensor([columns], device=rows_KN.device)).flatten().tolist()
        padded = torch.nn.functional.pad(rows_KN, (0, max(counts) - columns))
        found = [part[:, :count] for part, count in zip(self.gather(padded), counts, strict=True)]
        start = sum(counts[: self.rank])
        return torch.cat(found, dim=1), slice(start, start + columns)

    def add_up_rows(self, rows_KL: Tensor, shared: Sequence[Tensor]) -> None:
        """Sum rows over the processes in place, save the columns of sharded parameters."""
        if not any(map(is_sharded, shared)):
            self.add_up(rows_KL)
            return
        for _, parameter, at in pieces(shared):
            if not is_sharded(parameter):
                summed = rows_KL[:, at].contiguous()
                self.add_up(summed)
                rows_KL[:, at] = summed

    @property
    def unwatched(self) -> bool:
        """Whether there are several processes, and no backward pass was watched yet."""
        return self.size > 1 and not self._watch.looked

    def watched(self, marks: Callable[[], Tensor]) -> AbstractContextManager[None]:
        """Return a context for backward passes that no wrapper may average; see `Watch.over`."""
        return self._watch.over(marks) if self.size > 1 else contextlib.nullcontext()

    def check_alike(self, axis: Axis, at: At, device: torch.device) -> None:
        """Raise UsageError, in every process, where a task is present in some processes alone."""
        counts_T = torch.zeros(len(axis.tasks), device=device)
        if at:
            counts_T[axis.index(at, device)] = 1.0
        self.add_up(counts_T)
        for task, count in zip(axis.tasks, counts_T.tolist(), strict=True):
            if 0 < count < self.size:
                raise UsageError(
                    f"Balancer: task {task!r} is present in {int(count)} of {self.size} processes; "
                    "the backward pass of sharded parameters needs them all. Where a process has "
                    "no label of it, give the sum over no rows, which has a graph and is 0."
                )

    def exchange(
        self, axis: Axis, at: At, losses_K: Tensor, device: torch.device
    ) -> tuple[At, Tensor]:
        """Return the tasks present in any process, and their losses summed over the processes.

        device: one that the group can talk from.
        """
        both_2T = torch.zeros(2, len(axis.tasks), dtype=torch.float64, device=device)
        if at:
            index_K = axis.index(at, device)
            both_2T[0, index_K] = losses_K.to(torch.float64)
            both_2T[1, index_K] = 1.0
        self.add_up(both_2T)
        everywhere = tuple(t for t, count in enumerate(both_2T[1].tolist()) if count > 0)
        return everywhere, both_2T[0, axis.index(everywhere, device)]

    def reached_anywhere(self, reached: set[int], shared: Sequence[Tensor]) -> set[int]:
        """Return the positions of the shared parameters that a loss of any process reaches."""
        flags = torch.zeros(len(shared), dtype=torch.int32, device=shared[0].device)
        flags[sorted(reached)] = 1
        self.add_up(flags)
        return set(flags.nonzero().flatten().tolist())
