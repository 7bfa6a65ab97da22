"""SPT: prompts retrieved from a memory bank by what a task's discrete prompt is about.

The bank holds M trained embeddings for all tasks. Each row gets the P of them with the largest
inner products with its query, best first: the mean embedding of the words that tell the model what
to do (the discrete prompt).

Source: Bari, Zhang, Zheng, Shi, Zhu, Joty & Li, "SPT: Semi-Parametric Prompt Tuning for Multitask
    Prompted Learning", 2022, https://arxiv.org/abs/2212.10929
Differs from the source: derived from its abstract: the mean as the query, the inner product, and
    that a memory is its own key, are ours. A task has one query, set by `describe`, or every row
    its own, handed in. Until then a task's query is that of words drawn at random. As retrieval
    chooses, no gradient flows through queries; the memories that were retrieved get theirs.
Shapes: B = rows of the batch, L = positions, T = tasks, M = memories, P = positions of the prompt,
    E = channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from polytask.adapt.base import Adapter, Layer, Method, Rows
from polytask.adapt.engine import Adapted
from polytask.adapt.prompt import PromptAdapter, PromptTuning, Start
from polytask.errors import UsageError

QUERY = "query"
"""Under which rows' own queries are handed in: adapted.tasks(index, given={"query": (B, E)})."""


@dataclass(frozen=True)
class SPT(Method):
    """Puts positions before what an embedding, or a module named for it, returns, (B, L, E).

    length: positions. memories: in the bank, at least `length`. start, std: of the memories, see
    `PromptTuning`; and of queries that nobody set.
    """

    kinds = PromptTuning.kinds

    length: int = 20
    memories: int = 100
    start: Start = "entries"
    std: float = 0.02

    def __post_init__(self) -> None:
        PromptTuning(self.length, self.start, self.std)  # checks what they share
        if type(self.memories) is not int or self.memories < self.length:
            raise UsageError(
                f"SPT: memories is {self.memories!r}; give a whole number >= length, {self.length}."
            )

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the bank, and queries of T tasks."""
        return SPTAdapter(layer, self, tasks, generator)


class SPTAdapter(Adapter):
    """memory_ME, trained; query_TE, fixed."""

    per_task = ("query_TE",)
    lengthens = True
    needs_task = True
    query_TE: Tensor

    def __init__(self, layer: Layer, settings: SPT, tasks: int, generator: Generator) -> None:
        super().__init__(layer)
        self.length = settings.length
        bank = PromptTuning(settings.memories, settings.start, settings.std)
        memory_1ME = PromptAdapter(layer, bank, 1, generator).prompt_TPE.detach()
        self.memory_ME = nn.Parameter(memory_1ME[0].clone())
        words = PromptTuning(settings.length, settings.start, settings.std)
        drawn = PromptAdapter(layer, words, tasks, generator).prompt_TPE.detach()
        self.register_buffer("query_TE", drawn.mean(1))

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        given = rows.given.get(QUERY)
        query_BE = rows.take(self.query_TE, y) if given is None else given.detach().to(y.dtype)
        if query_BE.shape != (len(rows.at_B), y.shape[-1]) and len(rows.at_B) == len(y):
            raise UsageError(
                f"SPT: given[{QUERY!r}] has shape {tuple(query_BE.shape)}; give an embedding of "
                f"every row, {(len(rows.at_B), y.shape[-1])}."
            )
        memory_ME = self.memory_ME.to(y.dtype)
        at_BP = (query_BE @ memory_ME.detach().t()).topk(self.length, -1).indices
        prompt_BPE = memory_ME[at_BP]
        return torch.cat([prompt_BPE.expand(len(y), -1, -1), y], 1)


def describe(adapted: Adapted, prompts: Mapping[str, Tensor]) -> None:
    """Set tasks' queries to the mean embedding of their discrete prompts, in every SPT adapter.

    prompts: task -> int64, (words,), as the adapted embedding reads them.
    Raises UsageError where the model has no SPT adapter at an embedding, or no such task.
    """
    found = [
        adapter for adapter in adapted.parts.modules()
        if isinstance(adapter, SPTAdapter) and adapter.layer.kind == "embedding"
    ]  # fmt: skip
    if not found:
        raise UsageError(
            "describe: the model has no SPT adapter at an embedding; hand queries in instead: "
            f"adapted.tasks(index, given={{{QUERY!r}: embeddings of the rows}})."
        )
    for task, words in prompts.items():
        (at,) = adapted.index([task]).tolist()
        if words.dtype != torch.int64 or words.dim() != 1 or not len(words):
            raise UsageError(
                f"describe: the prompt of {task!r} is {words.dtype} of shape {tuple(words.shape)}; "
                "give the numbers of its words, int64 (words,)."
            )
        for adapter in found:
            entries_VE = adapter.layer.weight_OI().t()
            adapter.query_TE[at] = entries_VE[words.to(entries_VE.device)].mean(0)
