"""torch's packed attention with adapters on its projections, and prefixes before its keys.

nn.MultiheadAttention reads its weights without calling its projections, so hooks would never run.
An adapted one gets the class here, whose forward pass is torch's plain one (its "slow path", the
one it trains with) with the adapters in between: the same operators in the same order, so that
adapters that change nothing give the same bits. In evaluation mode torch may take a fused kernel
instead, which rounds in another way; see `torch.backends.mha.set_fastpath_enabled`.

Shapes: B = rows, L = queries, S = keys, E = channels, H = heads, D = channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Layer
from polytask.adapt.layers import PROJECTIONS
from polytask.adapt.place import Place
from polytask.adapt.prefix import before, by_heads, check_one, seen_by_all
from polytask.errors import UsageError


def host(attention: nn.MultiheadAttention, place: Place) -> None:
    """Let an attention run with the adapters of one of its projections, or its own."""
    if attention.bias_k is not None or attention.add_zero_attn:
        raise UsageError(
            f"{place.layer.path!r} is an nn.MultiheadAttention with add_bias_kv or add_zero_attn, "
            "which cannot be adapted."
        )
    if attention.in_proj_weight is None:
        raise UsageError(
            f"{place.layer.path!r} is or belongs to an nn.MultiheadAttention whose keys or values "
            "have another width than its queries (kdim, vdim), which cannot be adapted."
        )
    if place.layer.kind == "attention":
        check_one(place)
    if type(attention) is nn.MultiheadAttention:
        attention.__class__ = AdaptedAttention
        # Not as a module: the base's names stay as they are.
        attention.__dict__["places"] = {}
        # A hook that does nothing keeps nn.TransformerEncoderLayer off its fused kernel.
        attention.__dict__["off"] = attention.register_forward_pre_hook(_plain)
    elif not isinstance(attention, AdaptedAttention):
        raise UsageError(
            f"{place.layer.path!r} is or belongs to a {type(attention).__name__}; of packed "
            "attention only nn.MultiheadAttention itself can be adapted."
        )
    attention.__dict__["places"][_name(place.layer)] = place


def unhost(attention: nn.MultiheadAttention) -> None:
    """Make it an nn.MultiheadAttention again."""
    if isinstance(attention, AdaptedAttention):
        attention.__dict__.pop("off").remove()
        del attention.__dict__["places"]
        attention.__class__ = nn.MultiheadAttention  # type: ignore[assignment]


def _name(layer: Layer) -> str:
    return "itself" if layer.kind == "attention" else layer.path.rpartition(".")[2]


def _plain(module: nn.Module, args: Any) -> None:
    return None


class AdaptedAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention whose projections have adapters."""

    places: dict[str, Place]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values, and the weights where asked, as torch's own does."""
        if query.is_nested or key.is_nested or value.is_nested:
            raise UsageError(
                "An adapted nn.MultiheadAttention takes plain tensors; build nn.TransformerEncoder "
                "with enable_nested_tensor=False."
            )
        if query.dim() != 3:
            raise UsageError(
                f"An adapted nn.MultiheadAttention takes a batch; a query of {query.dim()} "
                "dimensions came."
            )
        if is_causal and attn_mask is None:
            raise UsageError("nn.MultiheadAttention: is_causal needs attn_mask as well.")
        query, key, value = self._sequence_first(query, key, value)
        projected = []
        for name, x, raw in zip(
            PROJECTIONS, (query, key, value), self._projected(query, key, value), strict=True
        ):
            projected.append(self._changed(name, x.transpose(0, 1), raw.transpose(0, 1)))
        q_BHLD, k_BHSD, v_BHSD = (by_heads(value_BLE, self.num_heads) for value_BLE in projected)
        rows, heads, queries, _ = q_BHLD.shape
        keys = k_BHSD.shape[2]
        mask = _mask(attn_mask, key_padding_mask, rows, heads, queries, keys, q_BHLD.dtype)
        own = self.places.get("itself")
        prefix = None if own is None else before(own, q_BHLD, self.num_heads)
        if prefix is not None:
            k_BHSD = torch.cat([prefix[0], k_BHSD], 2)
            v_BHSD = torch.cat([prefix[1], v_BHSD], 2)
            mask = None if mask is None else seen_by_all(mask, prefix[0].shape[2])
        dropout = self.dropout if self.training else 0.0
        weights_BHLS: Tensor | None = None
        if need_weights:
            scaled = q_BHLD * math.sqrt(1.0 / float(q_BHLD.shape[-1]))
            scores = torch.matmul(scaled, k_BHSD.mT)
            weights_BHLS = torch.softmax(scores if mask is None else mask + scores, -1)
            weights_BHLS = functional.dropout(weights_BHLS, dropout)
            attended_BHLD = torch.matmul(weights_BHLS, v_BHSD)
        else:
            causal = is_causal and key_padding_mask is None and prefix is None
            attended_BHLD = functional.scaled_dot_product_attention(
                q_BHLD, k_BHSD, v_BHSD, None if causal else mask, dropout, causal
            )
        joined_LBE = attended_BHLD.permute(2, 0, 1, 3).flatten(2)
        output = functional.linear(
            joined_LBE.flatten(0, 1), self.out_proj.weight, self.out_proj.bias
        ).view(queries, rows, -1)
        output = self._changed("out_proj", joined_LBE.transpose(0, 1), output.transpose(0, 1))
        output = output if self.batch_first else output.transpose(0, 1)
        if weights_BHLS is not None and prefix is not None:
            weights_BHLS = weights_BHLS[..., prefix[0].shape[2] :]
        if weights_BHLS is not None and average_attn_weights:
            return output, weights_BHLS.mean(1)
        return output, weights_BHLS

    def _sequence_first(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return them as torch multiplies them, what was one tensor still one."""
        if not self.batch_first:
            return query, key, value
        turned = query.transpose(0, 1)
        key_turned = turned if key is query else key.transpose(0, 1)
        same = value is key
        return turned, key_turned, key_turned if same else value.transpose(0, 1)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return queries, keys and values; those of one input are one product, as in torch."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key and key is value:
            return list(functional.linear(query, weight, bias).chunk(3, -1))
        if key is value:
            wide = self.embed_dim
            own, both = (None, None) if bias is None else (bias[:wide], bias[wide:])
            return [
                functional.linear(query, weight[:wide], own),
                *functional.linear(key, weight[wide:], both).chunk(2, -1),
            ]
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        parts = zip((query, key, value), weight.chunk(3), biases, strict=True)
        return [functional.linear(x, w, b) for x, w, b in parts]

    def _changed(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        place = self.places.get(name)
        rows = None if place is None else place.rows()
        return y if place is None or rows is None else place.change(x, y, rows)


def _mask(
    mask: Tensor | None,
    padding_BS: Tensor | None,
    rows: int,
    heads: int,
    queries: int,
    keys: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return both masks as numbers to add to the scores, (1 or B, 1 or H, L, S)."""
    whole = None if mask is None else _added(mask, dtype)
    if whole is not None:
        shape = (1, 1) if whole.dim() == 2 else (rows, heads)
        whole = whole.view(*shape, queries, keys)
    if padding_BS is not None:
        padding = _added(padding_BS, dtype).view(rows, 1, 1, keys)
        whole = padding if whole is None else whole + padding
    return whole


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
