"""What each row takes from experts: one object for all methods that mix.

    selection = Selection(TaskScores(tasks, experts, generator), Softmax(temperature=0.1))
    weights_BNGE = selection(rows, x)

A selection is scores of the experts, and a rule that makes weights of them. Experts may be modules
of a layer, ranks, or the tasks themselves. Scores are those of a task (Polytropon, MHR, MTL-LoRA,
ScaLearn), of a row (an instance's embedding), of a token (LoRAMoE, Arrow), or handed in with the
batch (a preference over tasks). Weights have four axes: rows, tokens, groups, experts. Each of the
first two is 1 where all have the same; groups are parts with weights of their own (the heads of
MHR, the channels of ScaLearn), 1 elsewhere.

How to use weights: `mixed` adds up parameters before they are applied (one token has what all of
its row have), `spread_over` multiplies what each expert made. Both are a fixed number of operators.
`Selection.chosen` returns the weights of a rule that chooses few experts as those few.

Source: the rules are those of Ponti et al. 2022 (arXiv:2202.13914), Caccia et al. 2022
    (arXiv:2211.03831), Ostapenko et al. 2024 (arXiv:2405.11157) and of the softmax gates of
    mixtures of experts; each method's file says which it takes.
Shapes: B = rows, N = tokens of a row, G = groups, E = experts, K = experts chosen, T = tasks, C =
    channels of x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from polytask.adapt.base import Rows, normal
from polytask.errors import UsageError


class Scores(nn.Module):
    """Scores of the experts."""

    per_task: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, rows: Rows, x: Tensor | None) -> Tensor:
        """Return (B or 1, N or 1, G, E). x: the layer's input, (B, N, C)."""


class TaskScores(Scores):
    """A trained score of every task, group and expert: (T, G, E).

    values: the first ones, of one task, (G, E) or (E,); or drawn, from N(mean, std^2).
    """

    per_task = ("scores_TGE",)

    def __init__(
        self,
        tasks: int,
        experts: int,
        generator: Generator,
        groups: int = 1,
        mean: float = 0.0,
        std: float = 0.0,
    ) -> None:
        super().__init__()
        self.scores_TGE = normal((tasks, groups, experts), mean, std, generator)

    def forward(self, rows: Rows, x: Tensor | None) -> Tensor:
        like = self.scores_TGE if x is None or not x.is_floating_point() else x
        return rows.take(self.scores_TGE, like)[:, None]


class RouterScores(Scores):
    """Scores that a linear map makes of every token, or of the mean of a row's tokens.

    Starts from Kaiming-uniform with a = sqrt 5, as `nn.Linear` does. level: "token" or "row".
    """

    def __init__(
        self,
        channels: int,
        experts: int,
        generator: Generator,
        groups: int = 1,
        bias: bool = False,
        level: str = "token",
    ) -> None:
        super().__init__()
        if level not in ("token", "row"):
            raise UsageError(f"RouterScores: level is {level!r}; give 'token' or 'row'.")
        bound = 1 / math.sqrt(channels)
        self.level, self.groups = level, groups
        draw = torch.empty(groups * experts, channels).uniform_(-bound, bound, generator=generator)
        self.weight_SC = nn.Parameter(draw)
        self.bias_S = nn.Parameter(torch.zeros(groups * experts)) if bias else None

    def forward(self, rows: Rows, x: Tensor | None) -> Tensor:
        assert x is not None, "a router scores the layer's input"
        seen = x.mean(1, keepdim=True) if self.level == "row" else x
        scores = nn.functional.linear(seen, self.weight_SC.to(x.dtype), _as(self.bias_S, x))
        return scores.view(*scores.shape[:-1], self.groups, -1)


