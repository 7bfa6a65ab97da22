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
        "fixed", "balance", "polytask.balance.fixed:Fixed",
        "constant weights, one per task, such as fixed:weights=1/0.5/2",
        "the baseline; see Kurin et al., NeurIPS 2022, arXiv:2201.04122",
    ),
    Method(
        "gls", "balance", "polytask.balance.gls:GLS",
        "the geometric mean of the losses",
        "Chennupati et al., CVPR Workshops 2019, arXiv:1904.08492",
    ),
    Method(
        "rlw", "balance", "polytask.balance.rlw:RLW",
        "weights drawn anew at every step, the control",
        "Lin et al., TMLR 2022, arXiv:2111.10603",
    ),
    Method(
        "imtl-l", "balance", "polytask.balance.imtl_l:IMTLL",
        "learned scales that bring every loss to 1",
        "Liu et al., ICLR 2021, openreview:IMPnRXEWpvr",
    ),
    Method(
        "scale-invariant", "balance", "polytask.balance.scale_invariant:ScaleInvariant",
        "the sum of the losses' logarithms",
        "Navon et al., ICML 2022, arXiv:2202.01017",
    ),
    Method(
        "stch", "balance", "polytask.balance.stch:STCH",
        "a smooth maximum of the losses over their early levels",
        "Lin et al., ICML 2024, arXiv:2402.19078",
    ),
    Method(
        "famo", "balance", "polytask.balance.famo:FAMO",
        "equal relative falls of all losses, for one forward more",
        "Liu et al., NeurIPS 2023, arXiv:2306.03792",
    ),
    Method(
        "gradnorm", "balance", "polytask.balance.gradnorm:GradNorm",
        "learned weights that bring gradients to norms by training rate",
        "Chen et al., ICML 2018, arXiv:1711.02257",
    ),
    Method(
        "igb-v1", "balance", "polytask.balance.igb_v1:IGBv1",
        "more weight to tasks least improved since an early epoch",
        "Dai, Fei & Lu, UAI 2023, arXiv:2307.15429",
    ),
    Method(
        "igb-v2", "balance", "polytask.balance.igb_v2:IGBv2",
        "weights chosen by an agent that is rewarded by the least improved task",
        "Dai, Fei & Lu, UAI 2023, arXiv:2307.15429",
    ),
    Method(
        "coba", "balance", "polytask.balance.coba:CoBa",
        "weights from the slopes of validation losses",
        "Gong et al., EMNLP 2024, arXiv:2410.06741",
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
    """What `compare` trains under one name: a sharing, a balance and a mix.

    named: the methods that the text names; the other rooms take their baseline.
    """

    text: str
    share: Choice
    balance: Choice
    mix: Choice
    named: tuple[Method, ...] = ()


def split(text: str) -> tuple[str, ...]:
    """Return the recipes of a comma-separated list: `pcgrad,temperature:temperature=5,cap=1000`.

    Commas also part the settings of a method; a piece that begins with `key=` belongs to the
    recipe before it.
    """
    recipes: list[str] = []
    for piece in (piece.strip() for piece in text.split(",")):
        begins_with_key = "=" in piece and ":" not in piece.partition("=")[0]
        if begins_with_key and recipes:
            recipes[-1] += f",{piece}"
        elif piece:
            recipes.append(piece)
    return tuple(recipes)


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
    named: dict[str, Method] = {}
    for part in text.split("+"):
        name, _, rest = part.strip().partition(":")
        row = method(name)
        if row.room not in chosen:
            raise UsageError(
                f"Method {name!r} is of the room {row.room!r}; a recipe joins methods of "
                f"{', '.join(chosen)}. See `polytask methods`."
            )
        if row.room in named:
            raise UsageError(
                f"Recipe {text!r} names two methods of the room {row.room!r}; give one."
            )
        named[row.room] = row
        chosen[row.room] = Choice(row, _settings(row, rest))
    rows = tuple(named.values())
    return Recipe(text, chosen["share"], chosen["balance"], chosen["mix"], rows)


def settings_of(row: Method) -> dict[str, inspect.Parameter]:
    """Return the settings a person may write in a recipe, by name, annotations resolved.

    They are the target's parameters with a default that one word can give: a number, a flag, a
    text, None, or several numbers parted by "/". The others are for Python alone. Holds
    for dataclasses and for modules alike.
    """
    parameters = inspect.signature(row.load(), eval_str=True).parameters
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
        and all(
            o in _WORDS or o == _NUMBERS or get_origin(o) is Literal for o in _options(parameter)
        )
    }


_WORDS = (bool, int, float, str, NoneType)
_NUMBERS = tuple[float, ...]


def _options(parameter: inspect.Parameter) -> tuple[Any, ...]:
    hint = parameter.annotation
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


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
    wanted: list[str] = []
    for option in _options(parameter):
        if get_origin(option) is Literal:
            if text in get_args(option):
                return text
            wanted += get_args(option)
        elif option is NoneType:
            if text.casefold() == "none":
                return None
            wanted.append("none")
        elif option is bool:
            if text.casefold() in ("true", "false"):
                return text.casefold() == "true"
            wanted += ["true", "false"]
        elif option is str:
            return text
        elif option == _NUMBERS:
            with contextlib.suppress(ValueError):
                return tuple(map(float, text.split("/")))
            wanted.append("numbers parted by '/'")
        else:
            with contextlib.suppress(ValueError):  # not of this type; perhaps of the next
                return option(text)
            wanted.append("a whole number" if option is int else "a number")
    raise UsageError(
        f"{what} is {text!r}; give {' or '.join(wanted)} (default {parameter.default!r})."
    )
