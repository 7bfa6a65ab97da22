"""Recipes whose models are PEFT adapters: merged exactly, by their factors.

    merge_method: linear            # or task_arithmetic
    base_model: base                # for DoRA, and for modules trained as a whole
    models:
    - {model: french, parameters: {weight: 0.5}}
    - {model: medicine, parameters: {weight: 0.5}}
    parameters: {rank: 16}          # of every layer at most; left out, nothing is lost

What a key means is what it means for whole models: the merged change is that of merging them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from polytask.catalog import METHODS
from polytask.errors import UsageError
from polytask.merge.adapter_files import AdapterJob, is_adapter
from polytask.merge.adapters import AdapterMerge
from polytask.merge.known import Known
from polytask.merge.options import Options
from polytask.merge.reading import KEYS, REFUSED, _Reader
from polytask.merge.recipe import Model, Recipe, located
from polytask.merge.settings import Layers, varies

ROW = next(row for row in METHODS if row.name == "adapter-merge")

LINEAR = ("linear", "average", "adapter-merge")
WHOLE = (
    *REFUSED, "slices", "tokenizer_source", "tokenizer", "leave_out", "buffers",
)  # fmt: skip
"""Keys that mean something for whole models alone."""


def read_adapter_recipe(file: Path, checksums: bool = True) -> AdapterJob | None:
    """Return the merge a recipe asks for where its models are adapters; None where none of them is.

    None too for a file that is no recipe at all: `read_recipe` says what is wrong with it.
    Raises UsageError that names what is wrong with one that mixes adapters and models, or asks for
    what cannot be done with adapters.
    """
    import yaml  # slow to import, and many merges read no recipe

    try:
        text = file.read_text()
        raw = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    named = _named(raw)
    found = {name: at for name in named if (at := located(file, name))}
    adapters = [name for name, at in found.items() if is_adapter(at)]
    if not adapters:
        return None
    reader = _Reader(file, text)
    others = [name for name in found if name not in adapters]
    if others:
        raise UsageError(
            f"{file}: {adapters[0]} is an adapter and {others[0]} is none; merge adapters with "
            "each other, or merge each into its base first and then the models."
        )
    return _job(reader, raw, checksums)


def _named(raw: Any) -> list[str]:
    """Return the models a recipe names, as far as it is one."""
    models = raw.get("models") if isinstance(raw, dict) else None
    items = models if isinstance(models, list) else []
    names = [item.get("model") for item in items if isinstance(item, dict)]
    return [name for name in names if isinstance(name, str)]


def _job(reader: _Reader, raw: Mapping[str, Any], checksums: bool) -> AdapterJob:
    file = reader.file
    for key in raw:
        if key in WHOLE:
            raise UsageError(f"{file}: {key} has no meaning for adapters; leave it out.")
    reader._known("key", raw, tuple(key for key in KEYS if key not in WHOLE))
    name = str(raw.get("merge_method"))
    method = _method(name)
    if method is None:
        raise UsageError(
            f"{file}: merge_method {name!r} looks at whole weights, and adapters have factors; "
            "linear and task_arithmetic merge adapters. For others merge each adapter into its "
            "base first, and then the models."
        )
    models = reader._list(raw["models"], ("model", "parameters"), method, "models")
    parameters = reader._parameters(raw.get("parameters"), method, method.all_keys, "parameters")
    for given in (parameters, *(model.parameters for model in models)):
        _check_plain(file, given)
    reader._check_fixed(parameters, method)
    base = None if raw.get("base_model") is None else Model(reader._name(raw["base_model"]))
    recipe = Recipe(file, reader.text, method, base, models, parameters, Options())
    found = dict(recipe.settings("", Layers()))
    weights, scale = tuple(found.get("weights", ())), float(found.get("scale", 1.0))
    if name in LINEAR and weights:
        if not sum(weights):
            raise UsageError(
                f"{file}: the weights {weights} sum to 0, and a mean divides by that; "
                "task_arithmetic adds the changes up."
            )
        weights = tuple(weight / sum(weights) for weight in weights)
    kinds = {key: raw[key] for key in ("dtype", "out_dtype") if key in raw}
    return AdapterJob(
        folders=tuple(recipe.path(model) for model in models),
        method=AdapterMerge(tuple(scale * weight for weight in weights), found.get("rank")),
        base=None if base is None else recipe.path(base),
        dtype=reader._options(kinds).dtype or torch.float32,
        recipe=reader.text,
        checksums=checksums,
    )


def _method(name: str) -> Known | None:
    """Return the keys of a method for adapters; None for one that is not for them."""
    keys = {"weight": "weights", "rank": "rank"}
    each = ("weight",)
    if name in LINEAR:
        why = "a mean divides by the weights; see task_arithmetic"
        needed = each if name == "linear" else ()
        return Known(ROW, keys, each, needed, fixed={"normalize": ((True,), why)})
    if name == "task_arithmetic":
        return Known(ROW, {**keys, "lambda": "scale"}, each, each, {"lambda": 1.0}, shared=True)
    return None


def _check_plain(file: Path, parameters: Mapping[str, Any]) -> None:
    """Raise UsageError for a value that differs from tensor to tensor."""
    for key, value in parameters.items():
        if varies(value):
            raise UsageError(
                f"{file}: {key} is {value!r}; for adapters it is one number, the same for all "
                "layers."
            )
