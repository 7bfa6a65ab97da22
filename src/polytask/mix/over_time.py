"""Over time: shares that move from one mix to the next while the run goes on.

Source: none; annealing from proportional towards uniform (or back) is common in multilingual
    training, see Wang, Tsvetkov & Neubig, "Balancing Training for Multilingual Neural Machine
    Translation", ACL 2020, https://arxiv.org/abs/2004.06748, for what it is compared with
Differs from the source: nothing known.
Shapes: S = streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.among import check_inner
from polytask.mix.base import Mix, Now, State, Streams, Varies
from polytask.mix.temperature import Temperature


@dataclass(frozen=True)
class OverTime:
    """Shares between those of the two mixes whose times enclose the step.

    temperatures: of the mixes, two or more; infinity is uniform. at: the part of the run at which
        each is reached, rising; None: evenly from 0 to 1. Before the first and after the last time
        the shares stand still.
    between: "line" moves them evenly, "step" keeps a mix until the next one's time.
    mixes: other mixes than temperatures, in Python; then `temperatures` is not looked at.
    """

    varies: ClassVar[Varies] = "by run"
    observes: ClassVar[bool] = False

    temperatures: tuple[float, ...] = (1.0, 5.0)
    at: tuple[float, ...] | None = None
    between: Literal["line", "step"] = "line"
    mixes: tuple[Mix, ...] = ()

    def __post_init__(self) -> None:
        for mix in self._mixes():
            check_inner("OverTime", mix)
        count = len(self._mixes())
        if count < 2:
            raise UsageError(f"OverTime: {count} mix is no change; give two or more.")
        times = self._times()
        rising = all(one < other for one, other in pairwise(times))
        if not (len(times) == count and rising and times[0] >= 0 and times[-1] <= 1):
            raise UsageError(
                f"OverTime: at is {self.at} for {count} mixes; give a time from 0 to 1 for each, "
                "rising."
            )
        if self.between not in ("line", "step"):
            raise UsageError(f"OverTime: between is {self.between!r}; give 'line' or 'step'.")

    def _mixes(self) -> tuple[Mix, ...]:
        return self.mixes or tuple(Temperature(value) for value in self.temperatures)

    def _times(self) -> tuple[float, ...]:
        count = len(self._mixes())
        return tuple(i / (count - 1) for i in range(count)) if self.at is None else self.at

    def start(self, streams: Streams) -> State:
        """Return nothing; raise where a mix does not fit the streams."""
        for mix in self._mixes():
            mix.start(streams)
        return {}

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        mixes, times = self._mixes(), self._times()
        last = max((i for i, time in enumerate(times) if time <= now.part), default=0)
        shares_S = mixes[last](streams, now, mixes[last].start(streams))
        if self.between == "step" or last + 1 == len(mixes) or now.part < times[0]:
            return shares_S
        way = (now.part - times[last]) / (times[last + 1] - times[last])
        following = mixes[last + 1]
        return shares_S.lerp(following(streams, now, following.start(streams)), way)
