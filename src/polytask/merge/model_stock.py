"""Model Stock: between the base and the average, as near to the average as the models agree.

Source: Jang, Yun & Han, "Model Stock: All we need is just a few fine-tuned models", ECCV 2024,
    https://arxiv.org/abs/2403.19522, equations 2 and 5
Differs from the source: it gives the angle of two models; for more, the cosines of all pairs are
    averaged, as in mergekit (FusionBench averages the angles). A negative mean cosine, which the
    source's model rules out, counts as 0: the formula would lead away from every model, without
    bound. A model that did not move has cosine 0 with every other.
    mergekit takes lengths below 1e-3 for longer than they are: models that are equal, and near
    the base, do not return themselves; FusionBench adds 1e-8. Here they do, at any scale.
Shapes: M = tuned models, P = elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from torch import Tensor

from polytask.merge.angles import Angles, cosine


@dataclass(frozen=True)
class ModelStock(Angles):
    """t * average + (1 - t) * theta_0, where t = M cos / (1 + (M - 1) cos), per tensor."""

    least: ClassVar[int] = 2

    def mix(self, gram_MM: Tensor) -> tuple[float, tuple[float, ...]]:
        """Return 1 - t for the base, and t / M for each model."""
        models = len(gram_MM)
        gram = gram_MM.tolist()
        pairs = sorted(cosine(gram, i, j) for i, j in combinations(range(models), 2))
        cos = max(0.0, sum(pairs) / len(pairs))
        t = models * cos / (1 + (models - 1) * cos)
        return 1 - t, (t / models,) * models


def model_stock(base_P: Tensor, tuned_MP: Tensor) -> Tensor:
    """Return M stacked tensors merged into one, (P,); see `ModelStock`."""
    return ModelStock()(base_P, tuned_MP)
