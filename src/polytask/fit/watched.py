"""What watches a run: methods that look at the tasks' losses and gradients while all train.

A look costs passes of its own and leaves the run as it was, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from polytask.errors import RunError
from polytask.fit import checkpoint, ranks
from polytask.fit.data import Step
from polytask.fit.step import buffers_kept, task_losses
from polytask.records import file_name
from polytask.relate import Affinity, Losses, Watch
from polytask.share import SharedModel

MakeWatch = Callable[[SharedModel, Optimizer, tuple[str, ...]], Watch]
"""The run's model, its optimiser and the names of its tasks -> what watches it."""


class Watched:
    """All that watches one run, by name.

    Raises RunError in a run of several processes: each would watch its own rows.
    """

    def __init__(
        self, watches: Mapping[str, MakeWatch], model: SharedModel, optimiser: Optimizer
    ) -> None:
        if watches and ranks.world() > 1:
            raise RunError(
                f"{', '.join(watches)}: a run that is watched is of one process; start it without "
                "torchrun."
            )
        self._model = model
        self._watches = {
            name: make(model, optimiser, tuple(model.tasks)) for name, make in watches.items()
        }

    def observe(self, fed: Step, precision: str) -> None:
        """Show them the step to come: the losses of its first micro-batch, which stand for it."""
        if not self._watches:
            return
        losses = _Lazily(lambda: _losses(self._model, fed, precision))
        for watch in self._watches.values():
            watch.observe(losses, again=lambda: _losses(self._model, fed, precision))

    def save(self, folder: Path) -> None:
        """Write what they found, one file each; see `affinity_of`."""
        for name, watch in self._watches.items():
            watch.affinity().save(_path(folder, name))

    def state_dict(self) -> dict[str, Tensor]:
        """Return all they know, as tensors."""
        kept: dict[str, Tensor] = {}
        for name, watch in self._watches.items():
            kept |= checkpoint.named(name, watch.state_dict())
        return kept

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        for name, watch in self._watches.items():
            watch.load_state_dict(checkpoint.under(name, tensors))


def affinity_of(folder: Path, name: str) -> Affinity:
    """Return what the watch of this name found in a finished run."""
    return Affinity.load(_path(folder, name))


def _path(folder: Path, name: str) -> Path:
    return folder / f"affinity-{file_name(name)}.json"


class _Lazily(Mapping[str, Tensor]):
    """The losses of a step, computed when somebody looks: most steps nobody does."""

    def __init__(self, make: Callable[[], Losses]) -> None:
        self._make = make
        self._made: Losses | None = None

    def _all(self) -> Losses:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __getitem__(self, task: str) -> Tensor:
        return self._all()[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _losses(model: SharedModel, fed: Step, precision: str) -> dict[str, Tensor]:
    """Return the step's losses as its own pass will see them; that pass is not disturbed."""
    devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
    with torch.random.fork_rng(devices), buffers_kept(model):
        tasks, losses_K = task_losses(model, fed.micros[0], fed.counts, precision)
    return dict(zip(tasks, losses_K.unbind(), strict=True))
