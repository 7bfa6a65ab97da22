"""Where and how much two models differ, tensor by tensor and layer by layer, in bounded memory.

Shapes: P = elements of a piece.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from polytask.merge.files import Source, open_model
from polytask.merge.options import Options
from polytask.merge.plan import plan
from polytask.merge.progress import Progress, Silent
from polytask.merge.settings import LAYER
from polytask.merge.widened import widened

PIECE = 1 << 18
"""Elements compared at once."""


@dataclass(frozen=True)
class Difference:
    """Sums over one tensor, or over several; the rest follows from them.

    first, second: squared lengths. product: inner product. apart: squared length of the difference.
    conflicts: elements whose signs are opposite. both: elements that are 0 in neither.
    largest: size of the largest change.
    """

    elements: int = 0
    first: float = 0.0
    second: float = 0.0
    product: float = 0.0
    apart: float = 0.0
    conflicts: int = 0
    both: int = 0
    largest: float = 0.0

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.elements + other.elements,
            self.first + other.first,
            self.second + other.second,
            self.product + other.product,
            self.apart + other.apart,
            self.conflicts + other.conflicts,
            self.both + other.both,
            max(self.largest, other.largest, key=lambda size: (math.isnan(size), size)),
        )

    @property
    def distance(self) -> float:
        """|B - A| / |A|; infinite where A is 0 and B is not."""
        if self.apart == 0:
            return 0.0
        return math.sqrt(self.apart / self.first) if self.first else math.inf

    @property
    def cosine(self) -> float:
        """Between A and B; NaN where one of them is 0."""
        lengths = math.sqrt(self.first) * math.sqrt(self.second)
        return max(-1.0, min(1.0, self.product / lengths)) if lengths else math.nan

    @property
    def conflict(self) -> float:
        """Share of opposite signs among elements that are 0 in neither; 0 where there are none."""
        return self.conflicts / self.both if self.both else 0.0

    def to_json(self) -> dict[str, float | int]:
        """Return the four figures and the number of elements."""
        return {
            "elements": self.elements,
            "distance": self.distance,
            "cosine": self.cosine,
            "sign_conflicts": self.conflict,
            "largest": self.largest,
        }


@dataclass(frozen=True)
class Diff:
    """What two models differ in. labels: A and B, and their base where there is one.

    tensors: by name, in the order of A. layers: the same added up, by the name of a layer; tensors
        outside of layers stand for themselves.
    """

    labels: tuple[str, ...]
    tensors: dict[str, Difference]

    @property
    def layers(self) -> dict[str, Difference]:
        """The differences of layers."""
        found: dict[str, Difference] = {}
        for name, one in self.tensors.items():
            layer = layer_of(name)
            found[layer] = found.get(layer, Difference()) + one
        return dict(sorted(found.items(), key=lambda item: natural(item[0])))

    @property
    def whole(self) -> Difference:
        """The difference of the models."""
        return total(self.tensors.values())


def total(parts: Iterable[Difference]) -> Difference:
    """Return differences added up."""
    found = Difference()
    for part in parts:
        found = found + part
    return found


def layer_of(name: str) -> str:
    """Return the layer's name: what stands up to its number; the tensor's own outside of layers."""
    match = LAYER.match(name)
    return name[: match.end(1)] if match else name


def natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def diff(
    a: Source,
    b: Source,
    base: Source | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Diff:
    """Return where two models differ.

    base: with it, the models' changes from the base are compared, instead of the models; signs
        then are those of changes, as merge methods see them.
    options: `leave_out` and `buffers` count. Raises UsageError and DataError as `merge` does.
    """
    progress = progress or Silent()
    before = None if base is None else open_model(base, "the base")
    tuned = [open_model(source, label) for source, label in ((a, "A"), (b, "B"))]
    planned = plan(before, tuned, options or Options())
    progress.phase("comparing", planned.elements)
    tensors = {item.name: Difference() for item in planned.items if item.merged}
    for name, base_P, (a_P, b_P) in widened(planned, PIECE, progress):
        if planned.has_base:
            a_P, b_P = a_P.sub_(base_P), b_P.sub_(base_P)
        tensors[name] += _piece(a_P, b_P)
    labels = tuple(model.label for model in (*tuned, *([] if before is None else [before])))
    return Diff(labels, tensors)


def _piece(a_P: Tensor, b_P: Tensor) -> Difference:
    gap_P = b_P - a_P
    signs_P = a_P.sign() * b_P.sign()
    return Difference(
        elements=a_P.numel(),
        first=float(a_P @ a_P),
        second=float(b_P @ b_P),
        product=float(a_P @ b_P),
        apart=float(gap_P @ gap_P),
        conflicts=int((signs_P < 0).sum()),
        both=int((signs_P != 0).sum()),
        largest=float(gap_P.abs().max()),
    )
