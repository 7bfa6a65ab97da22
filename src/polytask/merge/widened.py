"""Stretches of all models at once, in float64: what comparisons of models look at.

Shapes: M = tuned models, R = M + 1 with the base as row 0, P = elements of a stretch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from polytask.merge.plan import Plan
from polytask.merge.progress import Progress
from polytask.merge.window import Arena


def widened(
    planned: Plan, stretch: int, progress: Progress
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield a merged tensor's name, the base's elements (P,) and the tuned models', (M, P).

    stretch: P at most. All are float64; the base is empty where the plan has none. They are reused
    memory, free to be changed: the next stretch overwrites them. A tensor without elements yields
    nothing.
    """
    rows = len(planned.labels)
    wide, raw = Arena(rows * 8 * stretch), Arena(8 * stretch)
    for item in planned.items:
        if not item.merged:
            continue
        for start in range(0, item.entry.numel, stretch):
            count = min(stretch, item.entry.numel - start)
            values_RP, _ = wide.rows(rows, count, torch.float64)
            for part, values_P in zip(item.parts, values_RP, strict=True):
                read = raw.one(count, part.dtype)
                part.read(start, read)
                values_P.copy_(read.values_P)
            base_P = values_RP[0] if planned.has_base else values_RP.new_empty(0)
            yield item.name, base_P, values_RP[planned.has_base :]
            progress.advance(count)
