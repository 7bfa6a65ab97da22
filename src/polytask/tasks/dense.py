"""DenseLabels: one of several classes per pixel. -100 is a missing label.

Shapes: B = rows, C = classes, H, W = height and width of the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from polytask.tasks import measures
from polytask.tasks.base import IGNORE, Metric
from polytask.tasks.classes import Classes
from polytask.tasks.masked import cross_entropy


@dataclass(frozen=True)
class DenseLabels(Classes):
    """A class per pixel: target integer (B, H, W), -100 where missing; output logits (B, C, H, W).

    names: of the classes, or none. A class that train never saw is let through in the other
    splits: a few such pixels are common, and they count against the score as they do in the field.
    """

    name = "dense labels"
    reads = "map"

    def head(self, width: int) -> nn.Module:
        return nn.Conv2d(width, self.classes, kernel_size=1)

    def loss_sum(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Return the cross entropy (in nats) summed over labelled pixels."""
        return cross_entropy(output, encoded)

    def scores(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable class and the label of every labelled pixel, both int64, 1-D."""
        there = target != IGNORE
        return output.argmax(1)[there], target[there].long()

    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric("mean IoU", "max", "fraction", partial(measures.mean_iou, self.classes)),
            Metric("pixel accuracy", "max", "fraction", partial(measures.accuracy, self.classes)),
        )
