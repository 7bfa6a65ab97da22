"""The recipe that is written with a merge called from Python: it can be read back."""

from __future__ import annotations

from typing import Any

from polytask.catalog import METHODS
from polytask.merge.base import Merge
from polytask.merge.known import known
from polytask.merge.options import Options
from polytask.merge.plan import Plan


def recipe_text(method: Merge | None, plan: Plan, options: Options) -> str:
    """Return the recipe; None stands for a function of settings, of which it says only that."""
    raw: dict[str, Any] = {}
    labels = list(plan.labels)
    base = labels.pop(0) if plan.has_base else None
    models: list[dict[str, Any]] = [{"model": label} for label in labels]
    name = None if method is None else name_of(method)
    raw["merge_method"] = "a function of the tensor" if name is None else name
    if name is not None and name in {row.name for row in METHODS}:
        keys = known(name)
        settings = {key: _plain(getattr(method, setting)) for key, setting in keys.keys.items()}
        weights = settings.pop("weight", None)
        for key in keys.turned:
            settings[key] = 1 - settings[key]
        if weights or "weight" in keys.needed:
            for model, weight in zip(models, weights or [1.0] * len(models), strict=True):
                model["parameters"] = {"weight": weight}
        raw["parameters"] = settings
        base = labels[0] if keys.starts else base
    if base is not None:
        raw["base_model"] = base
    raw["models"] = models
    if options.dtype is not None:
        raw["dtype"] = str(options.dtype).removeprefix("torch.")
    if options.leave_out:
        raw["leave_out"] = list(options.leave_out)
    if options.vocabulary is not None:
        raw["tokenizer_source"] = options.vocabulary
    if options.buffers != "refuse":
        raw["buffers"] = options.buffers
    import yaml  # slow to import, and few merges write a recipe

    text: str = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    return text


def name_of(method: Merge) -> str:
    """Return the catalog's name of a method; that of its class, where it has no row."""
    target = f"{type(method).__module__}:{type(method).__name__}"
    return next((row.name for row in METHODS if row.target == target), type(method).__name__)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