class PrototypeScores(Scores):
    """|x . prototype| of every token: how much of it lies along each expert's direction.

    prototypes_EC: fixed, one per expert, usually of unit length.
    """

    prototypes_EC: Tensor

    def __init__(self, prototypes_EC: Tensor) -> None:
        super().__init__()
        self.register_buffer("prototypes_EC", prototypes_EC)

    def forward(self, rows: Rows, x: Tensor | None) -> Tensor:
        assert x is not None, "prototypes score the layer's input"
        return nn.functional.linear(x, self.prototypes_EC.to(x.dtype)).abs().unsqueeze(-2)


class GivenScores(Scores):
    """Scores handed in with the batch as `given[name]`: (E,) for all rows, or (B, E)."""

    def __init__(self, name: str, experts: int, who: str) -> None:
        super().__init__()
        self.name, self.experts, self.who = name, experts, who

    def forward(self, rows: Rows, x: Tensor | None) -> Tensor:
        scores = rows.given_for(self.name, self.who)
        if scores.shape[-1] != self.experts or scores.dim() > 2:
            raise UsageError(
                f"{self.who}: given[{self.name!r}] has shape {tuple(scores.shape)}; give "
                f"({self.experts},) or (rows, {self.experts})."
            )
        return scores.view(-1, 1, 1, self.experts)


@dataclass(frozen=True, eq=False)
class Few:
    """Weights of the chosen experts alone, (..., K), and which they are, int64; of E `experts`."""

    weights: Tensor
    chosen: Tensor
    experts: int

    def dense(self) -> Tensor:
        """Return the weights of all experts, (..., E): 0 of those not chosen."""
        none = self.weights.new_zeros(*self.weights.shape[:-1], self.experts)
        return none.scatter(-1, self.chosen, self.weights)


class Rule(ABC):
    """Scores -> weights over the last axis; concrete rules are frozen dataclasses."""

    @abstractmethod
    def __call__(self, scores: Tensor, training: bool, by: Tensor | None = None) -> Tensor:
        """Return weights in the shape of the scores.

        by: what a rule that chooses experts chooses by, where it is not the scores themselves.
        """


@dataclass(frozen=True)
class Plain(Rule):
    """The scores themselves."""

    def __call__(self, scores: Tensor, training: bool, by: Tensor | None = None) -> Tensor:
        return scores


@dataclass(frozen=True)
class Even(Rule):
    """1 / E of every expert, whatever the scores; no gradient reaches them."""

    def __call__(self, scores: Tensor, training: bool, by: Tensor | None = None) -> Tensor:
        return torch.full_like(scores, 1 / scores.shape[-1])


@dataclass(frozen=True)
class Softmax(Rule):
    """softmax(scores / temperature) over all experts, or over the best `top` alone.

    top: how many; 0 is all. Weights of the others are 0, and so are their gradients. Of equal
    scores the ones that torch's `topk` names are taken.
    """

    temperature: float = 1.0
    top: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(
                f"Softmax: temperature is {self.temperature}; give a number > 0 (default 1)."
            )
        if type(self.top) is not int or self.top < 0:
            raise UsageError(f"Softmax: top is {self.top!r}; give a whole number >= 0.")

    def __call__(self, scores: Tensor, training: bool, by: Tensor | None = None) -> Tensor:
        few = self.few(scores, by)
        return torch.softmax(scores / self.temperature, -1) if few is None else few.dense()

    def few(self, scores: Tensor, by: Tensor | None = None) -> Few | None:
        """Return the weights of the best alone; None where all experts are taken."""
        experts = scores.shape[-1]
        if not 0 < self.top < experts:
            return None
        if by is None:
            best, chosen = scores.topk(self.top, -1, sorted=False)
        else:
            chosen = by.topk(self.top, -1, sorted=False).indices
            best = scores.gather(-1, chosen)
        return Few(torch.softmax(best / self.temperature, -1), chosen, experts)


