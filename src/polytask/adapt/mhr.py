"""MHR: Polytropon whose tasks take shares of every head, a part of each skill, apart.

    A_t = [sum_k a_thk A_k^(h)]_h over parts h of the inputs, B_t likewise over parts of the outputs

A new task trains little: `freeze_skills` (MHR-z) leaves nothing but routing, and `route_evenly`
(MHR-mu) trains the skills' plain average.

Source: Caccia et al., "Multi-Head Adapter Routing for Cross-Task Generalization", NeurIPS 2023,
    https://arxiv.org/abs/2211.03831, and the authors' code
Differs from the source: A is drawn by all of a layer's inputs, whatever the heads. MHR-mu's even
    routing is scores of 0, whose shares are 1 / K each, and not another rule: so a file of the
    model holds it.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, E = skills, R = rank,
    G = heads, I, O = inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, nn

from polytask.adapt.base import Adapter, Layer
from polytask.adapt.engine import Adapted
from polytask.adapt.experts import check_many
from polytask.adapt.low_rank import Factored, check_alpha, check_rank
from polytask.adapt.polytropon import SkillsAdapter, skill_scores
from polytask.adapt.selection import Selection, Shares, TaskScores
from polytask.errors import UsageError


@dataclass(frozen=True)
class MHR(Factored):
    """Adapts linear layers and convolutions whose channels the heads divide; zero at the start.

    heads: parts of inputs and outputs. skills: how many LoRA. alpha: the scale is alpha / rank.
    sampled: shares are drawn in training, at this temperature.
    """

    heads: int = 8
    skills: int = 8
    rank: int = 16
    alpha: float = 1.0
    sampled: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_many("MHR", "heads", self.heads, 8)
        check_many("MHR", "skills", self.skills, 8)
        check_rank("MHR", self.rank)
        check_alpha("MHR", self.alpha)
        Shares(self.sampled, self.temperature)

    def refuses(self, layer: Layer) -> str:
        """Return why a layer cannot be cut into heads, "" where it can."""
        if layer.inputs % self.heads or layer.outputs % self.heads:
            return (
                f"{self.heads} heads do not divide its {layer.inputs} inputs and {layer.outputs} "
                "outputs"
            )
        return super().refuses(layer)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's skills, and the routing of T tasks and their heads."""
        scores = skill_scores(tasks, self.skills, self.heads, generator)
        own = Selection(scores, Shares(self.sampled, self.temperature), layer.path)
        return SkillsAdapter(layer, self.skills, self.rank, self.alpha, generator, own)


def freeze_skills(adapted: Adapted) -> list[nn.Parameter]:
    """Return the scores of routing by task, after everything else of the adapters is frozen.

    They are what trains for a new task (MHR-z). Serves every method with such routing: MHR,
    Polytropon, TensorPoly, MTL-LoRA. Raises UsageError where an adapter has none.
    """
    routing = [scores.scores_TGE for _, scores in _routings(adapted, "freeze_skills")]
    kept = {id(p) for p in routing}
    for parameter in adapted.parts.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    return routing


def route_evenly(adapted: Adapted, tasks: Sequence[str] | None = None) -> None:
    """Give tasks an even share of every skill, and freeze routing: the skills train (MHR-mu).

    tasks: which; None: all. The others keep their routing, frozen as well. Shares are no longer
    drawn in training. Serves the methods that `freeze_skills` does.
    """
    routings = list(_routings(adapted, "route_evenly"))
    device = routings[0][1].scores_TGE.device
    index_T = adapted.index(adapted.names if tasks is None else tasks).to(device)
    for selection, scores in routings:
        with torch.no_grad():
            scores.scores_TGE[index_T] = 0.0
        scores.scores_TGE.requires_grad_(False)
        if isinstance(selection.rule, Shares):
            selection.rule = replace(selection.rule, sampled=False)


def _routings(adapted: Adapted, who: str) -> Iterator[tuple[Selection, TaskScores]]:
    found = False
    for module in adapted.parts.modules():
        if isinstance(module, Selection) and isinstance(module.scores, TaskScores):
            found = True
            yield module, module.scores
    if not found:
        raise UsageError(f"{who}: the adapters have no routing by task; MHR and Polytropon have.")
