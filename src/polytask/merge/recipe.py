"""Recipes: YAML files that say what is merged with what, and how.

The format is mergekit's for what both have; its keys mean the same here. A key that is unknown or
not supported is an error, never ignored.

Source: mergekit's README and its description of the methods,
    https://github.com/arcee-ai/mergekit
Differs from the source: TIES trims over the whole model (`over: tensor` for each tensor by
    itself), so one density serves all models and tensors; `dtype` is that of the result, and
    merging is done in float32 or float64 whatever it says; models are folders or files on this
    machine, looked for beside the recipe and where the command runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from polytask.errors import UsageError
from polytask.merge.base import Merge
from polytask.merge.files import open_model
from polytask.merge.job import Job, prepare
from polytask.merge.known import Known
from polytask.merge.options import Options
from polytask.merge.settings import Layers, value, varies
from polytask.merge.stream import MethodOf

WORDS = ("over",)
"""Keys whose value is a word; that of all others is a number or a flag."""


@dataclass(frozen=True)
class Model:
    """A model of a recipe. layers: the range it was to give, None for all of it."""

    path: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, int] | None = None


def located(recipe: Path, name: str) -> Path | None:
    """Return where a model of a recipe is, None where it is nowhere."""
    return next((p for p in (recipe.parent / name, Path(name)) if p.exists()), None)


@dataclass(frozen=True)
class Recipe:
    """What a recipe asks for. `job` plans it.

    models: without the base, unless the method begins with it.
    """

    file: Path
    text: str
    method: Known
    base: Model | None
    models: tuple[Model, ...]
    parameters: Mapping[str, Any]
    options: Options

    def job(self, options: Options) -> Job:
        """Return the merge, planned and checked. options: what the recipe does not say."""
        mine = self.options
        options = replace(
            options,
            dtype=mine.dtype or options.dtype,
            vocabulary=mine.vocabulary or options.vocabulary,
            leave_out=(*mine.leave_out, *options.leave_out),
            buffers="base" if "base" in (mine.buffers, options.buffers) else "refuse",
        )
        base = None if self.base is None or self.method.starts else self.path(self.base)
        return prepare(
            base,
            [self.path(model) for model in self.models],
            self._method_of(),
            options,
            self.text,
        )

    def path(self, model: Model) -> Path:
        """Return where a model is: beside the recipe, or seen from where the command runs."""
        found = located(self.file, model.path)
        if found is None:
            raise UsageError(
                f"{self.file}: the model {model.path!r} is neither beside the recipe nor in "
                f"{Path.cwd()}. Models are not downloaded; give a folder or file on this machine."
            )
        return found

    def _method_of(self) -> MethodOf:
        """Return the method with its settings for each tensor."""
        layers = Layers()
        given = [*self.models, *([] if self.base is None else [self.base])]
        every = [self.parameters, *(model.parameters for model in given)]
        ranged = [model for model in given if model.layers is not None]
        if ranged or any(varies(raw) for some in every for raw in some.values()):
            layers = Layers.of(open_model(self.path(given[0]), "the first model").entries)
        for model in ranged:
            if model.layers != (0, layers.count):
                raise UsageError(
                    f"{self.file}: {model.path} gives the layers {list(model.layers or ())} of its "
                    f"{layers.count}; only whole models are merged, [0, {layers.count}]."
                )
        if not any(varies(raw) for some in every for raw in some.values()):
            method = self._build(self.settings("", layers))
            return lambda name: method
        build = lru_cache(maxsize=None)(self._build)
        return lambda name: build(self.settings(name, layers))

    def _build(self, settings: tuple[tuple[str, Any], ...]) -> Merge:
        method = self.method.row.load()(**dict(settings))
        assert isinstance(method, Merge)
        return method

    def settings(self, name: str, layers: Layers) -> tuple[tuple[str, Any], ...]:
        """Return the method's settings for a tensor, "" standing for all of them."""
        found: dict[str, Any] = dict(self.method.constants)
        for key, setting in self.method.keys.items():
            values = [self._value(key, model, name, layers) for model in self.models]
            if setting == "weights":
                if any(v is None for v in values) and not all(v is None for v in values):
                    raise self._bad(f"weight is missing for {self._lacking(values)}")
                if values[0] is not None:
                    found[setting] = self._shared(tuple(map(float, values)), name, layers)
                continue
            if len(set(values)) > 1:
                raise self._bad(
                    f"{key} differs between the models ({', '.join(map(str, values))}); "
                    f"{self.method.row.name} has one for all of them"
                )
            if values[0] is not None:
                found[setting] = 1 - values[0] if key in self.method.turned else values[0]
        return tuple(sorted(found.items()))

    def _value(self, key: str, model: Model, name: str, layers: Layers) -> Any:
        """Return a key's value: the model's own, the recipe's, the default; None where none is."""
        for some in (model.parameters, self.parameters):
            if key in some and (found := value(some[key], name, layers)) is not None:
                if isinstance(found, str) and key not in WORDS:
                    raise self._bad(
                        f"{key} is {found!r}; give a number such as 0.5 (YAML takes 1e-3 for a "
                        "text, 1.0e-3 for a number)"
                    )
                return found
        if key in self.method.needed:
            of = f" for the tensor {name!r}" if name else ""
            raise self._bad(f"{key} is missing for {model.path}{of}")
        return self.method.defaults.get(key)

    def _shared(self, weights: tuple[float, ...], name: str, layers: Layers) -> tuple[float, ...]:
        """Return the weights, over their sum where the recipe asks for that."""
        raw = self.parameters.get("normalize", False) if self.method.shared else False
        whole = sum(weights)
        if not value(raw, name, layers):
            return weights
        if not whole:
            raise self._bad(f"the weights {weights} sum to 0, and normalize divides by that")
        return tuple(weight / whole for weight in weights)

    def _lacking(self, values: list[Any]) -> str:
        pairs = zip(self.models, values, strict=True)
        return next(model.path for model, found in pairs if found is None)

    def _bad(self, why: str) -> UsageError:
        return UsageError(f"{self.file}: {why}.")
