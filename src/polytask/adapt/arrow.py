"""Arrow: a library of trained LoRA, and every token takes those that act along its direction.

    expert e's prototype v_e: the unit input that B_e A_e lengthens most, its top right singular
    vector; scores |x . v_e|, a softmax over the best `top`, and the sum of their changes of x

Nothing is trained: `arrow_of` makes it of an adapted model's LoRA, whose tasks become the experts.

Source: Ostapenko et al., "Towards Modular LLMs by Building and Reusing a Library of LoRAs", ICML
    2024, https://arxiv.org/abs/2405.11157, section 4.2, and the authors' code
Differs from the source: nothing known. As in the text, the changes B_e A_e x are mixed, exactly;
    libraries that mix A and B apart compute something else.
Shapes: B = rows of the batch, N = what a row has here, E = experts, R = rank, I, O = inputs and
    outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from polytask.adapt.base import Adapter, Layer, Method, Rows
from polytask.adapt.engine import Adapted, At, Part, adapt
from polytask.adapt.experts import check_many, check_top, plus_spread, reduced_common, thin_svd
from polytask.adapt.lora import LoRA, LoRAAdapter
from polytask.adapt.low_rank import check_alpha, check_rank, draw
from polytask.adapt.selection import PrototypeScores, Selection, Softmax
from polytask.errors import UsageError


@dataclass(frozen=True)
class Arrow(Method):
    """Adapts linear layers; `arrow_of` builds it of trained LoRA.

    experts, rank: of the library. top: experts a token takes. temperature: of the softmax, > 0.
    scale: what every B A is multiplied by.

    Built by `adapt` itself, experts start as LoRA do, with zero change; train them and call
    `point`, as prototypes do not follow.
    """

    kinds = ("linear",)

    experts: int = 8
    rank: int = 8
    top: int = 4
    temperature: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_many("Arrow", "experts", self.experts, 8)
        check_rank("Arrow", self.rank)
        check_top("Arrow", self.top, self.experts, "experts")
        check_alpha("Arrow", self.scale)
        Softmax(self.temperature, self.top)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's experts and prototypes; nothing of them is a task's."""
        return ArrowAdapter(layer, self, generator)


class ArrowAdapter(Adapter):
    """down_ERI (A) and up_ERO (B, transposed) of the experts, and their prototypes."""

    def __init__(self, layer: Layer, settings: Arrow, generator: Generator) -> None:
        super().__init__(layer)
        self.scale = settings.scale
        self.down_ERI, self.up_ERO = draw(layer, (settings.experts,), settings.rank, generator)
        # Up factors of 0 have no direction of their own; A's own is that of any small one.
        first = directions(self.down_ERI, torch.eye(settings.rank).expand(settings.experts, -1, -1))
        rule = Softmax(settings.temperature, settings.top)
        self.selection = Selection(PrototypeScores(first.float()), rule, layer.path)

    @property
    def prototypes_EI(self) -> Tensor:
        """The experts' directions, of unit length."""
        assert isinstance(self.selection.scores, PrototypeScores)
        return self.selection.scores.prototypes_EC

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        made = reduced_common(self.layer, x, self.down_ERI.flatten(0, 1))
        up_SO = self.up_ERO.flatten(0, 1)
        return plus_spread(y, made, up_SO, self.selection.chosen(rows, x), rows, self.scale)


def directions(down_ERI: Tensor, up_ERO: Tensor) -> Tensor:
    """Return the top right singular vector of each expert's change, (E, I), in float64.

    Its sign, which the scores do not see, makes the entry of largest size positive.
    """
    top_EI = thin_svd(down_ERI, up_ERO)[2][:, 0]
    largest_E1 = top_EI.gather(1, top_EI.abs().argmax(1, keepdim=True))
    return top_EI * torch.where(largest_E1 < 0, -1.0, 1.0)


def point(adapted: Adapted) -> None:
    """Set the prototypes of the model's Arrow by its experts as they are now."""
    found = [m for m in adapted.parts.modules() if isinstance(m, ArrowAdapter)]
    if not found:
        raise UsageError("point: the model has no Arrow.")
    for adapter in found:
        adapter.prototypes_EI.copy_(directions(adapter.down_ERI, adapter.up_ERO))


def arrow_of(
    trained: Adapted,
    top: int = 4,
    temperature: float = 1.0,
    tasks: Sequence[str] | None = None,
) -> Adapted:
    """Return the base with an Arrow of the T LoRA that it was adapted with.

    trained: adapted with LoRA alone, of linear layers; it is detached, and does nothing from then
    on. top: experts a token takes, all where there are fewer. tasks: names that rows have from now
    on; None: the same ones. Which task a row has makes no difference, -1 is still the base.
    """
    libraries = loras_of(trained, "arrow_of")
    experts = len(trained.names)
    plans = [
        At(Arrow(experts, lora.rank, min(top, experts), temperature, lora.scale), part.where)
        for part, lora in libraries
    ]
    routed = adapt(trained.detach(), plans, tasks or trained.names, dtype=trained.dtype)
    for from_, to in side_by_side(libraries, routed):
        assert isinstance(to, ArrowAdapter)
        with torch.no_grad():
            to.down_ERI.copy_(from_.down_TRI)
            to.up_ERO.copy_(from_.up_TRO)
    point(routed)
    return routed


def side_by_side(
    libraries: Sequence[tuple[Part, LoRA]], made: Adapted
) -> Iterator[tuple[LoRAAdapter, Adapter]]:
    """Yield each layer's LoRA and what stands there in a model made from them, part by part."""
    for (part, _), other in zip(libraries, made.parts, strict=True):
        assert isinstance(other, Part)
        for layer in other.layers:
            from_ = part.at(layer.path)
            assert isinstance(from_, LoRAAdapter)
            yield from_, other.at(layer.path)


def loras_of(trained: Adapted, who: str) -> list[tuple[Part, LoRA]]:
    """Return the parts of a model that is adapted with LoRA of linear layers alone.

    Raises UsageError where something else changes it, naming who asks.
    """
    if trained.folded is not None:
        raise UsageError(f"{who}: {trained.folded!r} is folded into the base; unfold() first.")
    found = []
    for part in trained.parts:
        assert isinstance(part, Part)
        if not isinstance(part.method, LoRA):
            raise UsageError(f"{who} takes LoRA alone; {type(part.method).__name__} came.")
        for layer in part.layers:
            if layer.kind != "linear":
                raise UsageError(
                    f"{who} takes LoRA of linear layers; {layer.path!r} is of kind {layer.kind!r}."
                )
        found.append((part, part.method))
    return found
