"""Hard sharing: one encoder for all tasks, one head per task.

Source: Caruana, "Multitask Learning", Machine Learning 28, 1997,
    https://doi.org/10.1023/A:1007379606734
Differs from the source: nothing known. The source's one output layer is here one head per task,
    so that heads of any kind can stand side by side.
Shapes: B = rows, F = channels of the features, O = outputs of all linear heads together.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError, unknown
from polytask.share.base import Features, Inputs, SharedModel, branches_of, check_width, key
from polytask.share.heads import plain_linear
from polytask.tasks import Task, TaskSet


class HardSharing(SharedModel):
    """A model whose tasks share all of `encoder` and have a head each.

    encoder: inputs -> features: one tensor, or a mapping with some of "row" (B, F),
        "sequence" (B, L, F) and "map" (B, F, H, W). One that reads several modalities names their
        own parts in an nn.ModuleDict `branches`.
    heads: task -> module that takes features. Their order is axis T.
    reads: task -> the name of the feature its head takes, where the encoder gives a mapping;
        a task not named reads "row".

    Heads that are plain `nn.Linear` and read the same feature run as one matrix product, whatever
    their number; they stay modules of their own, in `heads` and in checkpoints.
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        reads: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if not heads:
            raise UsageError("HardSharing needs a head for at least one task; none was given.")
        reads = reads or {}
        for task in reads:
            if task not in heads:
                raise unknown("task", task, heads, f"The heads are for: {', '.join(heads)}.")
        self.encoder = encoder
        self._tasks = tuple(heads)
        self._keys = {task: key(task) for task in heads}
        self._reads = {task: reads.get(task, "row") for task in heads}
        self.heads = nn.ModuleDict({self._keys[task]: head for task, head in heads.items()})

    @classmethod
    def build(cls, encoder: nn.Module, width: int, tasks: TaskSet) -> Self:
        """Return the model whose heads are those of the tasks' kinds, for `width` channels."""
        check_width(encoder, width, "HardSharing")
        heads = {task.name: task.kind.head(width) for task in tasks}
        return cls(encoder, heads, {task.name: task.kind.reads for task in tasks})

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def head(self, task: str) -> nn.Module:
        """Return the head of one task."""
        return self.heads[self._keys[self._asked((task,))[0]]]

    def forward(self, inputs: Inputs, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return one output per asked task, in the order asked; no task asked, nothing runs."""
        asked = self._asked(tasks)
        return self.read(self.encoder(inputs), asked) if asked else {}

    def read(self, features: Features, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return what the heads of these tasks make of the encoder's features."""
        outputs: dict[str, Tensor] = dict.fromkeys(tasks, _NOTHING)  # fixes the order
        linear: dict[tuple[str, bool], dict[str, nn.Linear]] = {}
        heads = self.heads
        for task in tasks:
            head, read = heads[self._keys[task]], self._reads[task]
            if plain_linear(head):
                linear.setdefault((read, head._parameters["bias"] is None), {})[task] = head
            else:
                outputs[task] = head(self._feature(features, read, task))
        for (read, _), layers in linear.items():
            feature = self._feature(features, read, next(iter(layers)))
            together = _linear_together(feature, tuple(layers.values()))
            outputs.update(zip(layers, together, strict=True))
        return outputs

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's parameters, also where the model has one task alone."""
        return list(self.encoder.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of this task's head."""
        return list(self.head(task).parameters())

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of each part in the encoder's ModuleDict `branches`, if any."""
        return branches_of(self.encoder)

    def add_task(self, task: Task, head: nn.Module | None = None) -> None:
        """Add a task with a new head; asked as before, every other output is the same bits.

        head: None: the kind's own, for as many channels as the first head has, which then must be
            linear.
        """
        if task.name in self._tasks:
            raise UsageError(f"The model has a task {task.name!r} already; name the new one anew.")
        if head is None:
            first = self.head(self._tasks[0])
            if not isinstance(first, nn.Linear):
                raise UsageError(
                    f"HardSharing: cannot tell the features' width from a "
                    f"{type(first).__name__}; give add_task(task, head)."
                )
            head = task.kind.head(first.in_features).to(first.weight)
        self._keys[task.name] = key(task.name)
        self._reads[task.name] = task.kind.reads
        self.heads[key(task.name)] = head
        self._tasks = (*self._tasks, task.name)

    def extract(self, task: str) -> nn.Module:
        """Return a model of one task alone, inputs -> its output, with copies of the weights."""
        head = copy.deepcopy(self.head(task))
        return Single(copy.deepcopy(self.encoder), head, self._reads[task])

    def _feature(self, features: Features, read: str, task: str) -> Tensor:
        if isinstance(features, Tensor):
            return features
        if read not in features:
            raise UsageError(
                f"The head of {task!r} reads the feature {read!r}, but the encoder "
                f"{type(self.encoder).__name__} gives {', '.join(map(repr, features))}."
            )
        return features[read]


class Single(nn.Module):
    """Inputs -> the one output of a head that reads one of the encoder's features."""

    def __init__(self, encoder: nn.Module, head: nn.Module, read: str) -> None:
        super().__init__()
        self.encoder, self.head, self._read = encoder, head, read

    def forward(self, inputs: Inputs) -> Tensor:
        features = self.encoder(inputs)
        output: Tensor = self.head(
            features if isinstance(features, Tensor) else features[self._read]
        )
        return output


_NOTHING = torch.empty(0)


def _linear_together(feature: Tensor, layers: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Return every layer's output: views of one product. All have a bias, or none has."""
    weights = _own(layers, "weight")
    biases = _own(layers, "bias")
    if len(layers) == 1:
        return [functional.linear(feature, weights[0], biases[0] if biases else None)]
    weight_OF = torch.cat(weights)
    bias_O = torch.cat(biases) if biases else None
    outputs = functional.linear(feature, weight_OF, bias_O)
    return torch.split(outputs, [weight.shape[0] for weight in weights], dim=-1)


def _own(layers: Sequence[nn.Linear], name: str) -> list[Tensor]:
    # Straight from the dict: at 139 heads nn.Module's look-up would cost as much as the product.
    return [own for layer in layers if (own := layer._parameters[name]) is not None]
