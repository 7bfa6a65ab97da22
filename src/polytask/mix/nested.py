"""Nested: mixtures of mixtures; rates multiply on the way down.

Source: Roberts et al., "Scaling Up Models and Data with t5x and seqio", JMLR 2023,
    https://arxiv.org/abs/2203.17189 (mixtures that name mixtures)
Differs from the source: the groups of a level are mixed by a method, which sees a group as one
    stream of all its rows; the source gives each a number (`FixedRates` does).
Shapes: S = streams, C = streams and groups of one level.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.among import check_inner, most_varying
from polytask.mix.base import Mix, Now, State, Streams, Varies
from polytask.mix.proportional import Proportional
from polytask.mix.uniform import Uniform


@dataclass(frozen=True)
class Nested:
    """Shares that are products down a tree of groups.

    groups: the group of each stream, in their order; in a recipe parted by "/". A dot parts levels:
        "text.film" is the group film inside the group text. None: one group of all.
    between: mixes the groups and streams that stand side by side on every level but the last.
    within: mixes where only streams are left.
    """

    observes: ClassVar[bool] = False

    groups: tuple[str, ...] | None = None
    between: Mix = field(default_factory=Uniform)
    within: Mix = field(default_factory=Proportional)

    def __post_init__(self) -> None:
        for mix in (self.between, self.within):
            check_inner("Nested", mix)

    @property
    def varies(self) -> Varies:
        return most_varying(self.between.varies, self.within.varies)

    def start(self, streams: Streams) -> State:
        """Return nothing; raise where there is not one group per stream."""
        if self.groups is not None:
            streams.each(self.groups, "Nested", "groups")
        for group in self.groups or ():
            if not all(group.split(".")):
                raise UsageError(
                    f"Nested: group {group!r} has a level without a name; write it as text.film."
                )
        self(streams, Now(0, 1), {})  # a mix that does not fit its level says so here
        return {}

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        shares_S = torch.zeros(len(streams), dtype=torch.float64)
        paths = [group.split(".") for group in self.groups or ("all",) * len(streams)]
        self._share(1.0, list(range(len(streams))), paths, 0, streams, now, shares_S)
        return shares_S

    def _share(
        self, rate: float, members: list[int], paths: list[list[str]], level: int,
        streams: Streams, now: Now, shares_S: Tensor,
    ) -> None:  # fmt: skip
        """Hand `rate` on to the members, which share their groups above this level."""
        groups: dict[str, list[int]] = {}
        for s in members:
            own = paths[s][level] if level < len(paths[s]) else ""
            groups.setdefault(f"group {own}" if own else f"stream {streams.names[s]}", []).append(s)
        last = all(name.startswith("stream ") for name in groups)
        sizes_C = torch.stack([streams.sizes_S[at].sum() for at in groups.values()])
        mix = self.within if last else self.between
        here = Streams(tuple(groups), sizes_C)
        rates = (rate * mix(here, now, mix.start(here))).tolist()
        for (name, at), part in zip(groups.items(), rates, strict=True):
            if name.startswith("stream "):
                shares_S[at[0]] = part
            else:
                self._share(part, at, paths, level + 1, streams, now, shares_S)
