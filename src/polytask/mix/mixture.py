"""Mixture: a mix in anybody's loop, alone or under torch's DataLoader.

Shapes: S = streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from polytask.errors import RunError, UsageError
from polytask.mix.base import Mix, State
from polytask.mix.schedule import Counts, Schedule

Row = tuple[str, int]
"""A stream's name and the number of a row in it."""

Batch = TypeVar("Batch")


class Mixture:
    """Iterates the rows of each step: a list of (stream, row).

        for batch in Mixture(Temperature(2), {"news": 8000, "poems": 300}, batch_size=64, seed=0):
            ...

    method: what mixes. streams: rows of each, by name or in order; then they are called "0", "1".
    batch_size: rows of a step, over all processes together. seed: of the order.
    steps: those of the whole run; needed by methods that vary over it, and the end of the run.
        None: it goes on as long as it is iterated.
    epoch: steps of one pass of `for`; None: as many as take the rows of all streams together.
    rank, world: this process and how many there are; each takes its part of the same steps, every
        `world`-th row.

    The order follows from the settings and the seed alone: not from the number of processes, nor
    of a DataLoader's workers. Between two rows of a stream that are the same, all its others come.
    Where the method observes losses, show them by `observe`.
    """

    def __init__(
        self,
        method: Mix,
        streams: Mapping[str, int] | Sequence[int],
        batch_size: int = 1,
        seed: int = 0,
        *,
        steps: int | None = None,
        epoch: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.schedule = Schedule(method, streams, batch_size, seed, steps=steps)
        if not 0 <= rank < world:
            raise UsageError(f"Mixture: rank is {rank} of {world}; give 0 to {world - 1}.")
        if batch_size < world:
            raise UsageError(
                f"Mixture: batch_size is {batch_size} over {world} processes; give each a row."
            )
        if epoch is not None and epoch < 1:
            raise UsageError(f"Mixture: epoch is {epoch}; give at least 1 step, or None.")
        self.epoch = self.schedule.steps_per_epoch if epoch is None else epoch
        self.rank, self.world = rank, world
        self.step = 0
        self._cursors_S = self.schedule.start()

    @property
    def names(self) -> tuple[str, ...]:
        return self.schedule.streams.names

    def __len__(self) -> int:
        """Return the steps of the next pass."""
        left = self.epoch - self.step % self.epoch
        return (
            left
            if self.schedule.steps is None
            else max(0, min(left, self.schedule.steps - self.step))
        )

    def __iter__(self) -> Iterator[list[Row]]:
        """Yield the steps to the end of the epoch. The state is that after the one yielded."""
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise UsageError(
                f"Mixture: each of {worker.num_workers} workers would yield every step; inside a "
                "worker iterate mixture.sampler(), which yields its part."
            )
        for _ in range(len(self)):
            fed, self._cursors_S = self.schedule.walk(self.step, self._cursors_S)
            self.step += 1
            yield self._mine(fed)

    def sampler(self, *, flat: bool = False) -> Sampler:
        """Return what a DataLoader takes as `batch_sampler`; wrap the loader in `counted`.

        flat: numbers of rows in a ConcatDataset of the streams in order, in place of pairs.
        """
        return Sampler(self, flat)

    def counted(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield a loader's batches and count the steps they are, for `state_dict`.

        A loader draws ahead; what counts is what was handed out here.
        """
        for batch in loader:
            self._cursors_S = self.schedule.after(self.step, self._cursors_S)
            self.step += 1
            yield batch

    def observe(self, losses: Mapping[str, float]) -> None:
        """Show the method validation losses of streams, by name; one left out was not looked at.

        With a DataLoader, which draws ahead, between two passes: what it drew would be of before.
        """
        for name in losses:
            self.schedule.streams.at([name], "the mixture")
        found = [float(losses.get(name, torch.nan)) for name in self.names]
        self.schedule.observe(torch.tensor(found, dtype=torch.float64), self.step)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the next step follows from, as tensors alone."""
        return {
            "step": torch.tensor(self.step),
            "cursors_S": self._cursors_S.clone(),
            "sizes_S": self.schedule.streams.sizes_S.clone(),
            **{f"memory.{name}": value.clone() for name, value in self.schedule.memory.items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on at the exact row. Raises RunError where the state is of another mixture."""
        expected = self.state_dict()
        wrong = [
            name
            for name in {*expected, *state}
            if name not in state
            or name not in expected
            or state[name].shape != expected[name].shape
            or (name == "sizes_S" and not torch.equal(state[name].cpu(), expected[name]))
        ]
        if wrong:
            raise RunError(
                f"The state is of another mixture: {', '.join(sorted(wrong))} differ. Give the "
                "streams and the method it was saved with."
            )
        self.step = int(state["step"])
        self._cursors_S = state["cursors_S"].cpu().clone()
        memory: State = {
            name: state[f"memory.{name}"].cpu().clone() for name in self.schedule.memory
        }
        self.schedule.memory = memory

    def _mine(self, fed: list[tuple[int, Counts]]) -> list[Row]:
        """Return this process's rows of a step."""
        names = self.names
        rows = [(names[s], row) for s, rows_N in fed for row in rows_N.tolist()]
        return rows if self.world == 1 else rows[self.rank :: self.world]


class Sampler:
    """The steps of a mixture's next pass, from where it stands, without moving it.

    As a DataLoader's `batch_sampler`, with any number of workers. Or inside the `__iter__` of an
    IterableDataset: there each worker yields its own steps, which the loader puts in order.
    """

    def __init__(self, mixture: Mixture, flat: bool) -> None:
        self._mixture, self._flat = mixture, flat
        ends = torch.tensor(mixture.schedule.sizes).cumsum(0).tolist()
        self._starts = dict(zip(mixture.names, [0, *ends[:-1]], strict=True))

    def __len__(self) -> int:
        return len(self._mixture)

    def __iter__(self) -> Iterator[list[Row] | list[int]]:
        mixture, schedule = self._mixture, self._mixture.schedule
        worker = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # Where the pass begins: `counted` moves the mixture on meanwhile.
        first, cursors_S = mixture.step, mixture._cursors_S
        for i in range(len(mixture)):
            step = first + i
            if i % workers != own:
                cursors_S = schedule.after(step, cursors_S)
                continue
            fed, cursors_S = schedule.walk(step, cursors_S)
            rows = mixture._mine(fed)
            yield [self._starts[name] + row for name, row in rows] if self._flat else rows
