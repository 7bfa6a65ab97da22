"""A small hierarchical vision transformer: attention in windows, tokens merged between stages.

Shapes: B = rows, C = channels of the picture, H, W = height and width, of the picture or in
tokens, D = width of a token, V = windows of a picture, K = B * V windows, N = tokens of a window,
A = heads, Y, X = steps down and right from one token of a window to another, S = stages, F =
channels of the features.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.suites.pictures import MAP_STEP, fine_map, statistics


class Swin(nn.Module):
    """Features of pictures: (B, C, H, W) -> one of "map", "row" or "levels", by its name.

    "map": (B, width, H, W), the sum of what a linear layer makes of each stage. "row": (B, width),
    of the mean tokens of all stages. "levels": (B, F, H / patch, W / patch), all stages one after
    the other, with no weights but the norms: for decoders of the tasks' own. The attribute `width`
    tells the channels of each.

    Source: Liu et al., "Swin Transformer", ICCV 2021, arXiv:2103.14030.
    Differs from the source: a row reads all stages; no stochastic depth; torch's first weights.
    Where windows do not fit they are made as even as can be, and only then padded: 6 tokens in
    windows of at most 4 are two of 3. Small, for processors without an accelerator.

    mean_C, scale_C: of the training pictures, in the unit of the input (0 to 255 for bytes). H and
    W may be any multiples of patch * 2^(S - 1). dim: channels of the first stage, a multiple of
    `head`; they double, and the tokens' height and width halve, from stage to stage. depths: blocks
    of each stage; every second one shifts its windows by half. head: channels of a head. window:
    most tokens of a window's side. ratio: width of a block's MLP over its tokens'.

    Names of its layers: `patches`, `stages.I.blocks.J.attn.qkv` and `.attn.proj`, `.mlp.fc1` and
    `.mlp.fc2`, `.norm1` and `.norm2`, position biases `.attn.places`; `stages.I.merge.norm` and
    `.merge.reduction`, from the second stage on; `norms.I` of what each stage gives; `ends.I`.
    """

    mean_C11: Tensor
    scale_C11: Tensor

    def __init__(
        self,
        mean_C: Sequence[float],
        scale_C: Sequence[float],
        *,
        patch: int = 4,
        dim: int = 24,
        depths: Sequence[int] = (2, 2, 2, 2),
        head: int = 12,
        window: int = 4,
        ratio: int = 4,
        width: int = 16,
        ends: Literal["map", "row", "levels"] = "map",
    ) -> None:
        super().__init__()
        mean_C11, scale_C11 = statistics("Swin", mean_C, scale_C)
        if not depths or min(*depths, patch, dim, head, window, ratio, width) < 1 or dim % head:
            raise UsageError(
                "Swin: patch, depths, head, window, ratio and width must be at least 1 and dim a "
                f"multiple of head; got {patch}, {list(depths)}, {head}, {window}, {ratio}, "
                f"{width} and {dim}."
            )
        if ends == "map" and patch % MAP_STEP:
            raise UsageError(f"Swin: a map needs an even patch; got {patch}.")
        self.register_buffer("mean_C11", mean_C11)
        self.register_buffer("scale_C11", scale_C11)
        dims = [dim * 2**i for i in range(len(depths))]
        self._unit = patch * 2 ** (len(depths) - 1)
        self.patches = nn.Conv2d(len(mean_C), dim, patch, stride=patch)
        self.stages = nn.ModuleList(
            Stage(wide, depth, wide // head, window, ratio, merges=i > 0)
            for i, (wide, depth) in enumerate(zip(dims, depths, strict=True))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(wide) for wide in dims)
        self._gives, self._square = ends, patch // MAP_STEP
        made = {"map": width * self._square**2, "row": width, "levels": 0}[ends]
        self.ends = nn.ModuleList(nn.Linear(wide, made) for wide in dims if made)
        self.width = width if made else sum(dims)

    def forward(self, pictures_BCHW: Tensor) -> dict[str, Tensor]:
        size = pictures_BCHW.shape[-2:]
        if any(side < self._unit or side % self._unit for side in size):
            raise UsageError(
                f"Swin: height and width must be multiples of {self._unit}; got "
                f"{tuple(pictures_BCHW.shape)}."
            )
        x = (pictures_BCHW.to(self.mean_C11.dtype) - self.mean_C11) / self.scale_C11
        tokens_BHWD = self.patches(x).permute(0, 2, 3, 1)
        levels = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            tokens_BHWD = stage(tokens_BHWD)
            levels.append(norm(tokens_BHWD))
        return {self._gives: self._end(levels, size)}

    def _end(self, levels: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        if self._gives == "row":
            rows = [of(x.mean((1, 2))) for of, x in zip(self.ends, levels, strict=True)]
            return torch.stack(rows).sum(0)
        if self._gives == "map":
            levels = [of(x) for of, x in zip(self.ends, levels, strict=True)]
        pictures = [x.permute(0, 3, 1, 2) for x in levels]
        finest = pictures[0].shape[-2:]
        alike = pictures[:1] + [
            functional.interpolate(x, size=finest, mode="bilinear", align_corners=False)
            for x in pictures[1:]
        ]
        if self._gives == "levels":
            return torch.cat(alike, 1)
        return fine_map(torch.stack(alike).sum(0), self._square, size)


class Stage(nn.Module):
    """Tokens (B, H, W, D) -> tokens, after merging those of the stage before where there is one."""

    def __init__(
        self, dim: int, depth: int, heads: int, window: int, ratio: int, merges: bool
    ) -> None:
        super().__init__()
        self.merge: nn.Module = Merge(dim) if merges else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(dim, heads, window, ratio, shifts=bool(j % 2)) for j in range(depth)
        )

    def forward(self, tokens_BHWD: Tensor) -> Tensor:
        tokens_BHWD = self.merge(tokens_BHWD)
        for block in self.blocks:
            tokens_BHWD = block(tokens_BHWD)
        return tokens_BHWD


class Merge(nn.Module):
    """Squares of 2 x 2 tokens, (B, 2 H, 2 W, D / 2), as one token each, (B, H, W, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * dim)
        self.reduction = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        rows, height, width, dim = tokens.shape
        squares = tokens.reshape(rows, height // 2, 2, width // 2, 2, dim).transpose(2, 3)
        merged_BHWD: Tensor = self.reduction(self.norm(squares.flatten(3)))
        return merged_BHWD


class Block(nn.Module):
    """Tokens -> tokens: attention in windows, then an MLP; both are added to what they read."""

    def __init__(self, dim: int, heads: int, window: int, ratio: int, shifts: bool) -> None:
        super().__init__()
        self._window, self._shifts = window, shifts
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(dim, ratio * dim), gelu=nn.GELU(), fc2=nn.Linear(ratio * dim, dim)
            )
        )

    def forward(self, tokens_BHWD: Tensor) -> Tensor:
        tokens = tokens_BHWD + self._attend(self.norm1(tokens_BHWD))
        after_BHWD: Tensor = tokens + self.mlp(self.norm2(tokens))
        return after_BHWD

    def _attend(self, tokens_BHWD: Tensor) -> Tensor:
        rows, height, width, dim = tokens_BHWD.shape
        down, right = (Cut.of(side, self._window, self._shifts) for side in (height, width))
        padded, shifted = down.padding or right.padding, down.shift or right.shift
        x = tokens_BHWD
        if padded:
            x = functional.pad(x, (0, 0, 0, right.padding, 0, down.padding))
        if shifted:
            x = x.roll((-down.shift, -right.shift), (1, 2))
        # A picture's windows lie next to each other, as adapters that see rows expect.
        x = x.reshape(rows, down.windows, down.side, right.windows, right.side, dim)
        windows_KND = x.transpose(2, 3).reshape(-1, down.side * right.side, dim)
        mask_VNN = near(down, right, x.device) if padded or shifted else None
        windows_KND = self.attn(windows_KND, (down.side, right.side), mask_VNN)
        x = windows_KND.view(rows, down.windows, right.windows, down.side, right.side, dim)
        x = x.transpose(2, 3).reshape(rows, height + down.padding, width + right.padding, dim)
        if shifted:
            x = x.roll((down.shift, right.shift), (1, 2))
        after_BHWD: Tensor = x[:, :height, :width]
        return after_BHWD


