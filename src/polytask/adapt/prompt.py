"""Prompt tuning: trained embeddings before those of the input, for each task.

Source: Lester, Al-Rfou & Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning",
    EMNLP 2021, https://arxiv.org/abs/2104.08691
Differs from the source: nothing known. Prompts start from entries of the embedding drawn without
    replacement where there are enough (the source's "sampled vocabulary", from all entries), or
    from N(0, std^2).
Shapes: B = rows of the batch, L = positions, T = tasks, P = positions of the prompt, E = channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn

from polytask.adapt.base import Adapter, Layer, Method, Rows, normal
from polytask.errors import UsageError

Start = Literal["entries", "normal"]


@dataclass(frozen=True)
class PromptTuning(Method):
    """Puts positions before what an embedding, or a module named for it, returns, (B, L, E).

    The rest of the model sees sequences that are longer by `length`; masks and labels of positions
    are the caller's. Rows without a task need a batch of their own.
    length: positions. start: "entries" of the embedding, or "normal". std: of the latter.
    """

    kinds = ("embedding", "module")

    length: int = 20
    start: Start = "entries"
    std: float = 0.02

    def __post_init__(self) -> None:
        if type(self.length) is not int or self.length < 1:
            raise UsageError(f"PromptTuning: length is {self.length!r}; give a whole number >= 1.")
        if self.start not in get_args(Start):
            raise UsageError(f"PromptTuning: start is {self.start!r}; give 'entries' or 'normal'.")
        if not self.std >= 0:
            raise UsageError(f"PromptTuning: std is {self.std}; give a number >= 0.")

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the prompts of T tasks."""
        return PromptAdapter(layer, self, tasks, generator)


class PromptAdapter(Adapter):
    """prompt_TPE."""

    per_task = ("prompt_TPE",)
    lengthens = True
    needs_task = True

    def __init__(
        self, layer: Layer, settings: PromptTuning, tasks: int, generator: Generator
    ) -> None:
        super().__init__(layer)
        shape = (tasks, settings.length, layer.outputs)
        if settings.start == "normal":
            self.prompt_TPE = normal(shape, 0.0, settings.std, generator)
        elif layer.kind == "embedding":
            entries_VE = layer.weight_OI().t()
            several = settings.length > layer.inputs
            drawn = [
                torch.randint(layer.inputs, (settings.length,), generator=generator)
                if several
                else torch.randperm(layer.inputs, generator=generator)[: settings.length]
                for _ in range(tasks)
            ]
            at_TP = torch.stack(drawn).to(entries_VE.device)
            self.prompt_TPE = nn.Parameter(entries_VE[at_TP].detach().clone())
        else:
            raise UsageError(
                f"PromptTuning: {layer.path!r} has no entries to start from; give start='normal'."
            )

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        return torch.cat([rows.take(self.prompt_TPE, y), y], 1)
