"""SubTuning: tune the few blocks that help a task most; tasks share what they left alone.

    choice = SubTuning(most=3)(blocks, score)      # score trains a subset and validates it
    model = Branched.of(blocks, {"a": (2,), "b": (2, 3)}, heads)

The search is greedy: it adds the block whose tuning scores best, as long as that helps. In
inference, all that comes before a task's first own block is computed once for all tasks.

Source: Kaplun, Gurevich, Swisa, David, Shalev-Shwartz & Malach, "Less is More: Selective Layer
    Finetuning with SubTuning", 2023, https://arxiv.org/abs/2302.06354
Differs from the source: written from its abstract and from memory. How a subset is trained and
    validated (there by cross-validation where data is scarce) is the caller's.
Shapes: none of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from polytask.adapt.held import Held
from polytask.errors import RunError, UsageError, unknown

Score = Callable[[tuple[str, ...]], float]
"""Names of blocks -> how good a model is in which these and the head were tuned; up is better."""


@dataclass(frozen=True)
class Choice:
    """What the search chose. blocks: in the order they were added. scores: before the first, and
    after each. tried: every subset that was scored."""

    blocks: tuple[str, ...]
    scores: tuple[float, ...]
    tried: Mapping[tuple[str, ...], float]


@dataclass(frozen=True)
class SubTuning:
    """Settings of the search: calling it with blocks and a score returns a `Choice`.

    most: blocks to choose at most; 0: no bound. gain: a block is added where the best score rises
    by more than this, in the score's unit.
    """

    most: int = 0
    gain: float = 0.0

    def __post_init__(self) -> None:
        if type(self.most) is not int or self.most < 0:
            raise UsageError(f"SubTuning: most is {self.most!r}; give a whole number >= 0.")
        if not self.gain >= 0:
            raise UsageError(f"SubTuning: gain is {self.gain}; give a number >= 0 (default 0).")

    def __call__(self, blocks: Sequence[str], score: Score) -> Choice:
        """Return the blocks chosen; of equal scores the first block is taken.

        score: called with subsets in the order of `blocks`, first with none: it has to start from
            the pretrained weights each time, see `only`. Raises RunError where it is not finite.
        """
        if isinstance(blocks, str) or not blocks or len(set(blocks)) != len(blocks):
            raise UsageError(f"SubTuning: blocks is {blocks!r}; give the names of different ones.")
        tried: dict[tuple[str, ...], float] = {}

        def scored(chosen: Sequence[str]) -> float:
            subset = tuple(name for name in blocks if name in chosen)
            tried[subset] = float(score(subset))
            if not math.isfinite(tried[subset]):
                raise RunError(f"SubTuning: tuning {subset} scored {tried[subset]}.")
            return tried[subset]

        chosen: list[str] = []
        scores = [scored(())]
        while len(chosen) < (self.most or len(blocks)) and len(chosen) < len(blocks):
            left = [name for name in blocks if name not in chosen]
            each = [scored([*chosen, name]) for name in left]
            best = max(range(len(left)), key=lambda i: each[i])
            if not each[best] - scores[-1] > self.gain:
                break
            chosen.append(left[best])
            scores.append(each[best])
        return Choice(tuple(chosen), tuple(scores), tried)


def only(model: nn.Module, blocks: Sequence[str], optimiser: Optimizer | None = None) -> Held:
    """Return the context in which nothing but these modules of a model is trained.

    blocks: names of modules, as in `model.named_modules()`; the head's as well. optimiser: see
    `Held`.
    """
    modules = dict(model.named_modules())
    for name in blocks:
        if name not in modules:
            raise unknown("module", name, modules, "See model.named_modules().")
    kept = {id(p) for name in blocks for p in modules[name].parameters()}
    return Held(model, {n: id(p) in kept for n, p in model.named_parameters()}, optimiser)


class Branched(nn.Module):
    """A chain of blocks with branches: inputs -> {task: output}, what tasks share computed once.

    blocks: one after another; each takes what the one before returned. own: task -> position ->
    the task's own block in its place. heads: task -> module.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        own: Mapping[str, Mapping[int, nn.Module]],
        heads: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        if own.keys() != heads.keys() or not heads:
            raise UsageError(
                f"Branched: own blocks are of {', '.join(own)}, heads of {', '.join(heads)}; give "
                "both of every task (own blocks may be {})."
            )
        _check_positions(own, len(blocks))
        self.names = tuple(heads)
        self.blocks = nn.ModuleList(blocks)
        # By number: a module's name cannot hold everything that a task's can.
        self.own = nn.ModuleList(
            nn.ModuleDict({str(at): own[task][at] for at in sorted(own[task])})
            for task in self.names
        )
        self.heads = nn.ModuleList(heads[task] for task in self.names)

    @classmethod
    def of(
        cls,
        blocks: Sequence[nn.Module],
        chosen: Mapping[str, Sequence[int]],
        heads: Mapping[str, nn.Module],
    ) -> Branched:
        """Return the model in which each task's chosen blocks are copies, to be tuned; the chain's
        own are frozen."""
        _check_positions(chosen, len(blocks))
        own = {task: {at: copy.deepcopy(blocks[at]) for at in ats} for task, ats in chosen.items()}
        made = cls(blocks, own, heads)
        made.blocks.requires_grad_(False)
        made.own.requires_grad_(True)
        return made

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the outputs of the tasks asked for (None: all). Nothing else is computed."""
        asked = list(self.names if tasks is None else tasks)
        for name in asked:
            if name not in self.names:
                raise unknown("task", name, self.names, f"They are: {', '.join(self.names)}.")
        # Tasks that have met the same blocks so far are one group, with one state.
        groups: list[tuple[list[str], Tensor]] = [(asked, x)] if asked else []
        for at, block in enumerate(self.blocks):
            after: list[tuple[list[str], Tensor]] = []
            for members, state in groups:
                alike = [name for name in members if not self._own(name, at)]
                if alike:
                    after.append((alike, block(state)))
                for name in members:
                    mine = self._own(name, at)
                    if mine is not None:
                        after.append(([name], mine(state)))
            groups = after
        states = {name: state for members, state in groups for name in members}
        return {name: self.heads[self.names.index(name)](states[name]) for name in asked}

    def _own(self, task: str, at: int) -> nn.Module | None:
        own = self.own[self.names.index(task)]
        assert isinstance(own, nn.ModuleDict)
        return dict(own.items()).get(str(at))


def _check_positions(own: Mapping[str, Iterable[int]], many: int) -> None:
    for task, ats in own.items():
        for at in ats:
            if not 0 <= at < many:
                raise UsageError(
                    f"Branched: {task!r} has a block of its own at {at}; positions are 0 to "
                    f"{many - 1}."
                )
