"""Prefix tuning: trained keys and values before those of the input, for each task.

Source: Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021,
    https://arxiv.org/abs/2101.00190
Differs from the source: keys and values are trained as they are, or made of narrower ones by a
    network of each layer's own (hidden > 0); the source has one network for all layers. It acts in
    nn.MultiheadAttention, whose forward pass polytask writes, and in attention of Hugging Face's
    models that asks their registry (eager and sdpa), where keys get the prefix after rotations and
    behind caches: positions of the input stay what they were. Other attention does not let keys be
    put before its own, and is refused. Weights that are asked for are those of the input's own
    keys, so the rest of their sum is what the prefix got.
Shapes: B = rows of the batch, T = tasks, P = positions of the prefix, E = channels of the keys,
    M = hidden, H = heads of the keys, D = channels of a head, L = queries, S = keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Method, Rows, normal, uniform
from polytask.adapt.place import Place
from polytask.errors import UsageError


@dataclass(frozen=True)
class PrefixTuning(Method):
    """Adapts attention. Its start is no zero change: every prefix takes some attention.

    length: positions. std: of the first values. hidden: 0 trains keys and values themselves;
    otherwise they are tanh(Z W_1) W_2 of that many hidden channels, which trains more steadily.
    """

    kinds = ("attention",)

    length: int = 30
    std: float = 0.02
    hidden: int = 0

    def __post_init__(self) -> None:
        if type(self.length) is not int or self.length < 1:
            raise UsageError(f"PrefixTuning: length is {self.length!r}; give a whole number >= 1.")
        if type(self.hidden) is not int or self.hidden < 0:
            raise UsageError(f"PrefixTuning: hidden is {self.hidden!r}; give a whole number >= 0.")
        if not self.std > 0:
            raise UsageError(f"PrefixTuning: std is {self.std}; give a number > 0 (default 0.02).")

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the attention's prefixes for T tasks."""
        return PrefixAdapter(layer, self, tasks, generator)


class PrefixAdapter(Adapter):
    """prefix_TPC: keys and values side by side (C = 2 E); with a network, what it reads (C = E)."""

    needs_task = True

    def __init__(
        self, layer: Layer, settings: PrefixTuning, tasks: int, generator: Generator
    ) -> None:
        super().__init__(layer)
        wide, hidden = layer.outputs, settings.hidden
        shape = (tasks, settings.length, wide if hidden else 2 * wide)
        self.prefix_TPC = normal(shape, 0.0, settings.std, generator)
        self.per_task = ("prefix_TPC",)
        self.hidden = hidden
        if hidden:
            self.first_TEM = uniform((tasks, wide, hidden), wide**-0.5, generator)
            self.second_TMC = uniform((tasks, hidden, 2 * wide), hidden**-0.5, generator)
            self.per_task = ("prefix_TPC", "first_TEM", "second_TMC")

    def prefix(self, like: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return each row's keys and values, (B, P, E) each."""
        prefix_BPC = rows.take(self.prefix_TPC, like)
        if self.hidden:
            hidden = torch.tanh(torch.bmm(prefix_BPC, rows.take(self.first_TEM, like)))
            prefix_BPC = torch.bmm(hidden, rows.take(self.second_TMC, like))
        key, value = prefix_BPC.chunk(2, -1)
        return key, value

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        raise AssertionError("attention asks for its prefix itself")


def check_one(place: Place) -> None:
    """Raise UsageError where an attention has several prefixes."""
    if len(place.adapters) != 1:
        raise UsageError(
            f"{place.layer.path!r} has {len(place.adapters)} prefixes; give it one, as long as all."
        )


def before(place: Place, queries_BHLD: Tensor, heads: int) -> tuple[Tensor, Tensor] | None:
    """Return keys and values that come first in an attention, (B, H, P, D).

    heads: of the keys. None comes back where adapters stand aside.
    """
    rows = place.rows()
    if rows is None:
        return None
    (adapter,) = place.adapters
    assert isinstance(adapter, PrefixAdapter)
    key_BPE, value_BPE = adapter.prefix(queries_BHLD, rows)
    many, named = queries_BHLD.shape[0], len(rows.at_B)
    if many % named:
        raise UsageError(
            f"{place.layer.path!r} runs on {many} rows; the index names the tasks of {named}."
        )
    each = many // named
    if each > 1:
        key_BPE, value_BPE = (t.repeat_interleave(each, 0) for t in (key_BPE, value_BPE))
    return by_heads(key_BPE, heads), by_heads(value_BPE, heads)


def by_heads(value_BLE: Tensor, heads: int) -> Tensor:
    """Return (B, H, L, D)."""
    return value_BLE.reshape(*value_BLE.shape[:2], heads, -1).transpose(1, 2)


def seen_by_all(mask: Tensor, positions: int) -> Tensor:
    """Return a mask over keys, (..., S), with positions before them that every query sees.

    mask: True where a query sees a key, or numbers added to the scores.
    """
    return functional.pad(mask, (positions, 0), value=float(mask.dtype == torch.bool))
