"""A small vision transformer for pictures of one size.

Shapes: B = rows, C = channels of the picture, H, W = its height and width, P = side of a patch,
N = tokens, one per patch, D = width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import UsageError
from polytask.suites.pictures import MAP_STEP, fine_map, statistics


class ViT(nn.Module):
    """Features of pictures: (B, C, H, W) -> {"map": (B, width, H, W)} or {"row": (B, width)}.

    Source: Dosovitskiy et al., ICLR 2021, arXiv:2010.11929.
    Differs from the source: no class token; a "row" is made of the mean token, and a "map" of
    each token's own square of features. Small, for processors without an accelerator.

    mean_C, scale_C: of the training pictures, in the unit of the input (0 to 255 for bytes).
    size: H and W, multiples of `patch`, which for a "map" is even. depth: blocks. heads: of
    attention; they divide `dim`, the width of a token. ratio: width of a block's MLP over `dim`.
    ends: which of the two features it gives.

    Its stages can be seen, as sharing by stages asks: the blocks. So can its tokens (`embed`,
    `blocks`, `end`), as sharing by tokens asks.
    """

    mean_C11: Tensor
    scale_C11: Tensor

    def __init__(
        self,
        mean_C: Sequence[float],
        scale_C: Sequence[float],
        size: tuple[int, int],
        *,
        patch: int = 8,
        dim: int = 96,
        depth: int = 6,
        heads: int = 4,
        ratio: int = 4,
        width: int = 16,
        ends: Literal["map", "row"] = "map",
    ) -> None:
        super().__init__()
        mean_C11, scale_C11 = statistics("ViT", mean_C, scale_C)
        if patch < 1 or any(side < patch or side % patch for side in size):
            raise UsageError(
                f"ViT: height and width must be multiples of the patch; got {tuple(size)} and "
                f"patches of {patch}."
            )
        if ends == "map" and patch % MAP_STEP:
            raise UsageError(f"ViT: a map needs an even patch; got {patch}.")
        if min(depth, heads, ratio, width) < 1 or dim < 1 or dim % heads:
            raise UsageError(
                "ViT: depth, heads, ratio and width must be at least 1 and dim a multiple of "
                f"heads; got {depth}, {heads}, {ratio}, {width} and {dim}."
            )
        self.register_buffer("mean_C11", mean_C11)
        self.register_buffer("scale_C11", scale_C11)
        self.width, self.size, self.grid = width, tuple(size), (size[0] // patch, size[1] // patch)
        self.patches = nn.Conv2d(len(mean_C), dim, patch, stride=patch)
        self.places_ND = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], dim))
        nn.init.trunc_normal_(self.places_ND, std=0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self._square = patch // MAP_STEP if ends == "map" else 0
        self.last = nn.Linear(dim, width * (self._square**2 or 1))
        self.stage_channels = ((dim, dim),) * depth
        # All are of one size. Every second one, the last included, is apart enough to read.
        self.scales = tuple(range((depth - 1) % 2, depth, 2))

    def forward(self, pictures_BCHW: Tensor) -> dict[str, Tensor]:
        tokens_BND = self.embed(pictures_BCHW)
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        return self.end(tokens_BND, pictures_BCHW.shape[-2:])

    def embed(self, pictures_BCHW: Tensor) -> Tensor:
        """Return the tokens before the first block.

        Raises UsageError for pictures of another size.
        """
        if tuple(pictures_BCHW.shape[-2:]) != self.size:
            raise UsageError(
                f"ViT: it was made for pictures of {self.size[0]}x{self.size[1]}; got "
                f"{tuple(pictures_BCHW.shape)}."
            )
        x = (pictures_BCHW.to(self.mean_C11.dtype) - self.mean_C11) / self.scale_C11
        tokens_BND: Tensor = self.patches(x).flatten(2).mT + self.places_ND
        return tokens_BND

    def end(self, tokens_BND: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
        """Return the features that the last block's tokens end as, for pictures of a size."""
        tokens = self.norm(tokens_BND)
        if not self._square:
            return {"row": self.last(tokens.mean(1))}
        squares = self._picture(self.last(tokens))
        return {"map": fine_map(squares, self._square, size)}

    def stages(self, pictures_BCHW: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the tokens before each block's MLP, and after it, as pictures."""
        tokens, seen = self.embed(pictures_BCHW), []
        for block in self.blocks:
            assert isinstance(block, Block)
            before = block.attend(tokens)
            tokens = before + block.mlp(block.norm(before))
            seen.append((self._picture(before), self._picture(tokens)))
        return seen

    def finish(self, last_BDHW: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
        """Return the features that a result of the last block, as a picture, ends as."""
        return self.end(last_BDHW.flatten(2).mT, size)

    def _picture(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND.mT.reshape(*tokens_BND.mT.shape[:2], *self.grid)


class Block(nn.Module):
    """Tokens -> tokens: attention, then an MLP on each token; both are added to what they read."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self._heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim)
        )

    def forward(self, tokens_BND: Tensor) -> Tensor:
        tokens = self.attend(tokens_BND)
        after_BND: Tensor = tokens + self.mlp(self.norm(tokens))
        return after_BND

    def attend(self, tokens_BND: Tensor) -> Tensor:
        """Return the tokens after the block's first half."""
        shape = (*tokens_BND.shape[:2], 3, self._heads, -1)
        parts = self.query_key_value(self.attention_norm(tokens_BND)).view(shape)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed_BHNX = F.scaled_dot_product_attention(query, key, value)
        after_BND: Tensor = tokens_BND + self.out(mixed_BHNX.transpose(1, 2).flatten(2))
        return after_BND
