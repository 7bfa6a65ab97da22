"""Random numbers that depend on a seed, a tensor's name, a model and an element's index alone.

So a merge is the same however tensors are ordered or cut into pieces, and on every machine.

Shapes: M = models, P = elements of a piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.merge.base import Place


def kept(share: float, like_MP: Tensor, at: Place, seed: int) -> Tensor:
    """Return which elements are kept, (M, P) of bool: each with the chance `share`, independently.

    like_MP: what is drawn for, one row per model, from element `at.start` of tensor `at.name` on.
    """
    keep_MP = np.empty((len(like_MP), like_MP[0].numel()), dtype=np.bool_)
    draws_MP, most = drawn(share, *keep_MP.shape, at, seed)
    for draws_P, keep_P in zip(draws_MP, keep_MP, strict=True):
        np.less_equal(draws_P, most, out=keep_P)
    return torch.from_numpy(keep_MP).to(like_MP.device).reshape(like_MP.shape)


def drawn(
    share: float, models: int, count: int, at: Place, seed: int
) -> tuple[Iterator[NDArray[np.unsignedinteger]], np.unsignedinteger]:
    """Return each model's draws, (P,), and the largest one that keeps an element."""
    name = int.from_bytes(hashlib.sha256(at.name.encode()).digest()[:16], "little")
    draw = _kind(share)
    most = draw(max(1, round(share * 2 ** (8 * np.dtype(draw).itemsize))) - 1)
    seeds = (np.random.SeedSequence((seed, name, m)) for m in range(models))
    return (_draws(one, at.start, count, draw) for one in seeds), most


Draw = type[np.uint8] | type[np.uint16] | type[np.uint32]


def _kind(share: float) -> Draw:
    """Return the narrowest integers in which a share is a whole number of them, or 32 bits."""
    if share * 2**8 % 1 == 0:
        return np.uint8
    return np.uint16 if share * 2**16 % 1 == 0 else np.uint32


def width(share: float) -> int:
    """Return how many bytes a draw has."""
    return np.dtype(_kind(share)).itemsize


def _draws(
    seeds: np.random.SeedSequence, start: int, count: int, draw: Draw
) -> NDArray[np.unsignedinteger]:
    """Return the draws `start` to `start + count` of a stream of uniform integers."""
    each = 8 // np.dtype(draw).itemsize
    generator = np.random.PCG64DXSM(seeds)
    generator.advance(start // each)
    ahead = start % each
    words: NDArray[np.uint64] = generator.random_raw(-(-(ahead + count) // each))
    # Several draws from one of 64 bits, the lowest bits first whatever the machine's byte order.
    draws: NDArray[np.unsignedinteger] = words.astype("<u8", copy=False).view(
        np.dtype(draw).newbyteorder("<")
    )
    return draws[ahead : ahead + count]
