"""Recipes: a line of text -> the methods it names, with their settings.

    parse("hard+pcgrad:seed=3+every-n:n=5")

The grammar stands at `parse`; `catalog.METHODS` holds the names.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from polytask.catalog import Method, load, method
from polytask.errors import UsageError, unknown

WEIGHED = "polytask.balance.weighed:Weighed"
"""What joins two balance methods in a recipe; it has no name of its own there."""


@dataclass(frozen=True)
class Choice:
    """A method with its settings, as a person writes it: `temperature:temperature=5,cap=1000`."""

    method: Method
    settings: tuple[tuple[str, Any], ...] = ()

    def build(self) -> Any:
        """Return the method's object; only for methods made from settings alone."""
        return self.method.load()(**dict(self.settings))

    def around(self, method: Any) -> Any:
        """Return the wrapper's object around `method`; only for rows that wrap."""
        return self.method.load()(method, **dict(self.settings))

    def seeded(self, seed: int) -> Choice:
        """Return the choice with this seed, where the method draws and none was given."""
        given = dict(self.settings)
        if "seed" in given or "seed" not in settings_of(self.method):
            return self
        return replace(self, settings=(*self.settings, ("seed", seed)))


@dataclass(frozen=True)
class Recipe:
    """What `compare` trains under one name: a sharing, a balance and a mix.

    named: the methods that the text names; the other rooms take their baseline.
    adapt: a method that adapts the suite's pretrained encoder in place of a sharing; None: a
    sharing. weighing: a method of the losses that sets weights before `balance` looks at gradients.
    wrappers: what stands around `balance`, the innermost first. mix_wrappers: around `mix`.
    """

    text: str
    share: Choice
    balance: Choice
    mix: Choice
    named: tuple[Method, ...] = ()
    weighing: Choice | None = None
    wrappers: tuple[Choice, ...] = ()
    mix_wrappers: tuple[Choice, ...] = ()
    adapt: Choice | None = None

    @property
    def stands_on(self) -> str:
        """Which of a suite's encoders it is built on: "features", "fields" or "tokens"."""
        on: str = dict(self.share.settings).get("on", self.share.method.load().stands_on)
        return on

    def build_balance(self, seed: int) -> Any:
        """Return the balance method with all that stands around it.

        seed: for those that draw and were given none.
        """
        built = _stacked(self.balance, self.wrappers, seed)
        if self.weighing is None:
            return built
        return load(WEIGHED)(built, by=self.weighing.seeded(seed).build())

    def build_mix(self, seed: int) -> Any:
        """Return the mix with all that stands around it; seed: as for `build_balance`."""
        return _stacked(self.mix, self.mix_wrappers, seed)


