"""Prompts on models of Hugging Face: their masks and labels become longer too.

Such a model makes positions and masks from its inputs before it embeds them, so embeddings that
become longer inside would not fit. Its inputs are embedded before it runs instead: it is given
`inputs_embeds`, prompts first, and attention masks, token types and labels of that length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polytask.adapt.place import Place
from polytask.errors import UsageError

LONGER = {"attention_mask": 1, "token_type_ids": 0, "labels": -100}
"""What a prompt's positions have in inputs of one number per position."""


def model_of(base: nn.Module, embedding: nn.Module) -> nn.Module | None:
    """Return such a model, the base itself or the outermost inside of it, whose input embedding
    this is; None where there is none. See `embeds`."""
    return next((module for module in base.modules() if embeds(module, embedding)), None)


def embeds(model: nn.Module, embedding: nn.Module) -> bool:
    """Return whether it is such a model and this its input embedding.

    Raises UsageError for models with a decoder of their own, which share the embedding with it.
    """
    ask = getattr(model, "get_input_embeddings", None)
    if ask is None or not hasattr(model, "config") or ask() is not embedding:
        return False
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "decoder"):
        raise UsageError(
            f"{type(model).__name__} has an encoder and a decoder that share one embedding, so "
            "prompts would stand before both; adapt the encoder alone, model.get_encoder()."
        )
    return True


class Longer:
    """A hook before the model runs: embeds its inputs, prompts first, and lengthens the rest."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the arguments with embeddings in place of numbers."""
        if self.place.rows() is None:
            return None
        given = dict(kwargs)
        if args:
            given["input_ids"], *rest = args
            if rest:
                raise UsageError(
                    "With prompts give a Hugging Face model all but input_ids by name."
                )
        if given.get("input_ids") is None or given.get("inputs_embeds") is not None:
            raise UsageError("Prompts are put before a model's input_ids; give it those alone.")
        past = given.get("past_key_values")
        if past is not None and past.get_seq_length():
            raise UsageError(
                "Prompts stand before the whole input, and this is a pass over what follows a "
                "cache; generate with use_cache=False."
            )
        ids = given.pop("input_ids")
        embedded: Tensor = self.place.layer.module(ids)
        more = embedded.shape[1] - ids.shape[1]
        for name, value in LONGER.items():
            own = given.get(name)
            if isinstance(own, Tensor) and own.dim() == 2 and own.shape == ids.shape:
                before = own.new_full((len(own), more), value)
                given[name] = torch.cat([before, own], 1)
        places = given.get("position_ids")
        if isinstance(places, Tensor):  # prompts take the first ones
            first = torch.arange(more, device=places.device, dtype=places.dtype)
            given["position_ids"] = torch.cat([first.expand(len(places), -1), places + more], 1)
        return (), {**given, "inputs_embeds": embedded}
