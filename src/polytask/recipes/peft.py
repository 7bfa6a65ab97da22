"""Folders of PEFT into one adapted model, a task each, and back.

PEFT holds one adapter in a folder, with a rank, a scale and layers of its own. Here adapters of
many tasks are one tensor per layer: of the largest rank, every scale inside of the factors, and
zeros where an adapter has fewer factors or leaves a layer alone, so that each task's change is
exactly its folder's.

Shapes: T = tasks, R = rank, I, O = inputs and outputs of a layer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from polytask.adapt import Adapted, DoRA, LoRA, Where, adapt
from polytask.adapt.dora import DoRAAdapter
from polytask.adapt.engine import left_as_it_was
from polytask.adapt.lora import LoRAAdapter
from polytask.errors import UsageError
from polytask.merge.adapter_files import CONFIG, WEIGHTS, load_adapter
from polytask.merge.adapters import Change, as_dora, dora
from polytask.merge.peft_adapters import Adapter as PeftAdapter
from polytask.merge.peft_adapters import write_adapter
from polytask.records import write_atomic, write_json


def from_peft(model: nn.Module, folders: Mapping[str, str | os.PathLike[str]]) -> Adapted:
    """Return the model adapted to a task per folder: LoRA, or DoRA where any folder is.

    Raises UsageError where a folder is none of PEFT's, of another kind, or trains more than factors
    (biases, whole modules); where the model lacks a layer, or one has another shape.
    """
    base = {name: parameter.detach() for name, parameter in model.named_parameters()}
    read = {task: load_adapter(Path(folder), base) for task, folder in folders.items()}
    for task, adapter in read.items():
        biased = [layer for layer, change in adapter.changes.items() if change.bias_O is not None]
        beside = [*adapter.whole, *biased]
        if beside:
            raise UsageError(
                f"The adapter of {task!r} trains more than factors: {', '.join(beside[:3])}. Merge "
                "it into a base of its own, or train it without biases and saved modules."
            )
    paths = tuple(dict.fromkeys(path for adapter in read.values() for path in adapter.changes))
    modules = dict(model.named_modules())
    for path in paths:
        if path not in modules:
            raise UsageError(f"The adapters change {path!r}, which the model does not have.")
    every = [change for adapter in read.values() for change in adapter.changes.values()]
    rank = max((change.rank for change in every), default=1)
    turned = any(change.gain_O is not None for change in every)
    method = DoRA(rank, float(rank)) if turned else LoRA(rank, float(rank))
    with left_as_it_was(model):
        adapted = adapt(model, method, tuple(read), Where(paths))
        try:
            for layer in adapted.layers():
                held, weight_OI = adapted.at(layer.path), layer.weight_OI().flatten(1)
                assert isinstance(held, LoRAAdapter | DoRAAdapter)
                for t, adapter in enumerate(read.values()):
                    _put(held, t, adapter.changes.get(layer.path), weight_OI)
        except BaseException:
            adapted.detach()
            raise
    return adapted


def to_peft(adapted: Adapted, task: str, folder: str | os.PathLike[str]) -> None:
    """Write one task's LoRA or DoRA as a folder that PEFT loads on the same base.

    Raises UsageError where its adapters are of another kind, or a layer is none of PEFT's.
    """
    out, t = Path(folder), int(adapted.index([task])[0])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists; give a new folder.")
    changes: dict[str, Change] = {}
    spatial: dict[str, tuple[int, ...]] = {}
    for layer in adapted.layers():
        if layer.inside is not None or layer.kind not in ("linear", "conv") or layer.flipped:
            raise UsageError(
                f"{layer.path!r} is no plain linear layer or convolution; its adapter has no place "
                "in a folder of PEFT."
            )
        held = adapted.at(layer.path)
        if not isinstance(held, LoRAAdapter | DoRAAdapter):
            raise UsageError(
                f"{layer.path!r} has a {type(held).__name__}; LoRA and DoRA can be written as a "
                "folder of PEFT."
            )
        down, up_RO = held.down_TRI[t].detach().double(), held.up_TRO[t].detach().double()
        change = Change(held.scale * up_RO.t(), down.flatten(1))
        if isinstance(held, DoRAAdapter):
            weight_OI = layer.weight_OI().flatten(1)
            change = dora(change, held.length_TO[t].detach(), weight_OI)
        changes[layer.path] = change
        spatial[layer.path] = tuple(down.shape[1:]) if down.dim() > 2 else ()
    start = {"peft_type": "LORA", "bias": "none", "task_type": None, "modules_to_save": None}
    adapter = PeftAdapter(start, changes, {}, spatial)
    config, tensors = write_adapter(adapter, dict(adapted.base.named_parameters()))
    import safetensors.torch

    # The configuration last: a folder without it is no adapter yet.
    write_atomic(out / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
    write_json(out / CONFIG, config)


def _put(
    held: LoRAAdapter | DoRAAdapter, task: int, change: Change | None, weight_OI: Tensor
) -> None:
    """Put one task's change into an adapter; None: no change."""
    down_RI, up_RO = held.down_TRI.data[task], held.up_TRO.data[task]
    up_RO.zero_()
    if change is None:
        return
    if change.up_OR.shape[0] != up_RO.shape[1] or change.down_RI.shape[1] != down_RI[0].numel():
        raise UsageError(
            f"An adapter changes {held.layer.path!r} as a matrix of {change.up_OR.shape[0]} x "
            f"{change.down_RI.shape[1]}, the model's is {up_RO.shape[1]} x {down_RI[0].numel()}; "
            "give the base it was trained on."
        )
    if isinstance(held, DoRAAdapter):
        change, length_O = as_dora(change, weight_OI.double())
        held.length_TO.data[task] = length_O.to(held.length_TO)
    down_RI[: change.rank] = change.down_RI.view(change.rank, *down_RI.shape[1:]).to(down_RI)
    up_RO[: change.rank] = change.up_OR.t().to(up_RO)
