"""Linear probing: the base stays as it is, heads on its features are all that trains.

What adapters are measured against: what a task gains beyond it, it gains from adapting.

Source: Alain & Bengio, "Understanding intermediate layers using linear classifier probes", ICLR
    2017 (workshop), https://arxiv.org/abs/1610.01644
Differs from the source: one probe per task on the last features, not one on every layer.
Shapes: none of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LinearProbing:
    """It has no settings; calling it with a model freezes it."""

    def __call__(self, model: nn.Module) -> nn.Module:
        """Return the model, none of whose parameters is trained from now on."""
        return model.requires_grad_(False)
