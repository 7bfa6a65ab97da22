"""Adapting: one layer -> the same layer plus a trained change per task.

How to write a method, in one file (`ssf.py` and `lora.py` are short examples):

1. A frozen dataclass of settings that extends `Method`: `kinds`, the layers it can change, and
   `build`, which returns an `Adapter` for one layer and T tasks, drawn from the generator.
2. That `Adapter`: parameters stacked (T, ...), named in `per_task`; `forward(x, y, rows)` returns
   the layer's output with the change. x and y come with the rows first, whatever the layer:
   (B, N, C) of layers that take channels last, (B, N, C, H, W) of convolutions; channels are axis
   2 in both. N is all that a row of the batch has here: tokens, or windows times tokens. A
   parameter of each row's task is `rows.take(self.down_TRI, x)`, (B, ...), and
   `rows.take(self.up_TRO, y, none=0.0)` where rows without a task need a neutral value, so that
   their output stays the base's, bit for bit. No loop over tasks or rows, no look at their values.
3. `change(task, weight, bias)`, where the method is a change of weights.
4. What all layers have together (a hypernetwork, one routing for all) is a module that
   `Method.common` returns; `build` gets it, and the adapter keeps it as `self.common`. Weights over
   experts come from `selection.Selection`. What a row needs beyond its task (a preference, an
   embedding) is handed to `adapted.tasks(index, given={name: tensor})` and read by
   `rows.given_for(name, who)`. Penalties and routing weights are left by `rows.note_penalty` and
   `rows.note_weights`, for whoever hands in a `Trace`.
5. A row in `catalog.py`, room "adapt". The engine does everything else: finding layers, rows,
   freezing, growing, folding, files. `polytask.testing.check_adapter(method)` tries all of that,
   and `tests/adapt/test_contract.py` does so for every row; beside it belongs a test against a
   plain loop over rows, written from the equations.

Shapes: B = rows of the batch, N = what a row has at this layer, T = tasks, I, O = inputs and
outputs of a layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from polytask.errors import UsageError

Kind = Literal["linear", "conv", "embedding", "norm", "attention", "module"]
"""What a layer is. "attention": torch's packed nn.MultiheadAttention (its projections are "linear"
layers of their own), and modules that ask transformers' registry how to attend. "module": anything
else whose output has channels last, and those modules too."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One place of the base model: where, of which kind, and its weights.

    path: name in the base, such as "blocks.0.attn.q_proj". inputs, outputs: channels; of an
    embedding, entries and channels. weight, bias: names of the module's parameters, None where
    there is none. rows: the part of a packed weight that is this layer's.
    flipped: the parameter is stored (I, O): embeddings, and Hugging Face's Conv1D.
    axis: the dimension of its input that holds the batch.
    inside: the packed attention whose projection it is, None for others.
    """

    path: str
    kind: Kind
    module: nn.Module
    inputs: int
    outputs: int
    weight: str | None = None
    bias: str | None = None
    rows: tuple[int, int] | None = None
    flipped: bool = False
    axis: int = 0
    inside: nn.MultiheadAttention | None = None

    def weight_OI(self) -> Tensor:
        """Return the base's weight as it is now, a view: (O, I), of convolutions (O, I, k, ...),
        of norms (O,)."""
        assert self.weight is not None, f"{self.path} has no weight"
        weight: Tensor = getattr(self.module, self.weight).detach()
        if self.rows is not None:
            weight = weight[self.rows[0] : self.rows[1]]
        return weight.t() if self.flipped else weight

    def bias_O(self) -> Tensor | None:
        """Return the base's bias as it is now, a view of shape (O,); None without one."""
        bias: Tensor | None = None if self.bias is None else getattr(self.module, self.bias)
        if bias is None:
            return None
        bias = bias.detach()
        return bias if self.rows is None else bias[self.rows[0] : self.rows[1]]


@dataclass
class Trace:
    """What a forward pass leaves behind besides its output, for whoever hands one in.

    penalties: path of a layer -> a scalar with its graph, to be added to the loss.
    weights: path of a layer -> what its selection took, see `selection.Selection`.
    """

    penalties: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)