class WindowAttention(nn.Module):
    """Windows (K, N, D) -> windows: every token attends to those of its own window."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self._heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.places = Places(heads, window)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, windows_KND: Tensor, size: tuple[int, int], mask_VNN: Tensor | None = None
    ) -> Tensor:
        """Return the windows after attention. size: of each in tokens. mask_VNN: who may see whom,
        in the windows of a picture; None: all."""
        many, tokens, _ = windows_KND.shape
        parts = self.qkv(windows_KND).view(many, tokens, 3, self._heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        scores_KANN = query @ key.mT * query.shape[-1] ** -0.5 + self.places(size)
        if mask_VNN is not None:
            scores = scores_KANN.view(-1, len(mask_VNN), self._heads, tokens, tokens)
            scores_KANN = scores.masked_fill(~mask_VNN[:, None], -math.inf).flatten(0, 1)
        mixed = scores_KANN.softmax(-1) @ value
        after_KND: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return after_KND


class Places(nn.Module):
    """What each head adds for where a token lies as seen from another: table_AYX -> (A, N, N)."""

    def __init__(self, heads: int, window: int) -> None:
        super().__init__()
        self._most = window - 1
        self.table_AYX = nn.Parameter(torch.empty(heads, 2 * window - 1, 2 * window - 1))
        nn.init.trunc_normal_(self.table_AYX, std=0.02)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Return it for windows of a size in tokens, at most the window's."""
        height, width = (torch.arange(side, device=self.table_AYX.device) for side in size)
        down, right = (n[:, None] - n[None] + self._most for n in (height, width))
        whole = self.table_AYX[:, down[:, None, :, None], right[None, :, None, :]]
        return whole.flatten(3).flatten(1, 2)


