"""Recipes' methods and keys: mergekit's names for the methods both have, the catalog's for all.

A key of mergekit's that asks for something else than the method does here is refused, with what
to do; none is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polytask.catalog import METHODS, Method
from polytask.errors import UsageError, unknown
from polytask.merge.base import Merge
from polytask.parsing import settings_of

Fixed = Mapping[str, tuple[tuple[object, ...], str]]
"""A key -> the values it may have, and why no other."""

FOREIGN = (
    "breadcrumbs_ties", "della", "della_linear", "nuslerp", "multislerp", "karcher", "sce", "ram",
    "ramplus_tl", "nearswap", "arcee_fusion", "passthrough",
)  # fmt: skip
"""Methods of mergekit's alone."""


@dataclass(frozen=True)
class Known:
    """A method as recipes write it.

    keys: a recipe's key -> the setting of the method. each: those that a model may have apart;
        "weight" makes the tuple `weights`, the others must be alike for all models.
    needed: keys that must be there. defaults: values of keys that are left out, where they are not
        the method's own. turned: keys that stand for 1 minus the setting. constants: settings that
        no key changes. shared: `normalize` divides the weights by their sum.
    starts: the base is the first of the models that are merged.
    """

    row: Method
    keys: Mapping[str, str]
    each: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Fixed = field(default_factory=dict)
    turned: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    starts: bool = False

    @property
    def all_keys(self) -> tuple[str, ...]:
        """Every key that `parameters` may have."""
        return (*self.keys, *self.fixed, *(("normalize",) if self.shared else ()))


def known(name: str) -> Known:
    """Return what a recipe's `merge_method` means. Raises UsageError for an unknown one."""
    rows = {row.name: row for row in METHODS if row.room == "merge"}
    mergekits = _of_mergekit(rows)
    if name in mergekits:
        return mergekits[name]
    if name in rows:
        target = rows[name].load()
        if not (isinstance(target, type) and issubclass(target, Merge)):
            raise UsageError(
                f"merge_method {name!r} needs more than the models' files; call it from Python, "
                f"{rows[name].target.replace(':', '.')}."
            )
        settings = list(settings_of(rows[name]))
        keys = {"weight" if key == "weights" else key: key for key in settings}
        return Known(rows[name], keys, each=("weight",) if "weight" in keys else ())
    names = list(dict.fromkeys([*mergekits, *rows]))
    if name in FOREIGN:
        raise UsageError(
            f"merge_method {name!r} of mergekit's is not supported. Those that are: "
            f"{', '.join(names)}."
        )
    raise unknown("merge_method", name, names, "See `polytask methods merge`.")


def _of_mergekit(rows: Mapping[str, Method]) -> dict[str, Known]:
    """Return the methods that mergekit has too, under its names, with its keys and defaults."""
    moved, one = {"weight": "weights", "lambda": "scale"}, {"lambda": 1.0}
    # It asks mergekit to hold masks in bytes, which changes nothing in the result.
    masks: Fixed = {"int8_mask": ((True, False), "it is a flag")}
    mean: Fixed = {"normalize": ((True,), "the models that agree are averaged, never summed")}
    kept: Fixed = {"rescale": ((True,), "what is left is always divided by the density")}
    elected = {**moved, "density": "density", "over": "over"}
    drawn = {**moved, "density": "drop", "seed": "seed"}
    each, both = ("weight",), ("weight", "density")
    return {
        "linear": Known(
            rows["average"], {"weight": "weights"}, each, each,
            fixed={"normalize": ((True,), "a mean divides by the weights; see task_arithmetic")},
        ),
        "task_arithmetic": Known(
            rows["task-arithmetic"], moved, each, each, one, masks, shared=True
        ),
        "ties": Known(rows["ties"], elected, both, both, one, {**masks, **mean}),
        "dare_linear": Known(
            rows["dare"], drawn, both, both, one, {**masks, **kept}, ("density",), shared=True
        ),
        "dare_ties": Known(
            rows["dare-ties"], drawn, both, (*both, "normalize"), one, {**masks, **kept, **mean},
            ("density",), {"density": 1.0},
        ),
        "breadcrumbs": Known(
            rows["breadcrumbs"], {**moved, "density": "beta", "gamma": "gamma"}, (*both, "gamma"),
            both, {**one, "gamma": 0.01}, masks, shared=True,
        ),
        "slerp": Known(rows["slerp"], {"t": "t"}, needed=("t",), starts=True),
        "model_stock": Known(
            rows["model-stock"], {},
            fixed={"filter_wise": ((False,), "the angles are those of whole tensors")},
        ),
    }  # fmt: skip
