"""One adapted layer at work: its input and output in rows, its adapters one after another.

Shapes: B = rows of the batch, N = what a row has here, C = channels, K = rows at this layer, a
multiple of B where windows or tokens are rows.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.adapt import recompute
from polytask.adapt.base import Adapter, Layer, Rows
from polytask.adapt.layers import CHANNELS_FIRST
from polytask.errors import UsageError


class Current:
    """Which rows the model runs with now, for all its adapted layers.

    folded: the task whose change is in the base's weights, so that adapters stand aside.
    """

    def __init__(self, base: nn.Module, parts: nn.Module) -> None:
        self.modules = (base, parts)
        self.rows: Rows | None = None
        self.thread: int | None = None
        self.folded: str | None = None
        self.spans: deque[recompute.Span] = deque(maxlen=recompute.MOST)

    def __deepcopy__(self, memo: dict[int, Any]) -> Current:
        """Return that of a copied model: no batch is current there, no pass is made again."""
        made = memo[id(self)] = Current.__new__(Current)
        made.__init__(*copy.deepcopy(self.modules, memo))  # type: ignore[misc]
        made.folded = self.folded
        return made

    def follow(self) -> None:
        """Put the adapters into the base's mode: `model.eval()` reaches them although they are no
        modules of the model."""
        base, parts = self.modules
        if parts.training != base.training:
            parts.train(base.training)

    def of(self, path: str) -> Rows:
        """Return the rows, those of the pass that is made again inside of backward."""
        if not torch.compiler.is_compiling() and recompute.in_backward():
            return recompute.rows_before(self.spans)
        if self.rows is None:
            raise UsageError(
                f"The adapted layer {path!r} ran without anybody naming tasks: use "
                "`with adapted.tasks(index):`, `with adapted.task(name):`, or "
                "`with adapted.without():` for the base."
            )
        return self.rows


class Place:
    """A layer with its adapters: a forward hook, and what packed attention calls itself.

    What it asks is asked once per layer and pass: with one token per row a microsecond counts.
    """

    def __init__(self, layer: Layer, adapters: Sequence[Adapter], current: Current) -> None:
        self.layer, self.adapters, self.current = layer, tuple(adapters), current
        self.lengthens = any(adapter.lengthens for adapter in adapters)
        self.guessed = layer.kind == "module" and not self.lengthens
        self.numbers = layer.kind == "embedding"
        self.pictures = channels_first(layer)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        """Return the layer's output with its adapters' changes."""
        rows = self.rows()
        if rows is None:
            return None
        x = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(output, Tensor):
            return self.change(x, output, rows)
        # Hugging Face's blocks return tuples whose first is the hidden state.
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (self.change(x, output[0], rows), *output[1:])
        raise UsageError(
            f"{self.layer.path!r} returns a {type(output).__name__}; a layer that returns a tensor "
            "can be adapted."
        )

    def rows(self) -> Rows | None:
        """Return the rows that run now; None where adapters stand aside: a task is folded into the
        base, or the base alone is asked for."""
        if self.current.folded is not None:
            return None
        rows = self.current.of(self.layer.path)
        return None if rows.aside else rows

    def change(self, x: Any, y: Tensor, rows: Rows) -> Tensor:
        """Return the output y of the layer for the input x with its adapters' changes."""
        if not isinstance(x, Tensor) or x.is_nested or y.is_nested:
            raise UsageError(
                f"{self.layer.path!r} runs on a {type(x).__name__}; adapted layers take plain "
                "tensors (build nn.TransformerEncoder with enable_nested_tensor=False)."
            )
        axis = self.layer.axis
        if self.lengthens and y.dim() == 3 and not y.shape[axis] % rows.index_B.shape[0]:
            rows = rows.spread(y.shape[axis])
        many = rows.index_B.shape[0]
        x_rows = self._split(x, many, self.numbers)
        changed = y_rows = self._split(y, many, False)
        if self.guessed and (y.shape[-1], x.shape[-1]) != (self.layer.outputs, self.layer.inputs):
            raise UsageError(
                f"{self.layer.path!r} turned out to take {x.shape[-1]} channels and give "
                f"{y.shape[-1]}, not {self.layer.inputs} and {self.layer.outputs}; name a layer or "
                "block whose channels are known, or give Where(..., width=...)."
            )
        for adapter in self.adapters:
            changed = adapter(x_rows, changed, rows)
        if changed.shape == y.shape and not axis:
            return changed
        return self._join(changed, y, y_rows)

    def _split(self, value: Tensor, many: int, plain: bool) -> Tensor:
        """Return (B, N, C), or (B, N, C, H, W) of what has channels first; plain: (B, N)."""
        axis, shape = self.layer.axis, value.shape
        if value.dim() <= axis + (not plain) or shape[axis] % many:
            raise UsageError(
                f"{self.layer.path!r} has an input or output of shape {tuple(shape)}, whose "
                f"dimension {axis} should be the batch: {many} rows, or a multiple of them. "
                "Say where the batch is: Where(..., axis=1)."
            )
        if axis:
            value = value.movedim(axis, 0)
        if plain:
            return value.reshape(many, -1)
        if self.pictures:
            return value.reshape(many, value.shape[0] // many, *value.shape[1:])
        if value.dim() == 3 and value.shape[0] == many:
            return value
        return value.reshape(many, -1, value.shape[-1])

    def _join(self, changed: Tensor, y: Tensor, y_rows: Tensor) -> Tensor:
        axis = self.layer.axis
        if changed.shape != y_rows.shape:
            if y.dim() != 3 or y.shape[axis] != changed.shape[0]:
                raise UsageError(
                    f"{self.layer.path!r} has an output of shape {tuple(y.shape)}; positions can "
                    "be put before outputs of shape (batch, positions, channels) alone."
                )
            return changed.movedim(0, axis)
        if not axis:
            return changed.reshape(y.shape)
        return changed.reshape(y.movedim(axis, 0).shape).movedim(0, axis)


def takes_channels_last(layer: Layer) -> str:
    """Return why a method of channels that are the last axis refuses a layer, "" where it does
    not."""
    return "its channels are not its last axis" if channels_first(layer) else ""


def channels_first(layer: Layer) -> bool:
    """Return whether a layer's channels are axis 1."""
    return layer.kind == "conv" or isinstance(layer.module, CHANNELS_FIRST)
