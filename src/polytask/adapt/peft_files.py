"""PEFT's LoRA folders in and out: one folder per task there, all tasks in one model here.

    adapted = load_peft(model, {"a": "adapters/a", "b": "adapters/b"})
    save_peft("adapters/c", adapted, "a", base="org/model")

LoRA, rsLoRA and DoRA on linear layers (Hugging Face's Conv1D too), convolutions and, but for DoRA,
embeddings; ranks and alphas that differ by layer or task; trained biases. What a folder asks for
beside that is refused by its name. Nothing is unpickled.

Shapes: R = rank, I, O = inputs and outputs, V = entries of an embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, MutableMapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polytask.adapt.base import Adapter, Method
from polytask.adapt.bitfit import BitFit, BitFitAdapter
from polytask.adapt.dora import DoRA, DoRAAdapter
from polytask.adapt.engine import Adapted, At, Part, adapt, left_as_it_was, off_again
from polytask.adapt.files import read_file, read_tensors
from polytask.adapt.layers import find
from polytask.adapt.lora import LoRA, LoRAAdapter
from polytask.adapt.low_rank import product
from polytask.adapt.where import Where
from polytask.errors import DataError, UsageError, did_you_mean
from polytask.peft_folders import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    alpha_of,
    check_config,
    check_folder,
    plain_name,
    split,
    write_folder,
)
from polytask.records import read_json

PARTS = ("A", "B", "bias", "magnitude_vector", "embedding_A", "embedding_B")
"""What a layer of an adapter that can be loaded may have."""


@dataclass(frozen=True)
class Factors:
    """One layer of a folder, as this room has it: down (R, I), (R, I, k, ...) or (V, R); up (R, O).

    alpha: the scale is alpha / R; with the folder's use_rslora, alpha / sqrt(R). length_O: DoRA's.
    bias_O: what B's own bias adds.
    """

    down: Tensor
    up_RO: Tensor
    alpha: float
    stabilised: bool
    length_O: Tensor | None
    bias_O: Tensor | None

    @property
    def rank(self) -> int:
        """The number of factors, R."""
        return len(self.up_RO)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)


@dataclass(frozen=True)
class Folder:
    """What one folder holds. biases, saved: tensors trained as a whole, by their names in the
    base: biases of layers, and all others."""

    label: str
    config: Mapping[str, Any]
    layers: Mapping[str, Factors]
    biases: Mapping[str, Tensor]
    saved: Mapping[str, Tensor]


def load_peft(
    model: nn.Module,
    folders: Mapping[str, str | Path],
    saved: MutableMapping[str, Mapping[str, Tensor]] | None = None,
    dtype: torch.dtype | None = None,
) -> Adapted:
    """Return the model with the adapters of PEFT's folders, as one task each.

    model: the base that all were trained on, not adapted. folders: task -> folder. saved: takes, by
    task, modules that folders saved as a whole (`modules_to_save`, as heads), name in the model ->
    values; without it such folders are refused. dtype: as in `adapt`.

    Tasks whose ranks differ at a layer get the largest, with zeros, which is the same change; where
    scales differ too, they are in the factors. Where any folder is DoRA, all become DoRA, of the
    same change. Raises UsageError for what a folder asks for that is not here, or a model without
    its layers, which is left as it was; DataError for damaged files.
    """
    if not folders:
        raise UsageError("load_peft: no folder was given.")
    read = {task: _read(Path(folder)) for task, folder in folders.items()}
    for folder in read.values():
        if folder.saved and saved is None:
            raise UsageError(
                f"{folder.label} holds modules saved as a whole ({', '.join(sorted(folder.saved))}"
                "); give load_peft(..., saved={}) to get them by task, and put them into heads."
            )
    dora = any(x.length_O is not None for f in read.values() for x in f.layers.values())
    plans = _plans(model, read, dora)
    with left_as_it_was(model):
        adapted = adapt(model, plans, tuple(folders), dtype=dtype)
        with off_again(adapted):
            for part in adapted.parts:
                assert isinstance(part, Part)
                for layer in part.layers:
                    for at, folder in enumerate(read.values()):
                        _fill(part.at(layer.path), at, folder)
    if saved is not None:
        saved.update({task: dict(folder.saved) for task, folder in read.items()})
    return adapted


def save_peft(path: str | Path, adapted: Adapted, task: str, base: str = "") -> None:
    """Write one task's adapters as PEFT's folder, which appears when it is complete.

    path: a new folder. base: name or path of the base model, for the configuration.
    LoRA or DoRA at each layer, and BitFit at layers that have one, are written exactly. Raises
    UsageError where the task has other adapters, or the path is taken; RunError where it cannot be
    written.
    """
    import safetensors.torch

    out = Path(path)
    if out.exists():
        raise UsageError(f"{out} exists and is left as it is; give a new folder.")
    (at,) = adapted.index([task]).tolist()
    if adapted.folded is not None:
        raise UsageError(f"{adapted.folded!r} is folded into the base; unfold() before saving.")
    tensors: dict[str, Tensor] = {}
    layers: dict[str, tuple[LoRA | DoRA, LoRAAdapter | DoRAAdapter]] = {}
    biases: dict[str, BitFitAdapter] = {}
    for part in adapted.parts:
        assert isinstance(part, Part)
        for layer in part.layers:
            adapter = part.at(layer.path)
            if isinstance(adapter, BitFitAdapter) and layer.path not in biases:
                biases[layer.path] = adapter
                continue
            packed, again = layer.rows is not None, layer.path in layers
            if packed or again or not isinstance(adapter, LoRAAdapter | DoRAAdapter):
                what = " in packed attention" if packed else ", a second one," if again else ""
                raise UsageError(
                    f"save_peft: {type(adapter).__name__} at {layer.path!r}{what} has no form in "
                    "PEFT's LoRA folders; use save_adapted, which holds everything."
                )
            assert isinstance(part.method, LoRA | DoRA)
            layers[layer.path] = (part.method, adapter)
    beside = sorted(biases.keys() - layers.keys())
    if beside or not layers or any(p.requires_grad for p in adapted.base.parameters()):
        raise UsageError(
            f"save_peft: {f'BitFit at {beside[0]!r}' if beside else 'what is trained here'} is no "
            "part of a LoRA adapter; PEFT's folders hold LoRA, and biases of its layers. Use "
            "save_adapted, which holds everything."
        )
    for _, adapter in layers.values():
        tensors |= _factors_of(adapter, at)
        layer = adapter.layer
        bias_O = layer.bias_O()
        if biases and bias_O is not None:
            changed = bias_O.double()
            if layer.path in biases:
                changed = changed + biases[layer.path].bias_TO[at].detach().double()
            tensors[f"{PREFIX}{layer.path}.base_layer.bias"] = changed.to(bias_O.dtype)
    config = _config(
        {p: method for p, (method, _) in layers.items()},
        {p for p, (_, adapter) in layers.items() if _embeds(adapter)},
        any(a.layer.flipped and not _embeds(a) for _, a in layers.values()),
        base,
        bool(biases),
    )
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_folder(out, config, safetensors.torch.save(held, {"format": "pt"}))


@dataclass(frozen=True)
class Stored:
    """LoRA adapters of a file that `save_adapted` wrote, in PEFT's form, without any model.

    base: the fingerprint of their base. adapters: task -> configuration, and tensors by PEFT's
    names. heads: tasks whose heads the file holds beside them.
    """

    base: str
    adapters: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Tensor]]]
    heads: tuple[str, ...]


def peft_of_file(path: str | Path) -> Stored:
    """Return the LoRA adapters of a file. Raises UsageError where it holds others as well."""
    about, tensors = read_file(Path(path))
    others = sorted({part["name"] for part in about["parts"] if part["method"] != "lora"})
    if others or about["trained"]:
        what = ", ".join(others) or "trained weights of the base"
        raise UsageError(
            f"{path} holds {what}; adapters that are LoRA alone (rsLoRA too) can be taken from a "
            "file without its model."
        )
    methods: dict[str, LoRA | DoRA] = {}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for i, part in enumerate(about["parts"]):
        start, end = f"parts.{i}.adapters./", ".down_TRI"
        for name, down_TRI in tensors.items():
            if not (name.startswith(start) and name.endswith(end)):
                continue
            # The engine writes "/" for the dots of a layer's name.
            layer = name.removeprefix(start).removesuffix(end).replace("/", ".")
            up_TRO = tensors[name.removesuffix(end) + ".up_TRO"]
            if down_TRI.shape[1] != up_TRO.shape[1] or layer in methods:
                raise UsageError(
                    f"{path}: {layer!r} is an embedding or has two adapters; load it with its "
                    "model, and write the task with save_peft."
                )
            methods[layer] = LoRA(**part["settings"])
            factors[layer] = down_TRI, up_TRO
    if not methods:
        raise DataError(f"{path} lacks the tensors of its LoRA adapters; it is damaged.")
    config = _config(methods, set(), False, "", False)
    adapters = {}
    for at, task in enumerate(about["tasks"]):
        own: dict[str, Tensor] = {}
        for layer, (down_TRI, up_TRO) in factors.items():
            own |= _named(layer, down_TRI[at], up_TRO[at], False)
        adapters[task] = (config, {name: value.contiguous() for name, value in own.items()})
    heads = {name.split(".")[1].removeprefix("/") for name in tensors if name[:7] == "heads./"}
    heads = {name.replace("%2E", ".").replace("%25", "%") for name in heads}
    return Stored(about["base"], adapters, tuple(sorted(heads)))


def _read(folder: Path) -> Folder:
    check_folder(folder)
    config, label = read_json(folder / CONFIG), str(folder)
    check_config(config, label, "loaded")
    _, tensors = read_tensors(folder / WEIGHTS)
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise DataError(f"{label}: tensor {name!r} holds values that are NaN or infinite.")
    layers, whole = read_layers(config, tensors, label)
    others = {plain_name(name): tensors[name] for name in whole}
    trained = config.get("bias", "none") != "none"
    saves = tuple(config.get("modules_to_save") or ())
    biases = {
        n: v for n, v in others.items()
        if trained and n.endswith(".bias") and not set(n.split(".")) & set(saves)
    }  # fmt: skip
    saved = {name: value for name, value in others.items() if name not in biases}
    return Folder(label, config, layers, biases, saved)


def read_layers(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], label: str
) -> tuple[dict[str, Factors], list[str]]:
    """Return the factors by layer, and the names of tensors trained as a whole.

    config, tensors: as PEFT has them. label: names the adapter in errors. Raises DataError for
    other tensors, or factors that make no matrix.
    """
    names, whole = split(
        tensors, label, PARTS,
        "is no factor of LoRA, rsLoRA or DoRA that can be loaded here. Merge the adapter into its "
        "base with PEFT first.",
    )  # fmt: skip
    layers = {
        layer: _factors(config, layer, {part: tensors[name] for part, name in own.items()}, label)
        for layer, own in names.items()
    }
    return layers, whole


def _factors(
    config: Mapping[str, Any], layer: str, parts: Mapping[str, Tensor], label: str
) -> Factors:
    if "embedding_A" in parts:
        down, up_RO = parts["embedding_A"].t(), parts["embedding_B"].t()
        rank = down.shape[-1]
    else:
        down, up_RO = parts["A"], parts["B"].flatten(1).t()
        rank = len(down)
    if up_RO.dim() != 2 or len(up_RO) != rank or down.dim() < 2:
        raise DataError(
            f"{label}: layer {layer!r} has factors of shapes {tuple(down.shape)} and "
            f"{tuple(up_RO.shape)}, which make no matrix; the file is damaged."
        )
    length = parts.get("magnitude_vector")
    if length is None and config.get("use_dora"):
        raise DataError(f"{label}: layer {layer!r} has no lora_magnitude_vector.")
    made = Factors(
        down, up_RO, alpha_of(config, layer), bool(config.get("use_rslora")),
        None if length is None else length.flatten(), None,
    )  # fmt: skip
    bias = parts.get("bias")
    return made if bias is None else replace(made, bias_O=made.scale * bias)


def _plans(model: nn.Module, read: Mapping[str, Folder], dora: bool) -> list[At]:
    """Return methods with their layers: those of one rank and scale together."""
    found = find(model)
    paths = dict.fromkeys(path for folder in read.values() for path in folder.layers)
    groups: dict[Method, list[str]] = {}
    for path in paths:
        here = [f for f in read.values() if path in f.layers]
        if path not in found:
            raise UsageError(
                f"{here[0].label} adapts {path!r}, which the model does not have."
                f"{did_you_mean(path, found)} Give the model that it was trained on."
            )
        kind = found[path].kind
        if kind not in ("linear", "conv", "embedding") or (dora and kind == "embedding"):
            raise UsageError(
                f"{here[0].label} adapts {path!r}, a {type(found[path].module).__name__}: "
                f"{'DoRA' if dora else 'LoRA'} can be loaded on "
                f"{'linear layers and convolutions' if dora else 'linear layers, convolutions'}"
                f"{'' if dora else ' and embeddings'}."
            )
        groups.setdefault(_method(path, here, dora, kind == "embedding"), []).append(path)
    plans = [At(method, _exactly(own)) for method, own in groups.items()]
    biased = dict.fromkeys(
        [n.removesuffix(".bias") for f in read.values() for n in f.biases]
        + [p for f in read.values() for p, x in f.layers.items() if x.bias_O is not None]
    )
    for path in biased:
        module = found[path].module if path in found else None
        if module is None or getattr(module, "bias", None) is None:
            raise UsageError(
                f"A folder has a trained bias of {path!r}, which has none in the model; give the "
                "model that it was trained on, or its layer a bias of zeros."
            )
    return [*plans, At(BitFit(), _exactly(list(biased)))] if biased else plans


def _method(path: str, here: list[Folder], dora: bool, plain: bool) -> Method:
    """Return the method of a layer: of one folder its own settings, of several what holds all."""
    own = [folder.layers[path] for folder in here]
    dropouts = {float(folder.config.get("lora_dropout") or 0.0) for folder in here}
    if len(dropouts) > 1 and not plain:
        raise UsageError(
            f"{here[0].label} and others have lora_dropout {sorted(dropouts)}; one model has one. "
            "Change it in their adapter_config.json."
        )
    dropout = 0.0 if plain else dropouts.pop()  # nor does PEFT drop anything before one
    rank = max(x.rank for x in own)
    same = len({(x.rank, x.alpha, x.stabilised) for x in own}) == 1
    alpha, stabilised = (own[0].alpha, own[0].stabilised) if same else (float(rank), False)
    return (DoRA if dora else LoRA)(rank, alpha, stabilised, dropout)


def _exactly(paths: list[str]) -> Where:
    # A name would also stand for layers whose name ends in it.
    return Where(regex="|".join(re.escape(path) for path in paths))


def _fill(adapter: Adapter, at: int, folder: Folder) -> None:
    """Put what a folder has for a layer into its task's row; what it lacks changes nothing."""
    path = adapter.layer.path
    own = folder.layers.get(path)
    if isinstance(adapter, BitFitAdapter):
        bias_O = adapter.layer.bias_O()
        assert bias_O is not None
        difference = torch.zeros_like(bias_O, dtype=torch.float64)
        if f"{path}.bias" in folder.biases:
            given = folder.biases[f"{path}.bias"].to(difference)
            difference += _fitting(folder, path, given, bias_O.shape) - bias_O
        if own is not None and own.bias_O is not None:
            difference += own.bias_O.to(difference)
        adapter.bias_TO.data[at] = difference.to(adapter.bias_TO)
        return
    assert isinstance(adapter, LoRAAdapter | DoRAAdapter)
    down, up_RO = adapter.down_TRI.data[at], adapter.up_TRO.data[at]
    if own is None:  # its factors stay those drawn, whose product is 0
        return
    along = 1 if _embeds(adapter) else 0
    shape = list(down.shape)
    shape[along] = own.rank
    down.zero_()
    down.narrow(along, 0, own.rank).copy_(_fitting(folder, path, own.down, shape))
    up_RO.zero_()
    wanted = _fitting(folder, path, own.up_RO, (own.rank, up_RO.shape[1]))
    # Exactly 1 where the method has the folder's own scale.
    share = 1.0 if _kept(adapter, own) else own.scale / adapter.scale
    up_RO[: own.rank].copy_(wanted.double() * share)
    if isinstance(adapter, DoRAAdapter):
        length_O = adapter.length_TO.data[at]
        if own.length_O is None:  # LoRA beside DoRA: of the length that its change has
            weight_OI = adapter.layer.weight_OI().double()
            moved_OI = weight_OI + adapter.scale * product(adapter.layer, down, up_RO)
            length_O.copy_(moved_OI.flatten(1).norm(dim=1))
        else:
            length_O.copy_(_fitting(folder, path, own.length_O, length_O.shape))


