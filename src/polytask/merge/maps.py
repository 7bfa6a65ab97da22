"""How task vectors lie to each other: cosines and opposite signs, of the models and layer by layer.

Opposite signs are what TIES elects about; cosines near 0 are what task arithmetic relies on. Models
are read stretch by stretch, so what is needed does not depend on their size.

Shapes: M = tuned models, P = elements of a stretch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.base import GRAIN
from polytask.merge.diff import layer_of, natural
from polytask.merge.files import Source
from polytask.merge.job import prepare
from polytask.merge.options import Options
from polytask.merge.plan import Plan
from polytask.merge.progress import Progress, Silent
from polytask.merge.task_arithmetic import TaskArithmetic
from polytask.merge.widened import widened
from polytask.records import short_names

HELD = 2 << 20
"""Bytes that the stretches of all models hold together."""


@dataclass(frozen=True)
class Meeting:
    """How M task vectors lie to each other on some elements, as plain numbers.

    name: of the layer; of a tensor outside of layers; "" for the whole models.
    norms: one per model. cosines: of each pair of models (0, 1), (0, 2), ... (1, 2), ...; None
        where one of them did not change. conflicts: of each pair, the share of opposite signs among
        the elements that both changed; None where there are none.
    split: share of elements on which any two disagree in sign, among those that any model changed.
    """

    name: str
    elements: int
    norms: tuple[float, ...]
    cosines: tuple[float | None, ...]
    conflicts: tuple[float | None, ...]
    split: float | None

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Meeting:
        """Return the meeting that `to_json` wrote; norms that were not finite are NaN."""
        norms = tuple(math.nan if norm is None else float(norm) for norm in raw["norms"])
        lists = {key: tuple(raw[key]) for key in ("cosines", "conflicts")}
        return cls(**{**raw, **lists, "norms": norms})


@dataclass(frozen=True)
class Maps:
    """What M >= 2 task vectors have in common. labels: of the models, in their order.

    layers: in natural order; tensors outside of layers stand for themselves.
    """

    labels: tuple[str, ...]
    whole: Meeting
    layers: tuple[Meeting, ...]

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Maps:
        """Return the maps that `to_json` wrote."""
        layers = tuple(map(Meeting.from_json, raw["layers"]))
        return cls(tuple(raw["labels"]), Meeting.from_json(raw["whole"]), layers)


def maps(
    base: Source,
    models: Sequence[Source],
    options: Options | None = None,
    progress: Progress | None = None,
    labels: Sequence[str] | None = None,
) -> Maps:
    """Return how the changes of M >= 2 models from their base lie to each other.

    base, models: as `merge` takes them. options: `leave_out`, `buffers` and `vocabulary` count as
    they do there. labels: of the models; None for the last parts of their paths.
    Raises UsageError for fewer than two models, DataError for models that do not fit together.
    """
    return maps_of(prepare(base, models, TaskArithmetic(), options).plan, progress, labels)


def maps_of(
    planned: Plan, progress: Progress | None = None, labels: Sequence[str] | None = None
) -> Maps:
    """Return the maps of models that are planned already; see `maps`.

    Raises UsageError where the plan has no base or fewer than two tuned models.
    """
    tuned = planned.labels[planned.has_base :]
    names = tuple(short_names(list(map(Path, tuned))) if labels is None else labels)
    if not planned.has_base:
        raise UsageError(
            "Signs and cosines are those of changes from a base, and there is none; give the base "
            "model (base_model in a recipe)."
        )
    if len(names) < 2:
        raise UsageError("Signs and cosines are those of pairs; give at least two tuned models.")
    progress = progress or Silent()
    progress.phase("comparing", planned.elements)
    stretch = max(GRAIN, HELD // (len(planned.labels) * 8) // GRAIN * GRAIN)
    layers: dict[str, _Sums] = {}
    whole = _Sums.none(len(names))
    for name, base_P, tuned_MP in widened(planned, stretch, progress):
        layer = layer_of(name)
        if layer not in layers:
            layers[layer] = _Sums.none(len(names))
        found = _Sums.of(base_P, tuned_MP)
        layers[layer] += found
        whole += found
    order = sorted(layers, key=natural)
    return Maps(names, whole.meeting(""), tuple(layers[layer].meeting(layer) for layer in order))


@dataclass(frozen=True)
class _Sums:
    """Sums over elements, float64: inner products; opposite: both changed, in opposite directions;
    both: both changed; split: any two disagree; changed: any changed."""

    gram_MM: Tensor
    opposite_MM: Tensor
    both_MM: Tensor
    elements: int = 0
    split: int = 0
    changed: int = 0

    @classmethod
    def none(cls, models: int) -> _Sums:
        gram_MM, opposite_MM, both_MM = torch.zeros(3, models, models, dtype=torch.float64)
        return cls(gram_MM, opposite_MM, both_MM)

    @classmethod
    def of(cls, base_P: Tensor, tuned_MP: Tensor) -> _Sums:
        """Return the sums of a stretch; the tuned models' memory is overwritten."""
        delta_MP = tuned_MP.sub_(base_P)
        # Counts as products of zeros and ones: exact in float32, a stretch has fewer than 2^24.
        up_MP, down_MP = delta_MP > 0, delta_MP < 0
        split = int((up_MP.any(0) & down_MP.any(0)).sum())
        changed = int((up_MP.any(0) | down_MP.any(0)).sum())
        up_MP, down_MP = up_MP.float(), down_MP.float()
        against_MM = up_MP @ down_MP.T
        moved_MP = up_MP.add_(down_MP)
        return cls(
            delta_MP @ delta_MP.T,
            (against_MM + against_MM.T).double(),
            (moved_MP @ moved_MP.T).double(),
            base_P.numel(),
            split,
            changed,
        )

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.gram_MM + other.gram_MM,
            self.opposite_MM + other.opposite_MM,
            self.both_MM + other.both_MM,
            self.elements + other.elements,
            self.split + other.split,
            self.changed + other.changed,
        )

    def meeting(self, name: str) -> Meeting:
        norms_M = self.gram_MM.diagonal().clamp_min(0).sqrt()
        cosine_MM = self.gram_MM / norms_M / norms_M[:, None]
        conflict_MM = self.opposite_MM / self.both_MM
        models = len(norms_M)
        pairs = torch.triu_indices(models, models, 1).unbind()
        return Meeting(
            name=name,
            elements=self.elements,
            norms=tuple(norms_M.tolist()),
            cosines=_known(cosine_MM[pairs].clamp(-1, 1)),
            conflicts=_known(conflict_MM[pairs]),
            split=self.split / self.changed if self.changed else None,
        )


def _known(values_K: Tensor) -> tuple[float | None, ...]:
    return tuple(value if math.isfinite(value) else None for value in values_K.tolist())
