"""Loads: how many rows of a whole update each expert got, over processes and micro-batches.

What one batch sees of it is not enough where batches are small or of one kind: balance asked for
in every one of them would keep experts from specialising.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


class Loads:
    """Counts of one update, by name; make a new one for every update.

    Handed to every pass of the update, `add` returns the counts of all passes so far, over all
    processes. That is the whole update where it is one pass. Where it is several, make every pass
    without gradients first, `close`, and make them again: then each sees the whole. Without that
    first round the last pass alone does, which is cheaper and an approximation.

    In a group of processes all take part in every `add`, so all make the same passes.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._closed = False

    def add(self, name: str, counts: Tensor) -> Tensor:
        """Return the counts of the update so far with these, or of all of it once closed."""
        if self._closed:
            return self._sums[name]
        counts = counts.detach().clone()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(counts)
        before = self._sums.get(name)
        self._sums[name] = counts if before is None else before + counts
        return self._sums[name]

    def close(self) -> None:
        """Count no further: every pass was made."""
        self._closed = True
