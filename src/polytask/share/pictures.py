"""Models of pictures: what stands between the inside of an encoder and the tasks' heads.

A trunk sees the features an encoder ends with. A `PictureTrunk` takes part on the way: it runs the
encoder piece by piece, and the encoder ends what came of it for each task as it ends its own
features. So one works for heads of pixels and of rows alike. `staged` and `m3vit` hold the two
families there are.

Shapes: B = rows of the batch, A = asked tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, Self

from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share import heads as run_heads
from polytask.share.base import Features, Inputs, Trace, key
from polytask.share.between import Alone, Between, BetweenModel, Seen, pick
from polytask.share.experts import Stacked
from polytask.tasks import TaskSet


class Run(Protocol):
    """Encoder, stacked tensors, pictures -> the encoder's features, of every task (A * B, ...)."""

    def __call__(
        self, encoder: nn.Module, stacked: Stacked, pictures: Tensor, seen: Seen | None
    ) -> Features: ...


class PictureTrunk(Between):
    """What an encoder of pictures does for each task on its way."""

    @abstractmethod
    def fit_to(self, encoder: nn.Module) -> int:
        """Return the width of the encoder's features; UsageError where the two do not fit."""

    @property
    @abstractmethod
    def run(self) -> Run:
        """How to run: a function that holds no weights.

        seen: takes what `gates` and `penalties` need, where somebody asks for it.
        """


class PictureModel(BetweenModel):
    """A model of an encoder of pictures, a trunk that takes part in it, and one head per task.

    heads: task -> module that takes features as the encoder's own. Their order is axis T, and
        they are the trunk's tasks. reads: task -> the name of the feature it reads, where the
        encoder gives a mapping; a task not named reads "row".

    Raises UsageError where encoder, trunk and heads do not fit.
    """

    trunk: PictureTrunk

    def __init__(
        self,
        encoder: nn.Module,
        trunk: PictureTrunk,
        heads: Mapping[str, nn.Module],
        reads: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(encoder, trunk, heads, reads, trunk.fit_to(encoder))

    @classmethod
    def build(cls, encoder: nn.Module, trunk: PictureTrunk, tasks: TaskSet) -> Self:
        """Return the model whose heads are those of the tasks' kinds."""
        width = trunk.fit_to(encoder)
        heads = {task.name: task.kind.head(width) for task in tasks}
        return cls(encoder, trunk, heads, {task.name: task.kind.reads for task in tasks})

    def forward(
        self, inputs: Inputs, tasks: Sequence[str] | None = None, trace: Trace | None = None
    ) -> dict[str, Tensor]:
        """Return one output per asked task, in the order asked; no task asked, nothing runs.

        trace: takes the penalties and the use of experts.
        """
        asked = tuple(dict.fromkeys(self._asked(tasks)))
        if not asked:
            return {}
        seen: Seen | None = None if trace is None else {}
        pictures = one_tensor(inputs, self.encoder)
        features = self.trunk.run(self.encoder, self.trunk.stack(asked), pictures, seen)
        outputs: dict[str, Tensor] = {}
        for read, names in self._readers(asked).items():
            at = [asked.index(task) for task in names]
            heads = {task: self.heads[key(task)] for task in names}
            outputs |= finished(heads, features, read, at, len(asked), self.encoder)
        outputs = {task: outputs[task] for task in asked}
        if trace is not None and seen is not None:
            trace.gates += self.trunk.gates(asked, seen)
            trace.penalties |= self.trunk.penalties(asked, seen, outputs)
        return outputs

    def extract(self, task: str) -> nn.Module:
        """Return a model of one task alone, inputs -> its output, with copies of the weights.

        It holds what the task needs and nothing else, and computes the same bits.
        """
        (name,) = self._asked((task,))
        return Extracted(self, name)


class Extracted(Alone):
    """One task's part of a `PictureModel`: inputs -> the task's output."""

    def __init__(self, model: PictureModel, task: str) -> None:
        super().__init__(model, task)
        self._run = model.trunk.run

    def forward(self, inputs: Inputs) -> Tensor:
        pictures = one_tensor(inputs, self.encoder)
        features = self._run(self.encoder, self.stacked, pictures, None)
        return finished({"": self.head}, features, self._read, [0], 1, self.encoder)[""]


def one_tensor(inputs: Inputs, encoder: nn.Module) -> Tensor:
    """Return the pictures; UsageError where inputs are something else."""
    if isinstance(inputs, Tensor):
        return inputs
    raise UsageError(
        f"{type(encoder).__name__} reads pictures, one tensor; got a mapping of "
        f"{', '.join(map(repr, inputs))}."
    )


def finished(
    heads: Mapping[str, nn.Module],
    features: Features,
    read: str,
    at: Sequence[int],
    tasks: int,
    encoder: nn.Module,
) -> dict[str, Tensor]:
    """Return the heads' outputs. at: where each head's task stands among the `tasks` that ran."""
    feature = pick(features, read, next(iter(heads)), encoder)
    every = feature.reshape(tasks, -1, *feature.shape[1:])
    mine = every if len(at) == tasks else every[list(at)]
    return run_heads.each(heads, mine, _as_it_is, apart=mine.ndim != 3)


def _as_it_is(x: Tensor) -> Tensor:
    return x
