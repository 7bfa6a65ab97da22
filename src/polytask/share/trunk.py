"""Trunks: what stands between an encoder's features and the tasks' heads.

Most architectures are trunks: features of a row -> features of the row for each asked task. A
trunk knows neither encoder nor heads, so one works on any encoder and inside any module; a
`TrunkModel` joins the three, and flattens positions: a trunk treats every word of a "sequence" and
every pixel of a "map" as a row.

Shapes: B = rows of the batch, R = rows a trunk sees (positions flattened), D = width of the
features, A = asked tasks, W = width of what the trunk gives each task, O = outputs of a head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share import heads as run_heads
from polytask.share.base import Features, Inputs, Trace, check_width, key
from polytask.share.between import Alone, Between, BetweenModel, pick
from polytask.share.between import Seen as Seen  # trunks take it from here
from polytask.share.experts import Stacked, part
from polytask.share.mixture import Mixture
from polytask.tasks import Task, TaskSet


class Trunk(Between):
    """Rows (R, D) -> (A, R, W), W features per asked task.

    Two steps: `stack` lays the parameters the asked tasks need side by side, `mix` computes with
    them and with nothing else. So what was not asked is not run, the number of operators does not
    grow with the number of tasks, and what is left for one task is a handful of tensors.

    inputs, width: D and W. also: features beside the rows that `mix` finds in `stacked`, by their
        names.
    """

    also: tuple[str, ...] = ()

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inputs, self.width = inputs, width

    @staticmethod
    @abstractmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor | Mixture:
        """Return (A, R, W) for the tasks that were stacked, or of what they are to be mixed.

        seen: takes what `gates` and `penalties` need, where somebody asks for it.
        """

    def forward(
        self,
        rows_RD: Tensor,
        tasks: Sequence[str] | None = None,
        also: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return (A, R, W); None asks for all tasks. also: the features of that name, if any."""
        stacked = self.stack(self.tasks if tasks is None else tasks)
        given = self.mix(stacked | dict(also or {}), rows_RD)
        return given.rows() if isinstance(given, Mixture) else given