def _kept(adapter: LoRAAdapter | DoRAAdapter, own: Factors) -> bool:
    return own.rank == adapter.up_TRO.shape[1] and own.scale == adapter.scale


def _fitting(folder: Folder, path: str, value: Tensor, shape: Any) -> Tensor:
    if tuple(value.shape) != tuple(shape):
        raise UsageError(
            f"{folder.label}: at {path!r} it has a tensor of shape {tuple(value.shape)}, for which "
            f"the model has {tuple(shape)}; give the model that it was trained on."
        )
    return value


def _factors_of(adapter: LoRAAdapter | DoRAAdapter, at: int) -> dict[str, Tensor]:
    """Return a task's factors at a layer, as PEFT names and shapes them."""
    down, up_RO = adapter.down_TRI.detach()[at], adapter.up_TRO.detach()[at]
    tensors = _named(adapter.layer.path, down, up_RO, _embeds(adapter))
    if isinstance(adapter, DoRAAdapter):
        length_O, ones = adapter.length_TO.detach()[at], [1] * (down.dim() - 2)
        whole = (1, -1, *ones) if ones else (-1,)
        tensors[f"{PREFIX}{adapter.layer.path}.lora_magnitude_vector"] = length_O.reshape(whole)
    return tensors


def _named(path: str, down: Tensor, up_RO: Tensor, embeds: bool) -> dict[str, Tensor]:
    """Return factors by PEFT's names, in its shapes."""
    name, up_OR = f"{PREFIX}{path}", up_RO.t()
    if embeds:
        return {f"{name}.lora_embedding_A": down.t(), f"{name}.lora_embedding_B": up_OR}
    up = up_OR.reshape(*up_OR.shape, *[1] * (down.dim() - 2))
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def _config(
    methods: Mapping[str, LoRA | DoRA], embeddings: Set[str], turned: bool, base: str, biased: bool
) -> dict[str, Any]:
    """Return the configuration: one layer's rank and alpha, and patterns for those that differ.

    methods: by layer. embeddings: layers that are. turned: whether layers store W transposed.
    """
    dropouts = {method.dropout for path, method in methods.items() if path not in embeddings}
    if len(dropouts) > 1 or len({type(method) for method in methods.values()}) > 1:
        raise UsageError(
            "save_peft: layers differ in their dropout, or some have LoRA and some DoRA; PEFT's "
            "folders have one for all. Use save_adapted, which holds everything."
        )
    # One kind of scale for all: written as alpha / R where layers have both.
    stabilised = all(method.stabilised for method in methods.values())
    alphas = {
        path: method.alpha if method.stabilised == stabilised else method.scale * method.rank
        for path, method in methods.items()
    }
    first, method = next(iter(methods.items()))
    return {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base or None,
        "inference_mode": True, "r": method.rank, "lora_alpha": alphas[first],
        "lora_dropout": max(dropouts, default=0.0), "target_modules": sorted(methods),
        "rank_pattern": {p: m.rank for p, m in methods.items() if m.rank != method.rank},
        "alpha_pattern": {p: alpha for p, alpha in alphas.items() if alpha != alphas[first]},
        "use_rslora": stabilised, "use_dora": isinstance(method, DoRA), "fan_in_fan_out": turned,
        "bias": "lora_only" if biased else "none", "lora_bias": False,
        "init_lora_weights": True, "modules_to_save": None,
    }  # fmt: skip


def _embeds(adapter: Adapter) -> bool:
    return adapter.layer.kind == "embedding"
