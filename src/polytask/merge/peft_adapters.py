"""Adapters as PEFT stores them, read as changes of layers, merged, and written again.

Pure functions from a configuration and named tensors to the same; `adapter_files` does the files.

Shapes: O, I = outputs and inputs of a layer, R = rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.merge.adapters import AdapterMerge, Change, as_dora, dora, lora
from polytask.merge.progress import Progress, Silent
from polytask.merge.rounding import rounded
from polytask.peft_folders import PREFIX, alpha_of, check_config, plain_name, split

Tensors = Mapping[str, Tensor]

PARTS = ("A", "B", "bias", "magnitude_vector")
"""What a layer of an adapter that can be merged may have."""


@dataclass(frozen=True)
class Adapter:
    """One adapter. changes: per layer. whole: tensors trained as a whole (biases, saved modules).

    config: as it was read. spatial: per layer, the shape of a convolution's kernel.
    """

    config: Mapping[str, Any]
    changes: Mapping[str, Change]
    whole: Tensors
    spatial: Mapping[str, tuple[int, ...]]


def read_adapter(
    config: Mapping[str, Any], tensors: Tensors, base: Tensors | None = None, label: str = "adapter"
) -> Adapter:
    """Return a LoRA, rsLoRA or DoRA adapter as changes.

    config: of `adapter_config.json`. tensors: of `adapter_model.safetensors`. base: the base
    model's tensors by name, which DoRA needs. label: names the adapter in errors.
    """
    check_config(config, label, "merged")
    if config.get("fan_in_fan_out"):
        raise UsageError(
            f"{label} has fan_in_fan_out: its layers store W transposed, and norms would be taken "
            "of the wrong side. Merge each adapter into its base first."
        )
    layers, others = split(
        tensors, label, PARTS,
        "is no factor of a linear or convolution layer; other adapters cannot be merged here. "
        "Merge each into its base first.",
    )  # fmt: skip
    whole = {name: tensors[name] for name in others}
    changes, spatial = {}, {}
    for layer, names in layers.items():
        parts = {part: tensors[name] for part, name in names.items()}
        changes[layer] = _change(config, layer, parts, base, label)
        spatial[layer] = tuple(parts["A"].shape[1:]) if parts["A"].dim() > 2 else ()
    return Adapter(config, changes, whole, spatial)


def merge_adapters(
    adapters: Sequence[Adapter],
    method: AdapterMerge,
    base: Tensors | None = None,
    progress: Progress | None = None,
) -> tuple[Adapter, dict[str, float]]:
    """Return the merged adapter, and the relative error of every layer whose rank was reduced.

    A layer that an adapter leaves alone counts as no change. Tensors trained as a whole are merged
    as base + sum of weighted differences; the base cancels, and is not needed, where the weights
    sum to 1 and every adapter has the tensor.
    """
    weights = method.weights_of(len(adapters))
    progress = progress or Silent()
    changes, errors = {}, {}
    layers = list(dict.fromkeys(name for adapter in adapters for name in adapter.changes))
    progress.phase("merging", len(layers))
    for layer in layers:
        own = [
            (adapter.changes[layer], weight)
            for adapter, weight in zip(adapters, weights, strict=True)
            if layer in adapter.changes
        ]
        of_layer = AdapterMerge(tuple(weight for _, weight in own), method.rank)
        merged = of_layer([change for change, _ in own])
        changes[layer] = merged.change
        if merged.error:
            errors[layer] = merged.error
        progress.advance(1)
    whole = {
        name: _whole(name, [adapter.whole.get(name) for adapter in adapters], weights, base)
        for name in dict.fromkeys(name for adapter in adapters for name in adapter.whole)
    }
    spatial = {layer: shape for adapter in adapters for layer, shape in adapter.spatial.items()}
    return Adapter(
        _joined([adapter.config for adapter in adapters]), changes, whole, spatial
    ), errors


def write_adapter(
    adapter: Adapter, base: Tensors | None = None, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors of an adapter; every scale is in its factors.

    It is a DoRA adapter where a layer's change has a gain, which needs `base`; a LoRA adapter
    otherwise. Raises RunError where a value leaves the range of `dtype`.
    """
    with_gain = any(change.gain_O is not None for change in adapter.changes.values())
    tensors = dict(adapter.whole)
    for layer, change in adapter.changes.items():
        name, kernel = f"{PREFIX}{layer}", adapter.spatial[layer]
        if with_gain:
            change, magnitude_O = as_dora(change, _base_of(layer, base, change))
            shape = (1, -1, *[1] * (len(kernel) - 1)) if kernel else (-1,)
            tensors[f"{name}.lora_magnitude_vector"] = magnitude_O.reshape(shape)
        down, up = change.down_RI, change.up_OR
        if kernel:
            down, up = down.reshape(-1, *kernel), up.reshape(*up.shape, *[1] * (len(kernel) - 1))
        tensors[f"{name}.lora_A.weight"] = down
        tensors[f"{name}.lora_B.weight"] = up
        if change.bias_O is not None:
            tensors[f"{name}.lora_B.bias"] = change.bias_O
    tensors = {n: rounded(tensor, dtype, n).contiguous() for n, tensor in tensors.items()}
    ranks = {layer: change.rank for layer, change in adapter.changes.items()}
    rank = max(ranks.values(), default=1)
    others = {layer: own for layer, own in ranks.items() if own != rank}
    config = dict(adapter.config) | {
        "r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": dict(others),
        "use_rslora": False, "use_dora": with_gain, "init_lora_weights": True,
        "target_modules": sorted(ranks), "inference_mode": True,
        "lora_bias": any(change.bias_O is not None for change in adapter.changes.values()),
    }  # fmt: skip
    return config, tensors