class TrunkModel(BetweenModel):
    """A model of an encoder, a trunk, and one head per task.

    encoder: inputs -> features: one tensor, or a mapping with some of "row" (B, D),
        "sequence" (B, L, D) and "map" (B, D, H, W).
    heads: task -> module that takes features of the trunk's width. Their order is axis T, and
        they are the trunk's tasks. Heads that are alike run as one, see `heads`.
    reads: task -> the name of the feature it reads; a task not named reads "row".

    Raises UsageError where trunk, heads and encoder (if it tells its `width`) do not fit.
    """

    trunk: Trunk

    def __init__(
        self,
        encoder: nn.Module,
        trunk: Trunk,
        heads: Mapping[str, nn.Module],
        reads: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(encoder, trunk, heads, reads, trunk.width)
        check_width(encoder, trunk.inputs, type(trunk).__name__)

    @classmethod
    def build(
        cls, encoder: nn.Module, trunk: Trunk, tasks: TaskSet, towers: Sequence[int] = ()
    ) -> Self:
        """Return the model whose heads are those of the tasks' kinds.

        towers: widths of each task's own layers below its head, linear with ReLU; may be empty.
            Tasks that read a "map" have none.
        """
        heads = {task.name: _head(task, trunk.width, towers) for task in tasks}
        return cls(encoder, trunk, heads, {task.name: task.kind.reads for task in tasks})

    def forward(
        self, inputs: Inputs, tasks: Sequence[str] | None = None, trace: Trace | None = None
    ) -> dict[str, Tensor]:
        """Return one output per asked task, in the order asked; no task asked, nothing runs.

        trace: takes the penalties and the use of experts.
        """
        asked = self._asked(tasks)
        if len(asked) > 1:
            asked = tuple(dict.fromkeys(asked))
        if not asked:
            return {}
        if trace is None and len(asked) == 1:
            (task,) = asked
            encoder, trunk = part(self, "encoder"), part(self, "trunk")
            stacked, head = trunk.stack(asked), part(part(self, "heads"), key(task))
            return {task: one(inputs, encoder, trunk, stacked, head, self._reads[task], task)}
        encoder, trunk = self.encoder, self.trunk
        features = encoder(inputs)
        also = beside(features, trunk.also, encoder)
        outputs: dict[str, Tensor] = {}
        for read, names in self._readers(asked).items():
            feature = pick(features, read, names[0], encoder)
            seen: Seen | None = None if trace is None else {}
            given = trunk.mix(trunk.stack(names) | also, flat(feature, read, trunk.inputs), seen)
            heads = {task: self.heads[key(task)] for task in names}
            form = partial(shaped, feature=feature, read=read)
            outputs |= run_heads.each(heads, given, form, apart=read == "map")
            if trace is not None and seen is not None:
                self.share_loads(trace, seen, read)
                trace.gates += trunk.gates(names, seen)
                trace.penalties |= trunk.penalties(names, seen, outputs)
        return {task: outputs[task] for task in asked}

    def extract(self, task: str) -> nn.Module:
        """Return a model of one task alone, inputs -> its output, with copies of the weights.

        It holds what the task needs and nothing else, and computes the same bits as this model in
        evaluation mode.
        """
        (name,) = self._asked((task,))
        return Extracted(self, name)


class Extracted(Alone):
    """One task's part of a `TrunkModel`: inputs -> the task's output."""

    def __init__(self, model: TrunkModel, task: str) -> None:
        trunk = model.trunk
        super().__init__(model, task)
        self._form, self._task = Form(type(trunk).mix, trunk.inputs, trunk.also), task

    def forward(self, inputs: Inputs) -> Tensor:
        encoder, head = part(self, "encoder"), part(self, "head")
        return one(inputs, encoder, self._form, self.stacked, head, self._read, self._task)


@dataclass(frozen=True)
class Form:
    """What of a trunk is no parameter."""

    mix: Callable[[Stacked, Tensor], Tensor | Mixture]
    inputs: int
    also: tuple[str, ...]


def one(
    inputs: Inputs,
    encoder: nn.Module,
    trunk: Trunk | Form,
    stacked: Stacked,
    head: nn.Module,
    read: str,
    task: str,
) -> Tensor:
    """Return a task's output, from what the trunk stacked for it alone.

    Few lines of Python on purpose: with one row they cost as much as the products.
    """
    features = encoder(inputs)
    feature = features if isinstance(features, Tensor) else pick(features, read, task, encoder)
    if trunk.also:
        stacked = stacked | beside(features, trunk.also, encoder)
    given = trunk.mix(stacked, flat(feature, read, trunk.inputs))
    rows_1RW = given.rows() if isinstance(given, Mixture) else given
    return run_heads.called(head, shaped(rows_1RW[0], feature, read))


def beside(features: Features, names: Sequence[str], encoder: nn.Module) -> Stacked:
    """Return the features of these names."""
    if not names:
        return {}
    given = {} if isinstance(features, Tensor) else features
    missing = [name for name in names if name not in given]
    if missing:
        raise UsageError(
            f"The trunk reads the feature {missing[0]!r} beside its rows, but the encoder "
            f"{type(encoder).__name__} gives {', '.join(map(repr, given)) or 'one tensor'}."
        )
    return {name: given[name] for name in names}


DIMENSIONS = {"row": 2, "sequence": 3, "map": 4}
"""Of each feature, the rows' included."""


def flat(feature: Tensor, read: str, width: int) -> Tensor:
    """Return the feature with every position as a row, (R, D)."""
    if feature.ndim == 2 and feature.shape[1] == width and read == "row":  # as it is, mostly
        return feature
    if feature.ndim != DIMENSIONS.get(read, feature.ndim):
        raise UsageError(
            f"A {read!r} has {DIMENSIONS[read]} dimensions, but the encoder gives one of shape "
            f"{tuple(feature.shape)}; give the tasks that read it features of that form."
        )
    last = feature.movedim(1, -1) if read == "map" else feature
    if last.shape[-1] != width:
        raise UsageError(
            f"The trunk reads features of width {width}, but the encoder gives {read!r} of shape "
            f"{tuple(feature.shape)}; build the trunk with {last.shape[-1]} inputs."
        )
    return last.reshape(-1, width) if last.ndim != 2 else last


def shaped(rows_RW: Tensor, feature: Tensor, read: str) -> Tensor:
    """Return flattened rows in the shape of the feature they were made from."""
    if feature.ndim == 2:
        return rows_RW
    lead = (feature.movedim(1, -1) if read == "map" else feature).shape[:-1]
    full = rows_RW.reshape(*lead, rows_RW.shape[-1])
    return full.movedim(-1, 1) if read == "map" else full


def _head(task: Task, width: int, towers: Sequence[int]) -> nn.Module:
    if not towers or task.kind.reads == "map":
        return task.kind.head(width)
    return run_heads.with_tower(task.kind.head(towers[-1]), width, towers)
