"""Where a method goes: the layers of a model, chosen by name, kind, type or depth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import get_args

from torch import nn

from polytask.adapt.base import Kind, Layer, Method
from polytask.adapt.layers import Found, find, layer_of
from polytask.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Where:
    """Layers that meet all that is given; nothing given, every layer the method can change.

    names: globs of whole names or of their last parts: "blocks.0.*", "q_proj", "attn.q_proj".
    regex: matches the whole name. kinds: "linear", "conv", "embedding", "norm", "attention".
    types: names of classes, or of one they extend, such as "LlamaRMSNorm".
    blocks: positions in the outermost list of layers; -1 is the last.
    without: globs of layers left out all the same.
    axis: the dimension of the inputs that holds the batch; None: 1 inside torch's transformer
        layers and attention with batch_first=False, else 0.
    width: channels of a whole module's inputs and outputs; None: the inputs of its first linear
        layer and the outputs of its last; of attention in Hugging Face's models, channels of its
        keys, those of all heads together.
    """

    names: tuple[str, ...] = ()
    regex: str = ""
    kinds: tuple[Kind, ...] = ()
    types: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    without: tuple[str, ...] = ()
    axis: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in ("names", "kinds", "types", "blocks", "without"):
                given = getattr(self, field.name)
                if not isinstance(given, tuple):
                    raise UsageError(
                        f"Where: {field.name} is {given!r}; give a tuple, such as ({given!r},)."
                    )
        for kind in self.kinds:
            if kind not in get_args(Kind):
                raise UsageError(
                    f"Where: unknown kind {kind!r}.{did_you_mean(kind, get_args(Kind))} Kinds are: "
                    f"{', '.join(get_args(Kind))}."
                )
        try:
            re.compile(self.regex)
        except re.error as error:
            raise UsageError(f"Where: regex {self.regex!r} cannot be read: {error}.") from None

    @classmethod
    def of(cls, where: Where | str | Sequence[str] | None) -> Where:
        """Return where one name, several, or nothing stands for."""
        if isinstance(where, Where):
            return where
        if where is None:
            return cls()
        return cls((where,) if isinstance(where, str) else tuple(where))

    def layers(self, model: nn.Module, method: Method) -> list[Layer]:
        """Return the layers chosen, in the model's order.

        Raises UsageError where nothing matches, with near names, and where something that was
        named cannot be changed by the method.
        """
        found, who = find(model), type(method).__name__
        named = bool(self.names or self.regex or self.types or self.kinds)
        chosen = []
        for path, one in found.items():
            kinds = [k for k in one.kinds if k in method.kinds and k in (self.kinds or one.kinds)]
            passed_by = not named and (kinds or one.kinds)[0] == "module"
            if not self._matches(path, one, found) or passed_by:
                continue
            why = one.why
            if kinds:
                layer = layer_of(path, one, self.axis, self.width, kinds[0])
                why = method.refuses(layer)
                if not why:
                    chosen.append(layer)
                    continue
            if named:
                raise UsageError(
                    f"{who} cannot change {path!r}, a {type(one.module).__name__}"
                    f"{f': {why}' if why else ''}. It changes layers of kind "
                    f"{', '.join(method.kinds)}; narrow it down with Where(..., "
                    f"kinds=({method.kinds[0]!r},)), or leave this one out with without=(...)."
                )
        if not chosen:
            raise self._nothing(found, f" {who} changes layers of kind {', '.join(method.kinds)}.")
        return chosen

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules of the places chosen, of any kind."""
        found = find(model)
        chosen = [one.module for path, one in found.items() if self._matches(path, one, found)]
        if not chosen:
            raise self._nothing(found)
        return chosen

    def _matches(self, path: str, one: Found, found: Mapping[str, Found]) -> bool:
        if self.names and not any(glob(path, name) for name in self.names):
            return False
        if self.regex and not re.fullmatch(self.regex, path):
            return False
        if self.kinds and not set(self.kinds) & set(one.kinds):
            return False
        if self.types and not {c.__name__ for c in type(one.module).__mro__} & set(self.types):
            return False
        if self.blocks and not self._in_block(path, found):
            return False
        return not any(glob(path, name) for name in self.without)

    def _in_block(self, path: str, found: Mapping[str, Found]) -> bool:
        outer = block_of(path)
        if outer is None:
            return False
        prefix, at = outer
        many = 1 + max(b[1] for p in found if (b := block_of(p)) is not None and b[0] == prefix)
        return any(at == (block if block >= 0 else many + block) for block in self.blocks)

    def _nothing(self, found: Mapping[str, Found], changes: str = "") -> UsageError:
        given = ", ".join(
            f"{f.name}={value!r}" for f in fields(self) if (value := getattr(self, f.name))
        )
        paths = [path for path, one in found.items() if one.kinds != ("module",)]
        lasts = [path.rpartition(".")[2] for path in paths]
        near = ""
        for name in self.names:  # a name without dots is the end of one
            near = did_you_mean(name, paths if "." in name else lasts)
            near = near or did_you_mean(name.rpartition(".")[2].strip("*"), lasts)
        some = ", ".join(paths[:6]) + (", ..." if len(paths) > 6 else "")
        return UsageError(
            f"No layer of the model matches Where({given}).{near}{changes} Its layers: "
            f"{some or 'none'}."
        )


def glob(path: str, name: str) -> bool:
    """Return whether a name is a glob of a whole path or of its last parts."""
    return fnmatchcase(path, name) or fnmatchcase(path, f"*.{name}")


def block_of(path: str) -> tuple[str, int] | None:
    """Return the list and the position of the outermost numbered part of a name."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:i]), int(part)
    return None
