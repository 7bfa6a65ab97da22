"""Attention of Hugging Face's models with prefixes before its keys.

Such a module looks its implementation up by the name in its configuration. An adapted one gets a
view of that configuration with a name of polytask's, under which transformers' registry has the
function here: it puts the prefix before keys and values, lets every query see it, and calls the
implementation that the model has. Nothing else of the model changes, and no other model.

Shapes: B = rows, H = heads, L = queries, S = keys, P = positions of the prefix, D = channels of a
head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from polytask.adapt.place import Place
from polytask.adapt.prefix import before, check_one, seen_by_all
from polytask.adapt.registry import Asked, asked_by
from polytask.errors import UsageError

NAME = "polytask"
"""The implementation's name in transformers' registry."""


class View:
    """A module's configuration, but for the implementation: polytask's, while adapters act."""

    def __init__(self, own: Any, place: Place, asked: Asked) -> None:
        self.own, self.place, self.asked = own, place, asked

    @property
    def _attn_implementation(self) -> str:
        name: str = self.own._attn_implementation
        return name if self.place.rows() is None else NAME

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what protocols look for is asked before `own` is there
            raise AttributeError(name)
        return getattr(self.own, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> View:
        """Return that of a copied model; the registry is the process's."""
        own, place = copy.deepcopy((self.own, self.place), memo)
        made = memo[id(self)] = View(own, place, self.asked)
        return made


def host(attention: nn.Module, place: Place) -> None:
    """Let an attention run with a prefix.

    Raises UsageError for several, and for a model whose implementation cannot take one.
    """
    check_one(place)
    asked = asked_by(attention)
    assert asked is not None
    view = View(attention.config, place, asked)
    _implementation(attention, view)
    asked.registry.register(NAME, attend)
    attention.config = view  # type: ignore[assignment]


def unhost(attention: nn.Module) -> None:
    """Give it its configuration back."""
    if isinstance(attention.config, View):
        attention.config = attention.config.own


def attend(
    module: nn.Module,
    query_BHLD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return what the model's implementation makes of keys and values behind the prefix.

    attention_mask, options: as transformers hands them to an implementation. Keys may have fewer
    heads than queries. Weights come back for the input's own keys.
    """
    view = module.config
    assert isinstance(view, View)
    name, implementation = _implementation(module, view)
    if options.get("cache") is not None:
        raise UsageError(f"{view.place.layer.path!r} has a paged cache, which takes no prefix.")
    _, heads, keys, _ = key_BHSD.shape
    _check_width(view.place, key_BHSD, value_BHSD)
    prefix = before(view.place, query_BHLD, heads)
    assert prefix is not None, "the view names polytask only while adapters act"
    positions, queries = prefix[0].shape[2], query_BHLD.shape[2]
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if attention_mask is None and name == "sdpa" and causal and queries > 1:
        # What sdpa takes for granted then, written out: query i sees the first i + 1 keys.
        attention_mask = torch.ones(
            1, 1, queries, keys, dtype=torch.bool, device=query_BHLD.device
        ).tril()
        options["is_causal"] = False
    if attention_mask is not None:
        attention_mask = seen_by_all(attention_mask, positions)
    if options.get("position_bias") is not None:
        options["position_bias"] = seen_by_all(options["position_bias"], positions)
    output, weights_BHLS = implementation(
        module,
        query_BHLD,
        torch.cat([prefix[0], key_BHSD], 2),
        torch.cat([prefix[1], value_BHSD], 2),
        attention_mask,
        **options,
    )
    return output, None if weights_BHLS is None else weights_BHLS[..., positions:]


def _implementation(module: nn.Module, view: View) -> tuple[str, Any]:
    """Return the implementation's name and itself. Raises UsageError where it takes no prefix."""
    path, name = view.place.layer.path, view.own._attn_implementation
    if name not in ("eager", "sdpa"):
        raise UsageError(
            f"{path!r} attends by {name!r}, which takes no prefix; use sdpa: "
            "model.set_attn_implementation('sdpa')."
        )
    if name == "sdpa":
        return name, view.asked.registry["sdpa"]
    # GPT-2's way of its own around the registry.
    if view.asked.eager is None or getattr(module, "reorder_and_upcast_attn", False):
        raise UsageError(
            f"{path!r}, a {type(module).__name__}, attends by code of its own, which takes no "
            "prefix; use sdpa: model.set_attn_implementation('sdpa')."
        )
    return name, view.asked.eager


def _check_width(place: Place, key_BHSD: Tensor, value_BHSD: Tensor) -> None:
    came = [t.shape[1] * t.shape[3] for t in (key_BHSD, value_BHSD)]
    if came != [place.layer.outputs] * 2:
        raise UsageError(
            f"{place.layer.path!r} turned out to have keys of {came[0]} channels and values of "
            f"{came[1]}, not {place.layer.outputs}; where both are one number, give it: "
            "Where(..., width=...)."
        )
