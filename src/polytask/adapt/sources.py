"""Bottlenecks of source tasks, trained before, that tasks to come read from.

    trained = load_adapted("sources.safetensors", model)  # bottlenecks of E tasks
    trained.detach()
    adapted = adapt(model, ScaLearn(trained), tasks=("target",))

What all methods on such adapters share: where the trained ones are, their tensors in the new
adapters, and so in their file, and what each of them makes of the input.

Shapes: B = rows of the batch, N = what a row has here, E = source tasks, R = channels of the
bottleneck, S = E * R, O = channels of the layer.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass

import torch
from torch import Tensor, nn

from polytask.adapt.base import Layer, Method
from polytask.adapt.bottleneck import ACTIVATIONS, BottleneckAdapter, Form
from polytask.adapt.engine import Adapted, Part
from polytask.adapt.selection import spread_over
from polytask.errors import UsageError

Found = dict[str, dict[str, Tensor]]
"""Tensors of a layer's bottlenecks, by the layer's path."""


@dataclass(frozen=True)
class FromSources(Method):
    """Settings of a method that reads bottlenecks trained before.

    trained: a model with them, which says all that follows. It is read when the method is made, and
        not kept. Without it (as when a file is loaded) the rest has to be given, and the
        bottlenecks' tensors must come from the file.
    sources: how many tasks they are of, E. width: channels of each bottleneck. form: their
    activation. places: the layers they are at.
    """

    kinds = ("linear", "norm", "module")

    trained: InitVar[Adapted | None] = None
    sources: int = 0
    width: int = 0
    form: Form = "relu"
    places: tuple[str, ...] = ()

    def __post_init__(self, trained: Adapted | None) -> None:
        found: Found = {}
        who = type(self).__name__
        if trained is not None:
            if self.sources or self.width or self.places:
                raise UsageError(
                    f"{who}: the trained model says how many sources there are, how wide, and "
                    "where; leave sources, width and places out."
                )
            found, (width, form) = _found(trained, who)
            for name, value in (
                ("sources", len(trained.names)), ("width", width), ("form", form),
                ("places", tuple(found)),
            ):  # fmt: skip
                object.__setattr__(self, name, value)
        if self.sources < 1 or self.width < 1 or not self.places:
            raise UsageError(f"{who}: give a model with trained bottlenecks, {who}(trained).")
        object.__setattr__(self, "_found", found)

    def refuses(self, layer: Layer) -> str:
        """Return that the sources have no bottleneck at a layer, "" where they have."""
        return "" if layer.path in self.places else "the source tasks have no bottleneck there"

    def read(self, layer: Layer, trains: bool = False) -> Sources:
        """Return the layer's bottlenecks. Raises UsageError where they are of another width."""
        found: Found = getattr(self, "_found")  # noqa: B009 - frozen, and no setting
        return Sources(layer, self, found.get(layer.path), trains)


class Sources(nn.Module):
    """A layer's bottlenecks, fixed unless `trains`: down_ERO, down_bias_ER, up_ERO, up_bias_EO."""

    down_ERO: Tensor
    down_bias_ER: Tensor
    up_ERO: Tensor
    up_bias_EO: Tensor

    def __init__(
        self, layer: Layer, settings: FromSources, tensors: dict[str, Tensor] | None, trains: bool
    ) -> None:
        super().__init__()
        self.path, self.form, self.who = layer.path, settings.form, type(settings).__name__
        self.known = tensors is not None
        many, width, wide = settings.sources, settings.width, layer.outputs
        for name, shape in (
            ("down_ERO", (many, width, wide)), ("down_bias_ER", (many, width)),
            ("up_ERO", (many, width, wide)), ("up_bias_EO", (many, wide)),
        ):  # fmt: skip
            # Not a number until a file brings them: nothing else may pass for trained ones.
            value = torch.full(shape, torch.nan) if tensors is None else tensors[name].clone()
            if value.shape != shape:
                raise UsageError(
                    f"{self.who}: the bottlenecks trained at {layer.path!r} have {value.shape[-1]} "
                    f"channels, the layer {wide}; give the model they were trained on."
                )
            if trains:
                setattr(self, name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def small(self, y: Tensor) -> Tensor:
        """Return what every bottleneck holds of the layer's output, one after another: (B, N, S).

        Raises UsageError where no trained ones were given, nor loaded.
        """
        if not torch.compiler.is_compiling() and not self.known:
            # Looked at once, at the first pass.
            self.known = bool(self.up_ERO.isfinite().all())
            if not self.known:
                raise UsageError(
                    f"{self.who} has no source bottlenecks at {self.path!r}; make it of a model "
                    f"with trained ones, {self.who}(trained), or load them with load_adapted."
                )
        down_SO, bias_S = self.down_ERO.flatten(0, 1), self.down_bias_ER.flatten()
        made = nn.functional.linear(y, down_SO.to(y.dtype), bias_S.to(y.dtype))
        return made if self.form == "identity" else ACTIVATIONS[self.form](made)

    def along(self, asked_BNO: Tensor, small_BNS: Tensor) -> Tensor:
        """Return the products of a vector with the changes of every bottleneck: (B, N, E)."""
        up_SO, bias_EO = (
            t.to(asked_BNO.dtype) for t in (self.up_ERO.flatten(0, 1), self.up_bias_EO)
        )
        parts_BNS = nn.functional.linear(asked_BNO, up_SO) * small_BNS
        of_bias_BNE = nn.functional.linear(asked_BNO, bias_EO)
        parts_BNER = parts_BNS.view(*parts_BNS.shape[:-1], len(bias_EO), -1)
        return parts_BNER.sum(-1) + of_bias_BNE

    def together(self, weights_BNE: Tensor, small_BNS: Tensor) -> Tensor:
        """Return the sum of the bottlenecks' changes, each times its weight: (B, N, O)."""
        up_SO, bias_EO = (
            t.to(small_BNS.dtype) for t in (self.up_ERO.flatten(0, 1), self.up_bias_EO)
        )
        return spread_over(weights_BNE.unsqueeze(2), small_BNS) @ up_SO + weights_BNE @ bias_EO


def _found(trained: Adapted, who: str) -> tuple[Found, tuple[int, Form]]:
    found: Found = {}
    kinds = set()
    for part in trained.parts:
        assert isinstance(part, Part)
        for layer in part.layers:
            adapter = part.at(layer.path)
            if not isinstance(adapter, BottleneckAdapter):
                continue
            settings = adapter.settings
            if settings.source != "sequential" or settings.join != "add" or layer.path in found:
                raise UsageError(
                    f"{who}: the bottleneck at {layer.path!r} is {settings.source}, joined by "
                    f"{settings.join!r}; sources are one sequential bottleneck per layer, added."
                )
            kinds.add((settings.width, settings.form))
            found[layer.path] = {
                "down_ERO": _kept(adapter.down_TRI),
                "down_bias_ER": _kept(adapter.down_bias_TR),
                "up_ERO": _kept(adapter.up_TRO) * settings.scale,
                "up_bias_EO": _kept(adapter.up_bias_TO) * settings.scale,
            }
    if len(kinds) != 1:
        raise UsageError(
            f"{who}: the trained model has bottlenecks of {len(kinds)} widths or forms; sources "
            "are `Bottleneck` adapters of one, at every layer."
        )
    return found, kinds.pop()


def _kept(value: Tensor) -> Tensor:
    return value.detach().cpu().clone()
