"""A recipe's file read strictly: every key is known, or the error says which is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polytask.errors import UsageError, unknown
from polytask.merge.known import Known, known
from polytask.merge.options import Options
from polytask.merge.recipe import Model, Recipe
from polytask.merge.settings import check

DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}  # fmt: skip

KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "leave_out", "buffers",
)  # fmt: skip

REFUSED = {
    "modules": "merge each module apart, or give all of them as models",
    "chat_template": "the base's is copied; change it in the result",
}
"""Keys of mergekit's that are not supported, and what to do."""


def read_recipe(file: Path) -> Recipe:
    """Return what a recipe asks for. Raises UsageError that names what is wrong with it."""
    import yaml  # slow to import, and many merges read no recipe

    try:
        text = file.read_text()
        raw = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{file} holds no mapping; a recipe begins with `merge_method: ties`.")
    return _Reader(file, text).recipe(raw)


@dataclass(frozen=True)
class _Reader:
    file: Path
    text: str

    def recipe(self, raw: Mapping[str, Any]) -> Recipe:
        for key in raw:
            if key in REFUSED:
                raise self._bad(f"{key} is not supported; {REFUSED[key]}")
        self._known("key", raw, KEYS)
        if "merge_method" not in raw:
            raise self._bad("merge_method is missing")
        method = known(str(raw["merge_method"]))
        base = None if raw.get("base_model") is None else Model(self._name(raw["base_model"]))
        named = self._models(raw, method)
        parameters = self._parameters(raw.get("parameters"), method, method.all_keys, "parameters")
        self._check_fixed(parameters, method)
        models = tuple(m for m in named if base is None or m.path != base.path)
        if method.starts:
            if base is None or len(models) != 1:
                raise self._bad(
                    f"{raw['merge_method']} goes from base_model to one other model; "
                    f"{len(named)} models{'' if base else ' and no base_model'} came"
                )
            models = (base, *models)
        elif not method.row.load().needs_base:
            models = named  # the base takes no part, unless it is among them
        return Recipe(self.file, self.text, method, base, models, parameters, self._options(raw))

    def _models(self, raw: Mapping[str, Any], method: Known) -> tuple[Model, ...]:
        if ("models" in raw) == ("slices" in raw):
            raise self._bad("give either models or slices")
        if "models" in raw:
            return self._list(raw["models"], ("model", "parameters"), method, "models")
        slices = raw["slices"]
        if not isinstance(slices, list) or len(slices) != 1:
            raise self._bad("slices that stack layers are not supported; give models")
        (only,) = slices
        self._known("key of slices", only, ("sources", "parameters", "base_model"))
        extra = [key for key in ("parameters", "base_model") if key in only]
        if extra:
            raise self._bad(f"{extra[0]} inside slices is not supported; give it outside of them")
        return self._list(
            only.get("sources"), ("model", "layer_range", "parameters"), method, "sources"
        )

    def _list(self, raw: Any, keys: tuple[str, ...], method: Known, what: str) -> tuple[Model, ...]:
        if not isinstance(raw, list) or not raw:
            raise self._bad(f"{what} is {raw!r}; give a list, such as [{{model: tuned}}]")
        found = []
        for item in raw:
            self._known(f"key of {what}", item, keys)
            if "model" not in item:
                raise self._bad(f"one of {what} lacks its model")
            parameters = self._parameters(
                item.get("parameters"), method, method.each, f"parameters of {item['model']}"
            )
            layers = item.get("layer_range")
            if layers is not None and not (
                isinstance(layers, list)
                and len(layers) == 2
                and all(type(i) is int for i in layers)
            ):
                raise self._bad(f"layer_range is {layers!r}; give two whole numbers")
            ends = None if layers is None else (layers[0], layers[1])
            found.append(Model(self._name(item["model"]), parameters, ends))
        return tuple(found)

    def _name(self, raw: Any) -> str:
        if not isinstance(raw, str):
            raise self._bad(f"a model is {raw!r}; give a path")
        if "+" in raw and not Path(raw).exists():
            raise self._bad(f"{raw!r} adds an adapter; merge it into its model first")
        return raw

    def _parameters(
        self, raw: Any, method: Known, keys: tuple[str, ...], what: str
    ) -> dict[str, Any]:
        raw = {} if raw is None else raw
        if isinstance(raw, dict) and keys is method.each:
            for key in raw:
                if key in method.all_keys and key not in keys:
                    raise self._bad(f"{key} is one for all models; give it in parameters")
        self._known(f"key of {what}", raw, keys)
        return {key: check(item, f"{self.file}: {key}") for key, item in raw.items()}

    def _check_fixed(self, parameters: Mapping[str, Any], method: Known) -> None:
        for key, (allowed, why) in method.fixed.items():
            if key in parameters and parameters[key] not in allowed:
                words = " or ".join(str(option).lower() for option in allowed)
                raise self._bad(
                    f"{key} is {str(parameters[key]).lower()}, and only {words} is supported: {why}"
                )
            if key in method.needed and key not in parameters:
                word = str(allowed[0]).lower()
                raise self._bad(f"{key} is missing, and only {word} is supported: {why}")

    def _options(self, raw: Mapping[str, Any]) -> Options:
        kinds = {}
        for key in ("dtype", "out_dtype"):
            text = raw.get(key)
            if text is not None and str(text).removeprefix("torch.") not in DTYPES:
                raise unknown(
                    f"{key} of {self.file}", str(text), DTYPES, f"Known: {', '.join(DTYPES)}."
                )
            kinds[key] = None if text is None else DTYPES[str(text).removeprefix("torch.")]
        source = raw.get("tokenizer_source")
        if "tokenizer" in raw:
            tokenizer = raw["tokenizer"]
            if source is not None:
                raise self._bad("give tokenizer or tokenizer_source, not both")
            self._known("key of tokenizer", tokenizer, ("source", "tokens", "pad_to_multiple_of"))
            for key in ("tokens", "pad_to_multiple_of"):
                if key in tokenizer:
                    raise self._bad(f"{key} of tokenizer is not supported; only its source is")
            source = tokenizer.get("source", "union")
        if source not in (None, "base", "union"):
            raise self._bad(
                f"the tokenizer's source is {source!r}; only base and union are supported"
            )
        leave_out = raw.get("leave_out", [])
        if not isinstance(leave_out, list):
            raise self._bad(f"leave_out is {leave_out!r}; give a list of patterns")
        return Options(
            dtype=kinds["out_dtype"] or kinds["dtype"],
            vocabulary=source,
            leave_out=tuple(map(str, leave_out)),
            buffers=raw.get("buffers", "refuse"),
        )

    def _known(self, what: str, raw: Any, keys: tuple[str, ...]) -> None:
        if not isinstance(raw, dict):
            raise self._bad(f"{raw!r} is no mapping of keys to values")
        for key in raw:
            if key not in keys:
                words = ", ".join(keys) or "none"
                raise unknown(f"{what} in {self.file}", str(key), keys, f"Its keys: {words}.")

    def _bad(self, why: str) -> UsageError:
        return UsageError(f"{self.file}: {why}.")
