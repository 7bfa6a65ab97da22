"""Attention of Hugging Face's models with prefixes before its keys.

Such a module looks its implementation up by the name in its configuration. An adapted one gets a
view of that configuration with a name of polytask's, under which transformers' registry has the
implementation that the model asks for, with the prefix put before keys and values on the way in.
Nothing else of the model changes, and no other model.

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
"""What implementations' names in transformers' registry begin with."""

INPUTS = ("module", "query", "key", "value", "attention_mask")
"""What every implementation takes first, in this order."""


class View:
    """A module's configuration, but for the implementation: polytask's, while adapters act."""

    def __init__(self, own: Any, place: Place, asked: Asked) -> None:
        self.own, self.place, self.asked = own, place, asked
        self.known: dict[str, str] = {}  # the model's names -> polytask's, looked up once

    @property
    def _attn_implementation(self) -> str:
        name: str = self.own._attn_implementation
        if self.place.rows() is None:
            return name
        return self.known[name] if name in self.known else registered(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what protocols look for is asked before `own` is there
            raise AttributeError(name)
        return getattr(self.own, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> View:
        """Return that of a copied model; the registry is the process's."""
        own, place = copy.deepcopy((self.own, self.place), memo)
        made = memo[id(self)] = View(own, place, self.asked)
        made.known |= self.known
        return made


class Prefixed(nn.Module):
    """An implementation whose keys and values begin with a prefix; it is called as it is itself."""

    def __init__(self, causal: bool, implementation: Any) -> None:
        super().__init__()
        self.causal = causal  # without a mask, where the module or the call say so
        # Taken over and not written out, so that any options reach the implementation.
        self.forward = implementation
        self.register_forward_pre_hook(_longer, with_kwargs=True)
        self.register_forward_hook(_shorter)


def host(attention: nn.Module, place: Place) -> None:
    """Let an attention run with a prefix.

    Raises UsageError for several, and for a model whose implementation cannot take one.
    """
    check_one(place)
    asked = asked_by(attention)
    assert asked is not None
    if getattr(attention, "reorder_and_upcast_attn", False):  # GPT-2's way around the registry
        asked = Asked(asked.registry, None)
    view = View(attention.config, place, asked)
    registered(view)
    attention.config = view  # type: ignore[assignment]


def unhost(attention: nn.Module) -> None:
    """Give it its configuration back."""
    if isinstance(attention.config, View):
        attention.config = attention.config.own


def registered(view: View) -> str:
    """Return the name in the registry of the model's implementation with a prefix.

    Raises UsageError where it takes none.
    """
    path, name = view.place.layer.path, view.own._attn_implementation
    registry, eager = view.asked.registry, view.asked.eager
    if name not in ("eager", "sdpa"):
        raise UsageError(
            f"{path!r} attends by {name!r}, which takes no prefix; use sdpa: "
            "model.set_attn_implementation('sdpa')."
        )
    if name == "eager" and eager is None:
        raise UsageError(
            f"{path!r}, a {type(view.place.layer.module).__name__}, attends by code of its own, "
            "which takes no prefix; use sdpa: model.set_attn_implementation('sdpa')."
        )
    implementation: Any = registry["sdpa"] if name == "sdpa" else eager
    known = f"{NAME} {implementation.__module__}.{implementation.__qualname__}"
    if known not in registry:
        registry.register(known, Prefixed(name == "sdpa", implementation))
    view.known[name] = known
    return known


def _longer(
    prefixed: Prefixed, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return an implementation's inputs with the prefix; keys may have fewer heads than queries.

    Of its options `is_causal`, `position_bias` and `cache` are looked at; all others are its own.
    """
    given = dict(kwargs)
    own, further = args[: len(INPUTS)], args[len(INPUTS) :]
    by_name = [given.pop(name) for name in INPUTS[len(own) :]]
    module, query_BHLD, key_BHSD, value_BHSD, mask = (*own, *by_name)
    view = module.config
    assert isinstance(view, View)
    if given.get("cache") is not None:
        raise UsageError(f"{view.place.layer.path!r} has a paged cache, which takes no prefix.")
    _check_width(view.place, key_BHSD, value_BHSD)
    prefix = before(view.place, query_BHLD, key_BHSD.shape[1])
    assert prefix is not None, "the view names polytask only while adapters act"
    positions, queries = prefix[0].shape[2], query_BHLD.shape[2]
    causal = given.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is None and prefixed.causal and causal and queries > 1:
        # What sdpa takes for granted then, written out: query i sees the first i + 1 keys.
        shape = (1, 1, queries, key_BHSD.shape[2])
        mask = torch.ones(shape, dtype=torch.bool, device=query_BHLD.device).tril()
        given["is_causal"] = False
    if mask is not None:
        mask = seen_by_all(mask, positions)
    if given.get("position_bias") is not None:
        given["position_bias"] = seen_by_all(given["position_bias"], positions)
    key_BHSD = torch.cat([prefix[0], key_BHSD], 2)
    value_BHSD = torch.cat([prefix[1], value_BHSD], 2)
    return (module, query_BHLD, key_BHSD, value_BHSD, mask, *further), given


def _shorter(
    prefixed: Prefixed, args: tuple[Any, ...], output: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Return an implementation's output with weights of the input's own keys alone."""
    attended, weights_BHLS = output
    (adapter,) = args[0].config.place.adapters
    positions = adapter.prefix_TPC.shape[1]
    return attended, None if weights_BHLS is None else weights_BHLS[..., positions:]


def _check_width(place: Place, key_BHSD: Tensor, value_BHSD: Tensor) -> None:
    came = [t.shape[1] * t.shape[3] for t in (key_BHSD, value_BHSD)]
    if came != [place.layer.outputs] * 2:
        raise UsageError(
            f"{place.layer.path!r} turned out to have keys of {came[0]} channels and values of "
            f"{came[1]}, not {place.layer.outputs}; where both are one number, give it: "
            "Where(..., width=...)."
        )