@dataclass(frozen=True)
class Cut:
    """How a side of the tokens is cut into windows.

    tokens: of the picture's side. side: of a window. windows: how many there are. shift: by how
    many tokens they are moved.
    """

    tokens: int
    side: int
    windows: int
    shift: int

    @property
    def padding(self) -> int:
        """How many tokens are put behind the picture's own."""
        return self.windows * self.side - self.tokens

    @classmethod
    def of(cls, tokens: int, window: int, shifts: bool) -> Cut:
        """Return as few windows of one size as there can be; a single one is not shifted."""
        windows = -(-tokens // window)
        side = -(-tokens // windows)
        return cls(tokens, side, windows, side // 2 if shifts and windows > 1 else 0)

    def regions(self, device: torch.device) -> Tensor:
        """Return a number of each token's region, in the order of the windows."""
        whole = self.tokens + self.padding
        at = torch.arange(whole, device=device) + self.shift
        # Windows wrap around: what comes from the other end is no neighbour, nor is padding.
        return 2 * (at >= whole).long() + (at % whole >= self.tokens).long()


def near(down: Cut, right: Cut, device: torch.device) -> Tensor:
    """Return which tokens of each window are of one region of the picture, bool (V, N, N)."""
    region = 4 * down.regions(device)[:, None] + right.regions(device)
    cut = region.view(down.windows, down.side, right.windows, right.side).transpose(1, 2)
    region_VN = cut.reshape(down.windows * right.windows, -1)
    return region_VN[:, :, None] == region_VN[:, None]
