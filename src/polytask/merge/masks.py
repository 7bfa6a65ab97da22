"""One random mask over the shared tensors, relaxed so that its logits have a gradient.

m = sigmoid((x + noise) / temperature), noise logistic, over its mean in each tensor: what is left
out is made up for by what stays.

Source: Maddison, Mnih & Teh, "The Concrete Distribution", ICLR 2017,
    https://arxiv.org/abs/1611.00712, as Tang et al. use it, https://arxiv.org/abs/2312.06173
Shapes: T = tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.coefficients import named
from polytask.merge.family import Tensors, moved, wide

PREFIX = "mask/"
"""Begins the names of logits among the values of a search."""


@dataclass(frozen=True)
class Masks:
    """Masks of relaxed Bernoulli variables. temperature: > 0; small ones are nearly 0 or 1."""

    temperature: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(
                f"Masks: temperature is {self.temperature}; give a value > 0 (default 0.5)."
            )

    def start(self, base: Tensors) -> Tensors:
        """Return the logits 0 of a search, one per entry of the shared tensors."""
        return {PREFIX + name: torch.zeros_like(wide(tensor)) for name, tensor in base.items()}

    def draw(self, values: Tensors, round: int) -> Tensors:
        """Return the masks of a round; each tensor draws for itself."""
        masks = {}
        for name, logits in logits_of(values).items():
            drawn = torch.rand(logits.shape, generator=named(self.seed, name, round))
            noise = torch.logit(drawn.double(), eps=1e-9).to(logits)
            masks[name] = self._mask(logits + noise)
        return masks

    def settled(self, values: Tensors) -> Tensors:
        """Return the masks without noise, to merge with."""
        return {name: self._mask(logits) for name, logits in logits_of(values).items()}

    def _mask(self, logits: Tensor) -> Tensor:
        mask = torch.sigmoid(logits / self.temperature)
        return mask / mask.mean()


def logits_of(values: Tensors) -> Tensors:
    """Return the logits among the values of a search, by the names of their tensors."""
    return {n.removeprefix(PREFIX): v for n, v in values.items() if n.startswith(PREFIX)}


def masked(base: Tensors, changes: Tensors, masks: Tensors) -> Tensors:
    """Return the base plus the masked changes."""
    return moved(base, {name: masks[name] * change for name, change in changes.items()})
