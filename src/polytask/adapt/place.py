"""One adapted layer at work: its input and output in rows, its adapters one after another.

Shapes: B = rows of the batch, N = what a row has here, C = channels, K = rows at this layer, a
multiple of B where windows or tokens are rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.adapt import recompute
from polytask.adapt.base import Adapter, Layer, Rows
from polytask.errors import UsageError


class Current:
    """Which rows the model runs with now, for all its adapted layers.

    folded: the task whose change is in the base's weights, so that adapters stand aside.
    """

    def __init__(self) -> None:
        self.rows: Rows | None = None
        self.thread: int | None = None
        self.folded: str | None = None
        self.spans: deque[recompute.Span] = deque(maxlen=recompute.MOST)

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
    """A layer with its adapters: a forward hook, and what packed attention calls itself."""

    def __init__(self, layer: Layer, adapters: Sequence[Adapter], current: Current) -> None:
        self.layer, self.adapters, self.current = layer, tuple(adapters), current
        self.lengthens = any(adapter.lengthens for adapter in adapters)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        """Return the layer's output with its adapters' changes."""
        if self.aside():
            return None
        x = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(output, Tensor):
            return self.change(x, output)
        # Hugging Face's blocks return tuples whose first is the hidden state.
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (self.change(x, output[0]), *output[1:])
        raise UsageError(
            f"{self.layer.path!r} returns a {type(output).__name__}; a layer that returns a tensor "
            "can be adapted."
        )

    def aside(self) -> bool:
        """Return whether adapters stand aside: a task is folded in, or the base is asked for."""
        return self.current.folded is not None or self.current.of(self.layer.path).aside

    def change(self, x: Any, y: Tensor) -> Tensor:
        """Return the output y of the layer for the input x with its adapters' changes."""
        rows = self.current.of(self.layer.path)
        if not isinstance(x, Tensor) or x.is_nested or y.is_nested:
            raise UsageError(
                f"{self.layer.path!r} runs on a {type(x).__name__}; adapted layers take plain "
                "tensors (build nn.TransformerEncoder with enable_nested_tensor=False)."
            )
        if self.lengthens and y.dim() == 3 and not y.shape[self.layer.axis] % len(rows.index_B):
            rows = rows.spread(y.shape[self.layer.axis])
        x_rows = self._split(x, rows, self.layer.kind == "embedding")
        y_rows = self._split(y, rows, False)
        changed = y_rows
        for adapter in self.adapters:
            changed = adapter(x_rows, changed, rows)
        return self._join(changed, y, y_rows)

    def _split(self, value: Tensor, rows: Rows, plain: bool) -> Tensor:
        """Return (B, N, C), or (B, N, C, H, W) of what has channels first; plain: (B, N)."""
        many, layer = rows.index_B.shape[0], self.layer
        if value.dim() <= layer.axis + (not plain) or value.shape[layer.axis] % many:
            raise UsageError(
                f"{layer.path!r} has an input or output of shape {tuple(value.shape)}, whose "
                f"dimension {layer.axis} should be the batch: {many} rows, or a multiple of them. "
                "Say where the batch is: Where(..., axis=1)."
            )
        if layer.axis:
            value = value.movedim(layer.axis, 0)
        if plain:
            return value.reshape(many, -1)
        if channels_first(layer):
            return value.reshape(many, value.shape[0] // many, *value.shape[1:])
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


def channels_first(layer: Layer) -> bool:
    """Return whether a layer's channels are axis 1."""
    from polytask.adapt.layers import CHANNELS_FIRST

    return layer.kind == "conv" or isinstance(layer.module, CHANNELS_FIRST)
