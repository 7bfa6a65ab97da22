"""The one table of methods. Listing it loads nothing; `load` imports one method.

Adding a method is a file, a row here, and a reference value in the tests. The command line, the
reports and the tests read this table; nothing registers itself.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from polytask.errors import UsageError, unknown

ROOMS = (
    "share", "balance", "mix", "adapt", "merge", "relate", "trade", "extend", "act", "classic",
)  # fmt: skip
"""The rooms methods live in. A room without a row yet is still to come."""


@dataclass(frozen=True)
class Method:
    """One row. target: "module:attribute", imported only when the method is used."""

    name: str
    room: str
    target: str
    summary: str
    source: str

    def load(self) -> Any:
        """Import the method and return the object that `target` names."""
        module, attribute = self.target.split(":")
        return getattr(importlib.import_module(module), attribute)


METHODS: tuple[Method, ...] = (
    Method(
        "hard", "share", "polytask.share.hard:HardSharing",
        "one encoder for all tasks, one head per task",
        "Caruana, Multitask Learning, Machine Learning 1997, doi:10.1023/A:1007379606734",
    ),
    Method(
        "equal", "balance", "polytask.balance.equal:Equal",
        "the sum of the losses, every weight 1",
        "the baseline; no source",
    ),
    Method(
        "uncertainty", "balance", "polytask.balance.uncertainty:Uncertainty",
        "weights from learned noise of each task",
        "Kendall, Gal & Cipolla, CVPR 2018, arXiv:1705.07115",
    ),
    Method(
        "dwa", "balance", "polytask.balance.dwa:DWA",
        "raises the weight of tasks whose loss falls slowest",
        "Liu, Johns & Davison, CVPR 2019, arXiv:1803.10704",
    ),
    Method(
        "pcgrad", "balance", "polytask.balance.pcgrad:PCGrad",
        "projects away the part of a gradient that conflicts with another task's",
        "Yu et al., NeurIPS 2020, arXiv:2001.06782",
    ),
    Method(
        "aligned-mtl", "balance", "polytask.balance.aligned_mtl:AlignedMTL",
        "aligns the principal components of the gradient matrix (condition number 1)",
        "Senushkin et al., CVPR 2023, arXiv:2305.19000",
    ),
    Method(
        "proportional", "mix", "polytask.mix.proportional:Proportional",
        "every row of every stream equally often",
        "the baseline; see Raffel et al., JMLR 2020, arXiv:1910.10683, section 3.5.2",
    ),
    Method(
        "uniform", "mix", "polytask.mix.uniform:Uniform",
        "every stream equally often, whatever its size",
        "the baseline; see Raffel et al., JMLR 2020, arXiv:1910.10683, section 3.5.2",
    ),
    Method(
        "temperature", "mix", "polytask.mix.temperature:Temperature",
        "between proportional and uniform: sizes, capped, to the power 1/temperature",
        "Raffel et al., JMLR 2020, arXiv:1910.10683, section 3.5.2",
    ),
)  # fmt: skip


def method(name: str) -> Method:
    """Return the row called `name`, or raise with the nearest name."""
    for row in METHODS:
        if row.name == name:
            return row
    raise unknown("method", name, [row.name for row in METHODS], "See `polytask methods`.")


@dataclass(frozen=True)
class Choice:
    """A method with its settings, as a person writes it: `temperature:temperature=5,cap=1000`."""

    method: Method
    settings: tuple[tuple[str, Any], ...] = ()

    def build(self) -> Any:
        """Return the method's object; only for methods made from settings alone."""
        return self.method.load()(**dict(self.settings))


@dataclass(frozen=True)
class Recipe:
    """What `compare` trains under one name: a sharing, a balance and a mix."""

    text: str
    share: Choice
    balance: Choice
    mix: Choice


def parse(text: str) -> Recipe:
    """Read a recipe: method names joined by `+`, at most one per room, settings after a colon.

    `pcgrad`, `hard+pcgrad`, `dwa:temperature=1+uniform`. A room not named takes its baseline:
    share hard, balance equal, mix proportional.
    """
    chosen = {
        "share": Choice(method("hard")),
        "balance": Choice(method("equal")),
        "mix": Choice(method("proportional")),
    }
    seen: set[str] = set()
    for part in text.split("+"):
        name, _, rest = part.strip().partition(":")
        row = method(name)
        if row.room not in chosen:
            raise UsageError(
                f"Method {name!r} is of the room {row.room!r}; a recipe joins methods of "
                f"{', '.join(chosen)}. See `polytask methods`."
            )
        if row.room in seen:
            raise UsageError(
                f"Recipe {text!r} names two methods of the room {row.room!r}; give one."
            )
        seen.add(row.room)
        chosen[row.room] = Choice(row, _settings(row, rest))
    return Recipe(text, chosen["share"], chosen["balance"], chosen["mix"])


def settings_of(row: Method) -> dict[str, inspect.Parameter]:
    """Return the settings a person may give: the target's parameters that have a default.

    Holds for dataclasses and for modules with trained parts alike; a parameter without default
    is something the loop passes in. Annotations are resolved.
    """
    parameters = inspect.signature(row.load(), eval_str=True).parameters
    return {n: p for n, p in parameters.items() if p.default is not inspect.Parameter.empty}


def _settings(row: Method, rest: str) -> tuple[tuple[str, Any], ...]:
    if not rest:
        return ()
    known = settings_of(row)
    given: dict[str, Any] = {}
    for item in rest.split(","):
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"Setting {item!r} of {row.name!r} has no value; write key=value.")
        if key not in known:
            settings = ", ".join(known) or "none"
            raise unknown(f"setting of {row.name}", key, known, f"Its settings: {settings}.")
        if key in given:
            raise UsageError(f"Setting {key!r} of {row.name!r} is given twice; give it once.")
        given[key] = _value(text.strip(), known[key], f"Setting {key!r} of {row.name!r}")
    return tuple(sorted(given.items()))


def _value(text: str, parameter: inspect.Parameter, what: str) -> Any:
    """Return `text` read as the parameter's type, or raise with what it should be."""
    hint = parameter.annotation
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal and text in get_args(option):
            return text
        if option is NoneType and text.casefold() in ("none", "null"):
            return None
        if option is bool and text.casefold() in ("true", "false"):
            return text.casefold() == "true"
        if option in (int, float):
            with contextlib.suppress(ValueError):  # not of this type; perhaps of the next
                return option(text)
        if option is str:
            return text
    wanted = hint.__name__ if isinstance(hint, type) else str(hint)
    raise UsageError(
        f"{what} is {text!r}; give a value of type {wanted} (default {parameter.default!r})."
    )
