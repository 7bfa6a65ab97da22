"""The recipe that is written with a merge that had none: what was merged, how, as YAML."""

from __future__ import annotations

from typing import Any

import yaml

from polytask.catalog import METHODS
from polytask.merge.base import Merge
from polytask.merge.options import Options
from polytask.merge.plan import Plan


def recipe_text(method: Merge | None, plan: Plan, options: Options) -> str:
    """Return the recipe of a merge called from Python; None stands for a function of settings."""
    raw: dict[str, Any] = {
        "merge_method": "a function of the tensor" if method is None else name_of(method)
    }
    labels = list(plan.labels)
    if plan.has_base:
        raw["base_model"] = labels.pop(0)
    raw["models"] = [{"model": label} for label in labels]
    fields = getattr(method, "__dataclass_fields__", {})
    if fields:
        raw["parameters"] = {name: _plain(getattr(method, name)) for name in fields}
    if options.dtype is not None:
        raw["dtype"] = str(options.dtype).removeprefix("torch.")
    if options.leave_out:
        raw["leave_out"] = list(options.leave_out)
    if options.vocabulary is not None:
        raw["tokenizer_source"] = options.vocabulary
    text: str = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    return text


def name_of(method: Merge) -> str:
    """Return the catalog's name of a method; that of its class, where it has no row."""
    target = f"{type(method).__module__}:{type(method).__name__}"
    return next((row.name for row in METHODS if row.target == target), type(method).__name__)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