def _stacked(inner: Choice, wrappers: tuple[Choice, ...], seed: int) -> Any:
    built = inner.seeded(seed).build()
    for wrapper in wrappers:
        built = wrapper.seeded(seed).around(built)
    return built


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

    Wrappers follow the method they stand around, the innermost first: `pcgrad+every-n:n=5`,
    `mgda+feature-level+every-n`, `temperature+unmixed`. A method of the losses before one of the
    gradients weighs the losses for it: `igb-v1+cagrad`.

    A method of `adapt` takes the place of a sharing: `lora:rank=4`, `mhr+uncertainty`. Most take
    `where`, the ends of names of layers: `lora:where=query/key/value`.

    Every architecture takes `on`: `mmoe:on=fields` stands on a table's embedded and standardised
    columns, `on=features` on the suite's own encoder.
    """
    chosen = {
        "share": Choice(method("hard")),
        "balance": Choice(method("equal")),
        "mix": Choice(method("proportional")),
    }
    named: list[Method] = []
    weighing: Choice | None = None
    wrappers: list[Choice] = []
    for part in text.split("+"):
        name, _, rest = part.strip().partition(":")
        row = method(name)
        if row.room not in (*chosen, ADAPT):
            raise UsageError(
                f"Method {name!r} is of the room {row.room!r}; a recipe joins methods of "
                f"{', '.join((*chosen, ADAPT))}. See `polytask methods`."
            )
        choice = Choice(row, _settings(row, rest))
        before = next((n for n in named if n.room == row.room and not n.wraps), None)
        if row.wraps:
            if any(row is wrapper.method for wrapper in wrappers):
                raise UsageError(f"Recipe {text!r} names {name!r} twice; give it once.")
            wrappers.append(choice)
        elif before is not None:
            if row.room != "balance" or weighing is not None:
                raise UsageError(
                    f"Recipe {text!r} names two methods of the room {row.room!r}; give one."
                )
            weighing = _weighing(text, chosen["balance"], choice)
            chosen["balance"] = choice
        else:
            chosen[row.room] = choice
        named.append(row)
    if ADAPT in chosen and any(row.room == "share" for row in named):
        raise UsageError(
            f"Recipe {text!r} names a sharing and {chosen[ADAPT].method.name!r}, which adapts the "
            "suite's own encoder; give one of the two."
        )
    around = {room: tuple(w for w in wrappers if w.method.room == room) for room in chosen}
    recipe = Recipe(
        text,
        share=chosen["share"],
        balance=chosen["balance"],
        mix=chosen["mix"],
        named=tuple(named),
        weighing=weighing,
        wrappers=around["balance"],
        mix_wrappers=around["mix"],
        adapt=chosen.get(ADAPT),
    )
    # What cannot stand around what is said here, not hours later.
    if weighing is not None or around["balance"]:
        recipe.build_balance(0)
    if around["mix"]:
        recipe.build_mix(0)
    return recipe


def choose(text: str, room: str) -> Choice:
    """Return one method of a room with its settings: `ties:density=0.1,scale=2`."""
    name, _, rest = text.strip().partition(":")
    row = method(name)
    if row.room != room:
        raise UsageError(
            f"Method {name!r} is of the room {row.room!r}; give one of {room!r}. "
            f"See `polytask methods {room}`."
        )
    return Choice(row, _settings(row, rest))


def _weighing(text: str, first: Choice, second: Choice) -> Choice:
    """Return the first of two balance methods, where it weighs losses for the second."""
    by_losses = [choice.method.load().needs == "losses" for choice in (first, second)]
    if by_losses == [True, False]:
        return first
    one, other = first.method.name, second.method.name
    if by_losses == [False, True]:
        raise UsageError(
            f"Recipe {text!r}: {other!r} weighs losses, so it comes before {one!r}; write "
            f"{other}+{one}."
        )
    of = "losses" if by_losses[0] else "gradients"
    raise UsageError(
        f"Recipe {text!r} names two methods of the room 'balance' that look at {of}; give one, or "
        "one of the losses before one of the gradients, such as igb-v1+cagrad."
    )


def settings_of(row: Method) -> dict[str, inspect.Parameter]:
    """Return the settings a person may write in a recipe, by name, annotations resolved.

    They are the target's parameters with a default that one word can give: a number, a flag, a
    text, None, or several numbers or names parted by "/". The others are for Python alone. Holds
    for dataclasses and for modules alike; a target that `build`s takes the settings there.
    """
    target = row.load()
    if row.room != ADAPT:  # whose methods build a layer's adapter by that name
        target = getattr(target, "build", target)
    hints = _hints(target)
    parameters = {
        name: parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in inspect.signature(target).parameters.items()
    }
    if row.room == "share":
        default = row.load().stands_on
        parameters["on"] = ON if default == ON.default else ON.replace(default=default)
    if row.room == ADAPT:
        parameters[WHERE] = LAYERS
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
        and all(
            o in _WORDS or o in _SEVERAL or get_origin(o) is Literal for o in _options(parameter)
        )
    }


ADAPT, WHERE = "adapt", "where"

LAYERS = inspect.Parameter(
    WHERE, inspect.Parameter.KEYWORD_ONLY, default=(), annotation=tuple[str, ...]
)
"""The setting that methods of `adapt` have: the layers they go to; (): where they go by default."""

ON = inspect.Parameter(
    "on",
    inspect.Parameter.KEYWORD_ONLY,
    default="features",
    annotation=Literal["features", "fields", "tokens"],
)
"""The setting that every architecture has: which of the suite's encoders it is built on."""

_WORDS = (bool, int, float, str, NoneType)
_SEVERAL: dict[Any, tuple[Callable[[str], Any], str]] = {
    tuple[float, ...]: (float, "numbers"),
    tuple[int, ...]: (int, "whole numbers"),
    tuple[str, ...]: (str, "names"),
}
"""Several numbers or names parted by "/": the type of each, and the words for it. "none" is none of
them."""


def _hints(target: Any) -> dict[str, Any]:
    """Return the types of its parameters; of a dataclass each where it is declared, as the classes
    it extends name types that its own module need not know."""
    if inspect.isclass(target) and not is_dataclass(target):
        target = target.__init__
    return get_type_hints(target)


def _options(parameter: inspect.Parameter) -> tuple[Any, ...]:
    hint = parameter.annotation
    # `Literal[...] | None` is a Union, `int | None` a UnionType.
    return get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)


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
        elif option in _SEVERAL:
            each, words = _SEVERAL[option]
            if text.casefold() == "none":
                return None if NoneType in _options(parameter) else ()
            with contextlib.suppress(ValueError):
                return tuple(map(each, text.split("/")))
            wanted.append(f"{words} parted by '/'")
        else:
            with contextlib.suppress(ValueError):  # not of this type; perhaps of the next
                return option(text)
            wanted.append("a whole number" if option is int else "a number")
    raise UsageError(
        f"{what} is {text!r}; give {' or '.join(wanted)} (default {parameter.default!r})."
    )
