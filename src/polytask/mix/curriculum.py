"""Curriculum: streams open one after another, from easy to hard.

Source: Bhasin et al., "How does Multi-Task Training Affect Transformer In-Context Capabilities?
    Investigations with Function Classes", NAACL 2024, https://arxiv.org/abs/2404.03558 (mixed and
    sequential); Platanios et al., "Competence-based Curriculum Learning for Neural Machine
    Translation", NAACL 2019, https://arxiv.org/abs/1903.09848 (the root)
Differs from the source: evidence is the abstracts. Streams open here, where Platanios et al. open
    rows; `until` and the mix of the open ones are ours.
Shapes: S = streams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.among import among, check_inner, check_part
from polytask.mix.base import Mix, Now, State, Streams, Varies
from polytask.mix.uniform import Uniform


@dataclass(frozen=True)
class Curriculum:
    """Shares of the streams that are open.

    form: "mixed": a stream that is open stays so; "sequential": only the newest is drawn from.
    difficulty: a number per stream, in their order; the lowest opens first, equal ones together.
        None: in the order of the streams.
    opening: "even": a level opens after equal numbers of steps; "root": the first ones sooner, the
        part that is open growing with the root of the steps.
    until: the part of the run in which they open; all streams are mixed in the rest.
    by: mixes the open ones.
    """

    observes: ClassVar[bool] = False
    varies: ClassVar[Varies] = "by run"

    form: Literal["mixed", "sequential"] = "mixed"
    difficulty: tuple[float, ...] | None = None
    opening: Literal["even", "root"] = "even"
    until: float = 1.0
    by: Mix = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        check_inner("Curriculum", self.by)
        check_part("Curriculum", "until", self.until)
        if self.form not in ("mixed", "sequential"):
            raise UsageError(f"Curriculum: form is {self.form!r}; give 'mixed' or 'sequential'.")
        if self.opening not in ("even", "root"):
            raise UsageError(f"Curriculum: opening is {self.opening!r}; give 'even' or 'root'.")
        if self.difficulty is not None and not all(map(math.isfinite, self.difficulty)):
            raise UsageError(f"Curriculum: difficulty is {self.difficulty}; give finite numbers.")

    def start(self, streams: Streams) -> State:
        """Return nothing; raise where difficulties are for another number of streams."""
        if self.difficulty is not None:
            streams.each(self.difficulty, "Curriculum", "difficulties")
        for level in range(len(self._levels(streams))):  # a mix that does not fit says so here
            among(self.by, streams, self._chosen(streams, level), Now(0, 1))
        return {}

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        way, levels = now.part / self.until, len(self._levels(streams))
        if way >= 1 and (self.until < 1 or self.form == "mixed"):
            return among(self.by, streams, range(len(streams)), now)
        newest = min(self._open(way, levels), levels) - 1
        return among(self.by, streams, self._chosen(streams, newest), now)

    def _levels(self, streams: Streams) -> list[float]:
        return sorted(set(self.difficulty or range(len(streams))))

    def _chosen(self, streams: Streams, newest: int) -> list[int]:
        """Return the streams that are drawn from while this level is the newest."""
        last = self._levels(streams)[newest]
        difficulty = self.difficulty or range(len(streams))
        if self.form == "mixed":
            return [s for s, level in enumerate(difficulty) if level <= last]
        return [s for s, level in enumerate(difficulty) if level == last]

    def _open(self, way: float, levels: int) -> int:
        """Return how many levels are open: 1 at the start, all at the end of the way."""
        if self.opening == "even":
            return int(way * levels) + 1
        first = 1 / levels**2  # competence squared: one level is open from the start
        return int(levels * math.sqrt(way * (1 - first) + first) + 1e-9)
