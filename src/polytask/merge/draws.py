"""Random numbers that depend on a seed, a tensor's name, a model and an element's index alone.

So a merge is the same however tensors are ordered or cut into pieces, and on every machine.

Shapes: M = models, P = elements of a piece.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.merge.base import Place


def kept(share: float, like_MP: Tensor, at: Place, seed: int) -> Tensor:
    """Return which elements are kept, (M, P) of bool: each with the chance `share`, independently.

    like_MP: what is drawn for, one row per model, from element `at.start` of tensor `at.name` on.
    """
    name = int.from_bytes(hashlib.sha256(at.name.encode()).digest()[:16], "little")
    most = np.uint32(max(1, round(share * 2**32)) - 1)
    rows = [
        _draws(np.random.SeedSequence((seed, name, m)), at.start, like_MP[0].numel()) <= most
        for m in range(len(like_MP))
    ]
    return torch.from_numpy(np.stack(rows)).to(like_MP.device).reshape(like_MP.shape)


def _draws(
    seed: np.random.SeedSequence, start: int, count: int
) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Return the draws `start` to `start + count` of a stream of integers, uniform in 32 bits."""
    generator = np.random.PCG64DXSM(seed)
    generator.advance(start // 2)
    ahead = start % 2
    pairs: NDArray[np.uint64] = generator.random_raw((ahead + count + 1) // 2)
    # Two of 32 bits from one of 64, the lower first whatever the machine's order of bytes is.
    draws: NDArray[np.uint32] = pairs.astype("<u8", copy=False).view("<u4")
    return draws[ahead : ahead + count]