class Rows:
    """Which task each row of the batch has, for the layers that run now.

    index_B: int64, -1 where a row has none. at_B: the same with 0 in place of -1. here_B: bool.
    One row stands for a whole batch of one task. aside: adapters do not run at all. all_here: it is
    known that every row has a task, so that nothing has to be put in for those without.
    """

    def __init__(
        self,
        index_B: Tensor,
        given: Mapping[str, Tensor] | None = None,
        trace: Trace | None = None,
        aside: bool = False,
        all_here: bool = False,
    ) -> None:
        self.aside, self.all_here = aside, all_here
        self.index_B = index_B
        self.at_B = index_B.clamp(min=0)
        self.here_B = index_B >= 0
        self.given = dict(given or {})
        self.trace = trace

    def take(self, values_T: Tensor, like: Tensor, none: float | None = None) -> Tensor:
        """Return each row's own of stacked values, (B, ...), in the dtype of `like`.

        none: what rows without a task get; None: they get the first task's, which must not matter.
        """
        # Taken whole: one operator for any number of tasks, and of the rows' size, not of T's.
        at_B = self.at_B
        if at_B.device != values_T.device:  # a model on several devices
            at_B = at_B.to(values_T.device)
        taken = values_T.index_select(0, at_B)
        if none is not None:
            taken = self.only(taken, none)
        return taken if taken.dtype == like.dtype else taken.to(like.dtype)

    def only(self, values_B: Tensor, none: float) -> Tensor:
        """Return the same with `none` for rows without a task; (1, ...) stands for all rows."""
        # Compiled code serves all patterns of tasks, so it does not ask for this one.
        if not torch.compiler.is_compiling() and self.all_here:
            return values_B
        here_B = self.here_B
        if here_B.device != values_B.device:
            here_B = here_B.to(values_B.device)
        return torch.where(here_B.view(-1, *[1] * (values_B.dim() - 1)), values_B, none)

    def spread(self, many: int) -> Rows:
        """Return the rows of a layer with `many` of them, a multiple of these: each repeated."""
        each = many // self.index_B.shape[0]
        if each == 1:
            return self
        repeated = self.index_B.repeat_interleave(each)
        return Rows(repeated, self.given, self.trace, self.aside, self.all_here)

    def given_for(self, name: str, who: str) -> Tensor:
        """Return what was handed in under this name, or raise UsageError naming who needs it."""
        if name not in self.given:
            raise UsageError(
                f"{who} needs {name!r} of every row; hand it in: "
                f"adapted.tasks(index, given={{{name!r}: tensor}}), or where all rows of a task "
                "have the same, to AdaptedModel(..., given=...)."
            )
        return self.given[name]

    def note_penalty(self, path: str, penalty: Tensor) -> None:
        """Leave a layer's penalty in the trace, if there is one."""
        if self.trace is not None:
            self.trace.penalties[path] = penalty

    def note_weights(self, path: str, weights: Tensor) -> None:
        """Leave what a layer's selection took in the trace, if there is one."""
        if self.trace is not None:
            self.trace.weights[path] = weights.detach()


class Adapter(nn.Module):
    """One layer's trained change for all tasks.

    per_task: names of its parameters and buffers with axis T first. A task added to the model
        adds a row to each, drawn as `Method.build` draws.
    """

    per_task: tuple[str, ...] = ()
    folds: ClassVar[bool] = False
    """Whether it is a change of weights, which `change` gives."""
    lengthens: ClassVar[bool] = False
    """Whether it puts positions before those of y, (B, N, C). It then sees every row of the layer
    as one of the batch."""
    needs_task: ClassVar[bool] = False
    """Whether every row needs a task, as where prompts make all rows longer: then rows without one
    are not the base's, and need a batch of their own, `adapted.without()`."""
    reads_weights: ClassVar[bool] = False
    """Whether the change depends on the base's weights; then it comes first at its layer."""
    penalises: ClassVar[bool] = False
    """Whether it notes a penalty that training needs."""
    trains_layer: ClassVar[bool] = False
    """Whether the layer's own weights are trained beside it."""

    def __init__(self, layer: Layer, common: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        self._common = (common,)  # in a tuple: it belongs to all layers, and is registered once

    @property
    def common(self) -> nn.Module | None:
        """What `Method.common` returned, for all layers together."""
        return self._common[0]

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        """Return the changed output, in the shape of y; of prompts, with positions before y's own.

        x, y: the layer's input and output, (B, N, C) or (B, N, C, H, W); of an embedding x is
        (B, N). Neither may be written to, except y where no gradient is recorded.
        """

    def change(
        self, task: int, weight_OI: Tensor, bias_O: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the exact change of one task to a weight and a bias, in their shapes and float64.

        weight_OI, bias_O: float64, as `Layer` gives them, with the changes of adapters before this
        one. A change of a bias that is not there may come back; the engine answers for it.
        Only where `folds`.
        """
        raise UsageError(
            f"{type(self).__name__} says that it folds, and has no change(); write one, or leave "
            "`folds` False."
        )


class Method(ABC):
    """Settings of a way to adapt layers; concrete methods are frozen dataclasses."""

    kinds: ClassVar[tuple[Kind, ...]]
    """The kinds of layers it can change."""

    def refuses(self, layer: Layer) -> str:
        """Return why this layer of one of its kinds cannot be changed, "" where it can.

        Such layers are passed by where nobody named any, and are an error where somebody did.
        """
        return ""

    @abstractmethod
    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's adapter for T tasks, on the CPU in float32.

        common: what `common` returned.
        """

    def common(self, layers: Sequence[Layer], tasks: int, generator: Generator) -> nn.Module | None:
        """Return what all layers have together, None where nothing; may have a `per_task` too."""
        return None


def along_channels(vector_BO: Tensor, like: Tensor) -> Tensor:
    """Return vectors of each row's channels in a shape that meets (B, N, C) or (B, N, C, H, W)."""
    return vector_BO.view(len(vector_BO), 1, -1, *[1] * (like.dim() - 3))


def uniform(shape: Sequence[int], bound: float, generator: Generator) -> nn.Parameter:
    """Return a parameter drawn from U(-bound, bound)."""
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound, generator=generator))


def normal(shape: Sequence[int], mean: float, std: float, generator: Generator) -> nn.Parameter:
    """Return a parameter drawn from N(mean, std^2)."""
    return nn.Parameter(torch.empty(*shape).normal_(mean, std, generator=generator))