def _joined(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the first configuration, with what any of them trains as a whole."""
    saved = sorted({name for config in configs for name in config.get("modules_to_save") or ()})
    biases = {config.get("bias", "none") for config in configs}
    bias = next((word for word in ("all", "lora_only") if word in biases), "none")
    return dict(configs[0]) | {"modules_to_save": saved or None, "bias": bias}


def _change(
    config: Mapping[str, Any],
    layer: str,
    parts: Mapping[str, Tensor],
    base: Tensors | None,
    label: str,
) -> Change:
    down, up = parts["A"].flatten(1), parts["B"].flatten(1)
    change = lora(
        down, up, alpha_of(config, layer), bool(config.get("use_rslora")), parts.get("bias")
    )
    if "magnitude_vector" not in parts:
        if config.get("use_dora"):
            raise DataError(f"{label}: layer {layer!r} has no lora_magnitude_vector.")
        return change
    return dora(change, parts["magnitude_vector"], _base_of(layer, base, change))


def _base_of(layer: str, base: Tensors | None, change: Change) -> Tensor:
    """Return a layer's weight in the base, (O, I)."""
    name = f"{layer}.weight"
    if base is None or name not in base:
        raise UsageError(
            f"Layer {layer!r} has a DoRA adapter, whose change depends on the base's {name!r}; "
            "give the base model."
        )
    weight_OI = base[name].flatten(1)
    if weight_OI.shape != (len(change.up_OR), change.down_RI.shape[1]):
        raise UsageError(
            f"The base's {name!r} is {tuple(weight_OI.shape)}, the adapter's layer "
            f"({len(change.up_OR)}, {change.down_RI.shape[1]}); give the base it was trained on."
        )
    return weight_OI


def _whole(
    name: str, tensors: Sequence[Tensor | None], weights: Sequence[float], base: Tensors | None
) -> Tensor:
    """Return a tensor that adapters trained as a whole, merged."""
    plain = plain_name(name)
    start = None if base is None else base.get(plain)
    if start is None:
        if any(tensor is None for tensor in tensors) or abs(sum(weights) - 1) > 1e-12:
            raise UsageError(
                f"Tensor {name!r} is trained as a whole, by some adapters or with weights that do "
                f"not sum to 1; what it starts from is needed. Give the base model, with {plain!r}."
            )
        start = torch.zeros((), dtype=torch.float64)
    merged = start.to(torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        if tensor is not None:
            merged = merged + weight * (tensor.to(torch.float64) - start)
    return merged
