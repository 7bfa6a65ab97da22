"""Rich first: train on the streams with many rows, then mix all of them.

Source: Choi et al., "Order Matters in the Presence of Dataset Imbalance for Multilingual Learning",
    NeurIPS 2023, https://arxiv.org/abs/2312.06134
Differs from the source: evidence is the abstract. Which streams are rich is derived from their
    sizes unless named; optimiser and learning rate go on as they are (the source compares with a
    restart and finds that it is not what helps).
Shapes: S = streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polytask.mix.among import among, check_inner, check_part
from polytask.mix.base import Mix, Now, State, Streams, Varies
from polytask.mix.proportional import Proportional
from polytask.mix.temperature import Temperature


@dataclass(frozen=True)
class RichFirst:
    """Shares of the rich streams alone, in proportion to their rows; then of all, by temperature.

    rich: their names, in a recipe parted by "/"; none: those with at least the mean number of rows.
        Where all are rich, the first part is proportional mixing.
    until: the part of the run on them alone. temperature: of the mix after it.
    by: another mix for the second part, in Python; then `temperature` is not looked at.
    """

    varies: ClassVar[Varies] = "by run"
    observes: ClassVar[bool] = False

    rich: tuple[str, ...] = ()
    until: float = 0.5
    temperature: float = 5.0
    by: Mix | None = None

    def __post_init__(self) -> None:
        check_part("RichFirst", "until", self.until)
        check_inner("RichFirst", self._by())

    def _by(self) -> Mix:
        return Temperature(self.temperature) if self.by is None else self.by

    def _rich(self, streams: Streams) -> list[int]:
        if self.rich:
            return streams.at(self.rich, "RichFirst")
        sizes = streams.sizes_S.tolist()
        return [s for s, size in enumerate(sizes) if size * len(sizes) >= sum(sizes)]

    def start(self, streams: Streams) -> State:
        """Return nothing; raise where a name is no stream's."""
        self._rich(streams)
        return self._by().start(streams)

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        if now.part < self.until:
            return among(Proportional(), streams, self._rich(streams), now)
        return self._by()(streams, now, state)