@dataclass(frozen=True)
class Shares(Rule):
    """sigmoid(scores), divided by their sum.

    sampled: in training each sigmoid is drawn from the relaxed Bernoulli distribution of its
        score, by torch's own generator, as dropout is. temperature: of that distribution.
    """

    sampled: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(
                f"Shares: temperature is {self.temperature}; give a number > 0 (default 1)."
            )

    def __call__(self, scores: Tensor, training: bool, by: Tensor | None = None) -> Tensor:
        if self.sampled and training:
            # Uniform numbers away from 0 and 1, where the logit is infinite.
            u = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
            scores = (scores + torch.log(u) - torch.log1p(-u)) / self.temperature
        open_ = torch.sigmoid(scores)
        return open_ / open_.sum(-1, keepdim=True).clamp(min=1e-12)


class Selection(nn.Module):
    """Scores and a rule. `selection.rule = Even()` replaces routing and keeps the scores.

    path: under which a trace gets the weights; "" for none.
    """

    def __init__(self, scores: Scores, rule: Rule, path: str = "") -> None:
        super().__init__()
        self.scores, self.rule, self.path = scores, rule, path

    def forward(self, rows: Rows, x: Tensor | None = None, by: Tensor | None = None) -> Tensor:
        """Return weights (B or 1, N or 1, G, E); x and by: see `Scores` and `Rule`."""
        return all_of(self.chosen(rows, x, by))

    def chosen(self, rows: Rows, x: Tensor | None = None, by: Tensor | None = None) -> Tensor | Few:
        """Return the same weights, as few of them as the rule takes."""
        weights = chosen_by(self.rule, self.scores(rows, x), self.training, by)
        if self.path and rows.trace is not None:
            rows.note_weights(self.path, all_of(weights))
        return weights


def chosen_by(rule: Rule, scores: Tensor, training: bool, by: Tensor | None = None) -> Tensor | Few:
    """Return a rule's weights, as few of them as it takes."""
    few = rule.few(scores, by) if isinstance(rule, Softmax) else None
    return rule(scores, training, by) if few is None else few


def all_of(weights: Tensor | Few) -> Tensor:
    """Return the weights of all experts."""
    return weights.dense() if isinstance(weights, Few) else weights


def of_task(selection: Selection, task: int) -> Tensor:
    """Return what one task takes, (G, E), in evaluation: for changes of weights.

    Raises UsageError where weights depend on more than the task.
    """
    if not isinstance(selection.scores, TaskScores):
        raise UsageError(
            f"What is taken from the experts depends on the input "
            f"({type(selection.scores).__name__}), so it is no change of weights of a task."
        )
    return selection.rule(selection.scores.scores_TGE[task].detach(), False)


def mixed(weights_BNGE: Tensor, values_E: Tensor) -> Tensor:
    """Return the experts' parameters added up for each row, (B or 1, ...).

    values_E: (E, ...). With groups, (E, G, ...): group g of what comes back, (B, G, ...), is the
    sum of the experts' group g by its own weights. Weights must be those of rows: N is 1.
    """
    if weights_BNGE.shape[1] != 1:
        raise UsageError("mixed: parameters are mixed for rows; these weights differ by token.")
    weights_BGE = weights_BNGE[:, 0].to(values_E.dtype)
    if weights_BGE.shape[1] == 1:
        return (weights_BGE[:, 0] @ values_E.flatten(1)).view(-1, *values_E.shape[1:])
    values_GEX = values_E.flatten(2).transpose(0, 1)
    mixed_GBX = torch.bmm(weights_BGE.transpose(0, 1), values_GEX)
    return mixed_GBX.transpose(0, 1).reshape(-1, *values_E.shape[1:])


def spread_over(weights_BNGE: Tensor, made_BNX: Tensor) -> Tensor:
    """Return what each expert made, times its weight: (B, N, E * R), as `made_BNX` is.

    made_BNX: experts' own R numbers one after another, the first expert's first. One group.
    """
    weights_BNE = weights_BNGE.squeeze(2)
    parted = made_BNX.reshape(*made_BNX.shape[:-1], weights_BNE.shape[-1], -1)
    return (parted * weights_BNE.unsqueeze(-1).to(made_BNX.dtype)).flatten(-2)


def _as(value: Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else value.to(like.dtype)
