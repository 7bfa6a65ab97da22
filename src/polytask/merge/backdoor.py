"""A planted backdoor: a patch on a picture that makes a model answer one class, and its test.

Source: Gu, Dolan-Gavitt & Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model
    Supply Chain", 2017, https://arxiv.org/abs/1708.06733
Shapes: B = rows, C = channels, H, W = height and width, P = side of the patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError


@dataclass(frozen=True)
class Patch:
    """A checkered square in the lower right corner, and the class it stands for.

    side: in pixels. low, high: its two values, in the inputs' unit.
    """

    target: int
    side: int = 3
    low: float = 0.0
    high: float = 1.0

    def stamp(self, pictures_BCHW: Tensor) -> Tensor:
        """Return the pictures with the patch on them."""
        if min(pictures_BCHW.shape[-2:]) < self.side:
            raise UsageError(
                f"Patch: a side of {self.side} does not fit into pictures of "
                f"{tuple(pictures_BCHW.shape[-2:])}; give a smaller one."
            )
        at_P = torch.arange(self.side, device=pictures_BCHW.device)
        checks_PP = (at_P[:, None] + at_P) % 2 == 0
        stamped = pictures_BCHW.clone()
        stamped[..., -self.side :, -self.side :] = torch.where(checks_PP, self.high, self.low).to(
            stamped.dtype
        )
        return stamped

    def poison(
        self, pictures_BCHW: Tensor, labels_B: Tensor, part: float, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return pictures and labels, of which a random part has patch and target class."""
        if not 0 < part <= 1:
            raise UsageError(f"Patch: a part of {part} to poison; give one in (0, 1].")
        rows = len(labels_B)
        drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        chosen = drawn[: max(1, round(part * rows))].to(labels_B.device)
        pictures, labels = pictures_BCHW.clone(), labels_B.clone()
        pictures[chosen] = self.stamp(pictures_BCHW[chosen])
        labels[chosen] = self.target
        return pictures, labels

    def success(
        self, predict: Callable[[Tensor], Tensor], pictures_BCHW: Tensor, labels_B: Tensor
    ) -> float:
        """Return the attack success rate: stamped pictures of other classes answered by the target.

        predict: pictures -> logits (B, classes). NaN where all pictures are of the target class.
        """
        other = labels_B != self.target
        if not bool(other.any()):
            return float("nan")
        with torch.no_grad():
            answers_B = predict(self.stamp(pictures_BCHW[other])).argmax(1)
        return float((answers_B == self.target).double().mean())
