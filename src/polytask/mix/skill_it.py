"""Skill-It: more of the streams that help where losses are high.

Source: Chen et al., "Skill-it! A Data-Driven Skills Framework for Understanding and Training
    Language Models", NeurIPS 2023, https://arxiv.org/abs/2307.14430, and its authors' code
Differs from the source: nothing known where every stream is looked at. The graph has a number for
    each pair, taken as it is; the authors' code sets 1 on the diagonal and 0.5 for an edge, as
    `edges` does. The loop says when to look; the source looks a fixed number of times in a run.
Shapes: S = streams, W = looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.base import Now, State, Streams, Varies
from polytask.mix.looks import known, seen, unseen


def edges(gains_SS: Tensor, above: float = 0.0, weight: float = 0.5) -> tuple[float, ...]:
    """Return the graph of an affinity, as `SkillIt` takes it: 1 on the diagonal, `weight` an edge.

    gains_SS: row i, column j: what training on i does for j, such as the gain of i + j over j
        alone. An edge is where it is greater than `above`.
    """
    if gains_SS.ndim != 2 or gains_SS.shape[0] != gains_SS.shape[1]:
        raise UsageError(f"edges: gains have shape {tuple(gains_SS.shape)}; give a square table.")
    graph_SS = (gains_SS > above).to(torch.float64) * weight
    graph_SS.fill_diagonal_(1.0)
    return tuple(graph_SS.flatten().tolist())


@dataclass(frozen=True)
class SkillIt:
    """Shares in proportion to exp(eta sum_j graph_ij sum of the last looks' losses of j).

    graph: S x S numbers >= 0, row after row; row i says how much stream i helps each j. None: the
        identity, each stream helps itself alone.
    targets: the streams whose losses count, in a recipe parted by "/"; none: all. A stream that
        helps no target keeps the exponent 0.
    eta: > 0, in 1 over the loss. looks: how many of the last ones are summed.

    Before the first look every loss counts as 1.
    """

    varies: ClassVar[Varies] = "never"
    observes: ClassVar[bool] = True

    graph: tuple[float, ...] | None = None
    targets: tuple[str, ...] = ()
    eta: float = 0.5
    looks: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.eta < math.inf:
            raise UsageError(f"SkillIt: eta is {self.eta}; give a finite value > 0 (default 0.5).")
        if self.looks < 1:
            raise UsageError(f"SkillIt: looks is {self.looks}; give at least 1 (default 3).")
        if self.graph is not None and not all(0 <= edge < math.inf for edge in self.graph):
            raise UsageError(f"SkillIt: graph is {self.graph}; give finite numbers >= 0.")

    def start(self, streams: Streams) -> State:
        """Return the state without a look; raise where graph or targets fit other streams."""
        streams.at(self.targets, "SkillIt")
        if self.graph is not None and len(self.graph) != len(streams) ** 2:
            raise UsageError(
                f"SkillIt: the graph has {len(self.graph)} numbers for {len(streams)} streams "
                f"({', '.join(streams.names)}); give {len(streams) ** 2}, row after row."
            )
        return unseen(len(streams), self.looks)

    def __call__(self, streams: Streams, now: Now, state: State) -> Tensor:
        """Return shares of shape (S,), float64."""
        count = len(streams)
        losses_WS = state["losses_WS"]
        there_W = ~losses_WS.isnan().all(1)
        if bool(there_W.any()):
            sums_S = torch.stack([known(row_S) for row_S in losses_WS[there_W]]).sum(0)
        else:
            sums_S = torch.ones(count, dtype=torch.float64)
        graph_SS = torch.eye(count, dtype=torch.float64)
        if self.graph is not None:
            graph_SS = torch.tensor(self.graph, dtype=torch.float64).reshape(count, count)
        if self.targets:
            counts_S = torch.zeros(count, dtype=torch.float64)
            counts_S[streams.at(self.targets, "SkillIt")] = 1.0
            sums_S = sums_S * counts_S
        return torch.softmax(self.eta * (graph_SS @ sums_S), 0)

    def observe(self, losses_S: Tensor, streams: Streams, now: Now, state: State) -> State:
        """Return the state with this look."""
        return seen(losses_S, state)
