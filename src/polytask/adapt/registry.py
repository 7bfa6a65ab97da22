"""Attention that asks transformers' registry how to attend: whether a module does, and how wide.

Modules of Hugging Face's models make queries, keys and values themselves and hand them to a
function, which `transformers.AttentionInterface` holds under the name their configuration has
("sdpa"); "eager" is one of the model's own file. What a module asks for is read off its code, so
that nothing has to run, and transformers is never imported for it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

HEADS = ("num_key_value_heads", "num_kv_heads", "num_heads", "n_heads", "num_attention_heads")
SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
"""What modules and configurations call the heads of keys, and the channels of one."""


@dataclass(frozen=True)
class Asked:
    """What a module asks: the registry, and the function that stands for "eager"; None: unknown."""

    registry: Any
    eager: Callable[..., Any] | None


def asked_by(module: nn.Module) -> Asked | None:
    """Return what a module asks how to attend; None where it asks nothing."""
    loaded = sys.modules.get("transformers.modeling_utils")
    kind = getattr(loaded, "AttentionInterface", None)
    if kind is None or "config" not in vars(module):
        return None
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    if code is None:
        return None
    named = {n: forward.__globals__[n] for n in code.co_names if n in forward.__globals__}
    registries = [value for value in named.values() if isinstance(value, kind)]
    eager = [value for name, value in named.items() if "eager" in name and callable(value)]
    if len(registries) != 1:
        return None
    return Asked(registries[0], eager[0] if len(eager) == 1 else None)


def width_of(module: Any) -> int | None:
    """Return the channels of such a module's keys, all heads together; None where nothing tells."""
    heads, size = (_first((module, module.config), names) for names in (HEADS, SIZES))
    if size is None:
        many = _first((module.config,), ("num_attention_heads",))
        whole = _first((module.config,), ("hidden_size",))
        size = None if many is None or whole is None else whole // many
    return None if heads is None or size is None else heads * size


def _first(owners: tuple[Any, ...], names: tuple[str, ...]) -> int | None:
    found = (getattr(owner, name, None) for name in names for owner in owners)
    return next((value for value in found if type(value) is int), None)
