"""HyperFormer: one network makes the adapters of every task and layer from their embeddings.

    change(y) = LN(gelu(y D + b) U + c; scale, shift)
    D, b, U, c, scale, shift = linear maps of I;    I = LN(MLP[z_task; e_layer])

HyperFormer has linear maps of its own for every position in a block; HyperFormer++ (plus=True) has
one set of them for all positions, and I = LN(MLP[z_task; e_layer; e_position]).

Source: Karimi Mahabadi, Ruder, Dehghani & Henderson, "Parameter-efficient Multi-task Fine-tuning
    for Transformers via Shared Hypernetworks", ACL 2021, https://arxiv.org/abs/2106.04489, and the
    authors' code
Differs from the source: which block and which position a layer has is read from its name, whose
    outermost number is the block. The base's own norms stay frozen unless `adapt(..., train=...)`
    names them. As there, every map starts at N(0, 0.01^2), so the start is nearly no change.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, Z = channels of an embedding, K =
    blocks, Q = positions, H = hidden, M = channels of I, R = channels of the bottleneck, O =
    channels of the layer, W = numbers that an adapter has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Method, Rows, normal
from polytask.adapt.place import takes_channels_last
from polytask.adapt.where import block_of
from polytask.errors import UsageError


@dataclass(frozen=True)
class HyperFormer(Method):
    """Adapts linear layers, norms, and whole modules whose channels are last; not foldable.

    plus: HyperFormer++. reduction: a bottleneck has O // reduction channels, at least one.
    embedding, hidden, made: Z, H and M. std: of the network's first weights.
    """

    kinds = ("linear", "norm", "module")

    plus: bool = False
    reduction: int = 32
    embedding: int = 64
    hidden: int = 128
    made: int = 64
    std: float = 1e-2

    def __post_init__(self) -> None:
        for name in ("reduction", "embedding", "hidden", "made"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"HyperFormer: {name} is {value!r}; give a whole number >= 1.")
        if not self.std > 0:
            raise UsageError(f"HyperFormer: std is {self.std}; give a number > 0 (default 0.01).")

    def refuses(self, layer: Layer) -> str:
        """Return why a layer has no such adapter, "" where it has."""
        return takes_channels_last(layer)

    def common(self, layers: Sequence[Layer], tasks: int, generator: Generator) -> nn.Module:
        """Return the network that makes all adapters.

        Raises UsageError where layers that share its maps have several widths.
        """
        return HyperNetwork(layers, self, tasks, generator)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's adapter, which has nothing of its own."""
        return HyperFormerAdapter(layer, common)


class HyperNetwork(nn.Module):
    """task_TZ, block_KZ, position_QZ (++), the network of I, and maps: one per position, or one."""

    per_task = ("task_TZ",)

    def __init__(
        self, layers: Sequence[Layer], settings: HyperFormer, tasks: int, generator: Generator
    ) -> None:
        super().__init__()
        places = {layer.path: _place(layer.path) for layer in layers}
        blocks = sorted({block for _, block in places.values()})
        positions = list(dict.fromkeys(position for position, _ in places.values()))
        self.at = {
            path: (positions.index(position), blocks.index(block))
            for path, (position, block) in places.items()
        }
        self.plus = settings.plus
        self.task_TZ = normal((tasks, settings.embedding), 0.0, 1.0, generator)
        self.block_KZ = normal((len(blocks), settings.embedding), 0.0, 1.0, generator)
        if settings.plus:
            self.position_QZ = normal((len(positions), settings.embedding), 0.0, 1.0, generator)
        seen = settings.embedding * (3 if settings.plus else 2)
        self.first = _linear(seen, settings.hidden, settings.std, generator)
        self.second = _linear(settings.hidden, settings.made, settings.std, generator)
        self.norm = nn.LayerNorm(settings.made)
        self.sizes = self._sizes(layers, settings)
        self.maps = nn.ModuleList(
            _linear(settings.made, sum(sizes), settings.std, generator) for sizes in self.sizes
        )

    def forward(self, layer: Layer, rows: Rows, like: Tensor) -> tuple[Tensor, ...]:
        """Return each row's D (B, R, O), b (B, R), U (B, R, O), c, scale and shift (B, O)."""
        position, block = self.at[layer.path]
        task_BZ = rows.take(self.task_TZ, self.task_TZ)
        told = [task_BZ, self.block_KZ[block].expand_as(task_BZ)]
        if self.plus:
            told.append(self.position_QZ[position].expand_as(task_BZ))
        made_BM = self.norm(self.second(torch.relu(self.first(torch.cat(told, 1)))))
        at = 0 if self.plus else position
        made_BW = self.maps[at](made_BM).to(like.dtype)
        down, bias, up, *rest = made_BW.split(self.sizes[at], 1)
        wide = layer.outputs
        return down.unflatten(1, (-1, wide)), bias, up.unflatten(1, (-1, wide)), *rest

    def _sizes(self, layers: Sequence[Layer], settings: HyperFormer) -> list[tuple[int, ...]]:
        """Return how many numbers each part of an adapter has, for every set of maps."""
        widths: dict[int, dict[int, str]] = {}
        for layer in layers:
            at = 0 if settings.plus else self.at[layer.path][0]
            widths.setdefault(at, {})[layer.outputs] = layer.path
        sizes: list[tuple[int, ...]] = []
        for at in sorted(widths):
            if len(widths[at]) > 1:
                some = ", ".join(f"{path!r} of {wide}" for wide, path in widths[at].items())
                raise UsageError(
                    f"HyperFormer: layers that one network makes adapters for have one width; "
                    f"{some} channels came. Name layers of one width, or give each width a method "
                    "of its own, [At(...), At(...)]."
                )
            (wide,) = widths[at]
            narrow = max(1, wide // settings.reduction)
            sizes.append((narrow * wide, narrow, narrow * wide, wide, wide, wide))
        return sizes


class HyperFormerAdapter(Adapter):
    """One layer's adapter, made by the common network for every row."""

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        assert isinstance(self.common, HyperNetwork)
        down_BRO, bias_BR, up_BRO, c_BO, scale_BO, shift_BO = self.common(self.layer, rows, y)
        small = functional.gelu(torch.baddbmm(bias_BR.unsqueeze(2), down_BRO, y.mT).mT)
        grown = torch.baddbmm(c_BO.unsqueeze(1), small, up_BRO)
        normed = functional.layer_norm(grown, grown.shape[-1:])
        change = torch.addcmul(shift_BO.unsqueeze(1), normed, scale_BO.unsqueeze(1))
        return y + rows.only(change, 0.0)


def _place(path: str) -> tuple[str, int]:
    """Return a layer's position in its block and the block: its name without its number, and it."""
    block = block_of(path)
    if block is None:
        return path, 0
    before, number = block
    return path.replace(f"{before}.{number}" if before else f"{number}", f"{before}.*", 1), number


def _linear(inputs: int, outputs: int, std: float, generator: Generator) -> nn.Linear:
    # Made without values: nn.Linear would draw its own from torch's generator.
    linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    nn.init.zeros_(linear.bias)
    linear.weight.data.normal_(0.0, std, generator=generator)
    return linear
