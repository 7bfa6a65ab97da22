"""Default encoders of the suites: small modules that turn inputs into features for the heads.

They normalise with LayerNorm or GroupNorm, never BatchNorm: statistics over a batch would make
two processes with half a batch each differ from one process with all of it.

Shapes: B = rows, D = numeric columns, F = categorical columns, W = width of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from polytask.errors import UsageError


class Standardise(nn.Module):
    """Columns with mean 0 and deviation 1 by fixed statistics: (B, D) -> (B, D).

    mean_D, scale_D: of the training rows; see `of`. They are buffers: saved, never trained.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, mean_D: Tensor, scale_D: Tensor) -> None:
        super().__init__()
        if mean_D.shape != scale_D.shape or not bool((scale_D > 0).all()):
            raise UsageError(
                "Standardise: give one mean and one scale > 0 per column; got "
                f"{tuple(mean_D.shape)} and {tuple(scale_D.shape)}, smallest scale "
                f"{scale_D.min().item()}."
            )
        self.register_buffer("mean_D", mean_D.clone())
        self.register_buffer("scale_D", scale_D.clone())

    @classmethod
    def of(cls, train_ND: Tensor) -> Self:
        """Return the module with the statistics of these rows; a constant column keeps scale 1."""
        mean_D = train_ND.double().mean(0)
        scale_D = train_ND.double().std(0, correction=0)
        # A column that is constant but for rounding must not be blown up to deviation 1.
        constant_D = scale_D <= 1e-7 * mean_D.abs().clamp(min=1e-30)
        scale_D = torch.where(constant_D, torch.ones_like(scale_D), scale_D)
        return cls(mean_D.float(), scale_D.float())

    def forward(self, inputs_BD: Tensor) -> Tensor:
        return (inputs_BD - self.mean_D) / self.scale_D


class MLP(nn.Module):
    """Features of a vector: (B, inputs) -> (B, hidden[-1]).

    hidden: width of each layer, at least one. Each layer is linear, LayerNorm, ReLU, dropout.
    dropout: in [0, 1), after each layer. input_dropout: the same, on the inputs.
    norm: whether layers have a LayerNorm. gain: factor on the first weights and biases; without
        norm, a small one starts near a constant output, and stopping early then shrinks towards
        it, as a ridge penalty would.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int] = (256, 128),
        *,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        norm: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        if inputs < 1 or not hidden or min(hidden) < 1:
            raise UsageError(
                f"MLP: inputs and every hidden width must be at least 1; got {inputs}, {hidden}."
            )
        layers: list[nn.Module] = [nn.Dropout(input_dropout)] if input_dropout else []
        for before, after in zip((inputs, *hidden), hidden, strict=False):
            layers.append(nn.Linear(before, after))
            if norm:
                layers.append(nn.LayerNorm(after))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.width = hidden[-1]
        with torch.no_grad():
            for layer in self.layers:
                if gain != 1.0 and isinstance(layer, nn.Linear):
                    layer.weight.mul_(gain)
                    layer.bias.mul_(gain)

    def forward(self, inputs_BD: Tensor) -> Tensor:
        features_BW: Tensor = self.layers(inputs_BD)
        return features_BW


_LAYERS = 3
"""Of a stage of a ConvNet: convolution, GroupNorm, ReLU."""


class ConvNet(nn.Module):
    """Features of a small picture: (B, channels, height, width) -> (B, features).

    Three 3x3 convolutions with GroupNorm, the last two halving the picture, then one linear
    layer over all places: where something lies matters to the tasks as much as what it is.

    Its stages can be seen, as sharing by stages asks: the convolutions.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        maps: Sequence[int] = (16, 32, 32),
        features: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip((channels, *maps), maps, strict=False)):
            stride = 1 if i == 0 else 2
            layers += [
                nn.Conv2d(before, after, 3, stride=stride, padding=1),
                nn.GroupNorm(max(1, after // 8), after),
                nn.ReLU(),
            ]
            if i > 0:
                height, width = (height + 1) // 2, (width + 1) // 2
        layers += [nn.Flatten(), nn.Linear(maps[-1] * height * width, features), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.width = features
        self.stage_channels = tuple((after, after) for after in maps)
        self.scales = tuple(range(len(maps)))

    def forward(self, pictures_BCHW: Tensor) -> Tensor:
        features_BW: Tensor = self.layers(pictures_BCHW)
        return features_BW

    def stages(self, pictures_BCHW: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the features of each convolution; it is a single block, so twice the same."""
        seen, x = [], pictures_BCHW
        for first in range(0, _LAYERS * len(self.stage_channels), _LAYERS):
            x = self.layers[first : first + _LAYERS](x)
            seen.append((x, x))
        return seen

    def finish(self, last_BCHW: Tensor, size: Sequence[int]) -> Tensor:
        """Return the features of pictures; their size is that of all."""
        features_BW: Tensor = self.layers[_LAYERS * len(self.stage_channels) :](last_BCHW)
        return features_BW


class TableEncoder(nn.Module):
    """Features of a table's rows: {"numeric": (B, D), "categorical": (B, F)} -> (B, hidden[-1]).

    Either input may be missing where its columns are none. Categorical columns are codes from 0
    to below `sizes[f]`; by convention 0 is every value that training never saw.

    standardise: of the training rows' numeric columns, or None without such columns.
    sizes: number of codes of each categorical column; may be empty.
    """

    def __init__(
        self,
        standardise: Standardise | None,
        sizes: Sequence[int],
        hidden: Sequence[int] = (128, 64),
        *,
        embedding: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        numeric = 0 if standardise is None else len(standardise.mean_D)
        widths = [min(embedding, (size + 1) // 2) for size in sizes]
        if numeric + len(widths) == 0:
            raise UsageError("TableEncoder: give it numeric or categorical columns; got neither.")
        self.standardise = standardise
        self.embeddings = nn.ModuleList(
            nn.Embedding(size, width) for size, width in zip(sizes, widths, strict=True)
        )
        self.mlp = MLP(numeric + sum(widths), hidden, dropout=dropout)
        self.width = self.mlp.width

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        parts = []
        if self.standardise is not None:
            parts.append(self.standardise(inputs["numeric"]))
        if len(self.embeddings):
            codes_FB = inputs["categorical"].unbind(1)
            parts += [embed(c_B) for embed, c_B in zip(self.embeddings, codes_FB, strict=True)]
        features_BW: Tensor = self.mlp(torch.cat(parts, 1))
        return features_BW
