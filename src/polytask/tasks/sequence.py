"""SequenceLabels: one of several classes per position. -100 is a missing label or padding.

Shapes: B = rows, L = positions (padded), C = classes.
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
class SequenceLabels(Classes):
    """A class per position: target int64 (B, L), -100 where missing; output logits (B, L, C).

    names: of the classes. Where all are in BIO form (`O`, `B-x`, `I-x`), the primary metric is the
    F1 of whole spans, the field's score for slots and entities; else it is token accuracy.
    A class that train never saw is let through in the other splits: rare slots do that, and they
    count against the score as they do in the field.
    """

    name = "sequence labels"
    reads = "sequence"

    @property
    def spans(self) -> bool:
        """Whether the names are in BIO form."""
        inside = [name for name in self.names if name != "O"]
        return bool(inside) and all(name[:2] in ("B-", "I-") for name in inside)

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, self.classes)

    def loss_sum(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Return the cross entropy (in nats) summed over labelled positions."""
        return cross_entropy(output.flatten(0, 1), encoded.flatten())

    def scores(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable classes and the labels, int64, (rows with any label, L).

        Positions keep their place, because spans need their neighbours; one without label is -100
        in the labels, which the metrics leave out.
        """
        labelled = (target != IGNORE).any(1)
        return output[labelled].argmax(2), target[labelled].long()

    def metrics(self) -> tuple[Metric, ...]:
        token = Metric(
            "token accuracy", "max", "fraction", partial(measures.accuracy, self.classes)
        )
        if not self.spans:
            return (token,)
        return (Metric("span F1", "max", "fraction", partial(measures.span_f1, self.names)), token)
