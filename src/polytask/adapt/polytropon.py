"""Polytropon: a few LoRA are skills, and every task takes its own shares of them.

    A_t = sum_k a_tk A_k,  B_t = sum_k a_tk B_k,  a_t = sigmoid(z_t) / sum sigmoid(z_t)
    change of task t = (alpha / R) * B_t A_t

Skills' A and B are mixed apart, so a task's change is of rank R and no sum of the skills' changes.

Source: Ponti, Sordoni, Bengio & Reddy, "Combining Parameter-efficient Modules for Task-level
    Generalisation", EACL 2023, https://arxiv.org/abs/2202.13914, and the code of its successor,
    https://arxiv.org/abs/2211.03831
Differs from the source: the Indian buffet process prior, one of the paper's options, is left out.
    Shares are drawn from the relaxed Bernoulli distribution in training only where `sampled` says
    so; PEFT's form always does. z are of each layer, as in that code; `common_routing` is one z for
    the whole model.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, E = skills, R = rank,
    G = heads, 1 here, I, O = inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from polytask.adapt.base import Adapter, Layer, uniform
from polytask.adapt.experts import OwnFactors, check_many, mixed_by_group
from polytask.adapt.low_rank import Factored, check_alpha, check_rank, draw
from polytask.adapt.selection import Selection, Shares, TaskScores


@dataclass(frozen=True)
class Polytropon(Factored):
    """Adapts linear layers, and convolutions without groups; zero change at the start.

    skills: how many LoRA. alpha: the scale is alpha / rank. sampled: shares are drawn in training,
    at this temperature. common_routing: all layers have one z.
    """

    skills: int = 8
    rank: int = 16
    alpha: float = 1.0
    sampled: bool = False
    temperature: float = 1.0
    common_routing: bool = False

    def __post_init__(self) -> None:
        check_many("Polytropon", "skills", self.skills, 8)
        check_rank("Polytropon", self.rank)
        check_alpha("Polytropon", self.alpha)
        Shares(self.sampled, self.temperature)

    def common(self, layers: Sequence[Layer], tasks: int, generator: Generator) -> nn.Module | None:
        """Return the routing of all layers together, if there is one."""
        return self._routing(tasks, generator, "routing") if self.common_routing else None

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's skills, and the routing of T tasks."""
        own = None if common else self._routing(tasks, generator, layer.path)
        return SkillsAdapter(layer, self.skills, self.rank, self.alpha, generator, own, common)

    def _routing(self, tasks: int, generator: Generator, path: str) -> Selection:
        rule = Shares(self.sampled, self.temperature)
        return Selection(skill_scores(tasks, self.skills, 1, generator), rule, path)


class SkillsAdapter(OwnFactors):
    """down_ERI and up_ERO of E skills, and a selection of tasks and heads over them.

    With heads, parts of the inputs and of the outputs are mixed with shares of their own.
    own: the layer's selection; None: `common` is that of all layers.
    """

    def __init__(
        self,
        layer: Layer,
        skills: int,
        rank: int,
        alpha: float,
        generator: Generator,
        own: Selection | None,
        common: nn.Module | None = None,
    ) -> None:
        super().__init__(layer, common)
        self.scale = alpha / rank
        self.down_ERI, self.up_ERO = draw(layer, (skills,), rank, generator)
        self.own = own

    def routing(self) -> Selection:
        """The layer's selection, or that of all layers."""
        selection = self.own or self.common
        assert isinstance(selection, Selection)
        return selection

    def factors_by(self, weights_BNGE: Tensor) -> tuple[Tensor, Tensor]:
        return (
            mixed_by_group(weights_BNGE, self.down_ERI, 2),
            mixed_by_group(weights_BNGE, self.up_ERO, 2),
        )


def skill_scores(tasks: int, skills: int, groups: int, generator: Generator) -> TaskScores:
    """Return scores of tasks that start from U(-1e-3, 1e-3), as in the authors' code."""
    scores = TaskScores(tasks, skills, generator, groups)
    scores.scores_TGE = uniform((tasks, groups, skills), 1e-3, generator)
    return scores
