"""What is merged with what: the tensors of the models paired by name, before one is merged.

Everything that can be found wrong without reading the tensors is found here; equal buffers, tied
weights and a base that is none are looked for by reading a little.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from polytask.errors import DataError
from polytask.merge.files import COMPARED, Model, unequal
from polytask.merge.headers import MERGED, Entry
from polytask.merge.mapped import Trails
from polytask.merge.options import Buffers, Options
from polytask.merge.vocabulary import Vocabularies, aligned
from polytask.merge.window import Arena, Window

SHOWN = 3
"""Names that an error shows; it counts the others."""


class Part(Protocol):
    """One model's elements for a tensor of the result, in the result's order."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements in the file."""

    def read(self, start: int, out: Window) -> None:
        """Fill `out`, of this dtype, from element `start` on; see `files.Model`."""

    def place(self, start: int, count: int, trails: Trails) -> int | None:
        """Return where elements lie in memory; see `files.Model`."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor as it lies in its model."""

    model: Model
    name: str
    dtype: torch.dtype

    def read(self, start: int, out: Window) -> None:
        """Fill `out` from element `start` on."""
        self.model.read(self.name, start, out)

    def place(self, start: int, count: int, trails: Trails) -> int | None:
        """Return where elements lie in memory."""
        return self.model.place(self.name, start, count, trails)


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor of the result.

    key: seeds what a method draws; that of the tensor it is tied to, where it is.
    parts: one per model, the base first where there is one. Merged; or, where `merged` is False,
        the first is copied.
    """

    name: str
    key: str
    entry: Entry
    parts: tuple[Part, ...]
    merged: bool


@dataclass(frozen=True)
class Plan:
    """All tensors of the result in the order they are written, and what deserves a warning.

    dropped: tied tensors that the first model does not have.
    """

    items: tuple[Item, ...]
    labels: tuple[str, ...]
    has_base: bool
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    vocabularies: Vocabularies | None = None
    elements: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", sum(i.entry.numel for i in self.items))


def plan(
    base: Model | None,
    tuned: Sequence[Model],
    options: Options,
    vocabularies: Vocabularies | None = None,
) -> Plan:
    """Return what is merged with what.

    vocabularies: how rows of a vocabulary are aligned; None where they must lie alike.
    Raises DataError that names the tensors that do not fit.
    """
    models = [*([] if base is None else [base]), *tuned]
    names = [_kept(model, options.leave_out) for model in models]
    tied = _tied(models, names)
    wanted = list(names[0])
    for mine, model in zip(names[1:], models[1:], strict=True):
        _same_names(models[0], model, names[0], mine, tied)
    items = []
    for name in wanted:
        homes = [
            (model, name if name in mine else tied[name])
            for model, mine in zip(models, names, strict=True)
        ]
        items.append(_item(name, tied.get(name, name), homes, options, vocabularies))
    if not any(item.merged for item in items):
        raise DataError(
            f"{models[0].label} holds no tensor of floating point that could be merged."
        )
    return Plan(
        items=tuple(items),
        labels=tuple(model.label for model in models),
        has_base=base is not None,
        dropped=tuple(sorted(set(tied) - set(wanted))),
        vocabularies=vocabularies,
    )


def _kept(model: Model, leave_out: Sequence[str]) -> dict[str, Entry]:
    """Return the tensors that no pattern leaves out."""
    return {
        name: entry
        for name, entry in model.entries.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in leave_out)
    }


def _tied(models: Sequence[Model], names: Sequence[Mapping[str, Entry]]) -> dict[str, str]:
    """Return tensors that some models leave out because they are another one: name -> that one.

    So are saved output layers that share the embedding's weight: one file has both, another only
    one. Where a model has both, they must be equal in every bit; matrices alone count, and none
    that is constant, since biases that are all 0 are equal by chance.
    """
    everywhere = set(names[0]).intersection(*names[1:])
    found: dict[str, str] = {}
    arena = Arena(2 * COMPARED)
    for name in sorted(set().union(*names) - everywhere):
        having = [(model, mine) for model, mine in zip(models, names, strict=True) if name in mine]
        partners = None
        for model, mine in having:
            same = {
                other
                for other in (everywhere if partners is None else partners)
                if (mine[other].dtype, mine[other].shape) == (mine[name].dtype, mine[name].shape)
                and len(mine[name].shape) > 1
                and _varied(model, name, arena)
                and unequal([(model, name), (model, other)], arena) is None
            }
            partners = same
        if partners:
            found[name] = sorted(partners)[0]
    return found


def _varied(model: Model, name: str, arena: Arena) -> bool:
    """Return whether the beginning of a tensor has two values."""
    entry = model.entries[name]
    one = arena.one(min(entry.numel, COMPARED // 8), entry.dtype)
    model.read(name, 0, one)
    return bool((one.values_P != one.values_P[:1]).any())


def _same_names(
    first: Model,
    model: Model,
    wanted: Mapping[str, Entry],
    mine: Mapping[str, Entry],
    tied: Mapping[str, str],
) -> None:
    lacking = [name for name in wanted if name not in mine and name not in tied]
    extra = [name for name in mine if name not in wanted and name not in tied]
    if lacking or extra:
        said = [
            f"{word} {_some(names)}"
            for word, names in (("lacks", lacking), ("adds", extra))
            if names
        ]
        raise DataError(
            f"{model.label} {' and '.join(said)}, against {first.label}. Models are merged tensor "
            "by tensor; leave tensors such as task heads out with leave_out, by patterns."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(map(repr, names[:SHOWN]))}{more}"


def _item(
    name: str,
    key: str,
    homes: Sequence[tuple[Model, str]],
    options: Options,
    vocabularies: Vocabularies | None,
) -> Item:
    entries = [model.entries[at] for model, at in homes]
    first = entries[0]
    floats = [entry.dtype in MERGED for entry in entries]
    if not all(floats):
        _check_copy(name, homes, options.buffers)
        return Item(name, key, first, (Whole(*homes[0], first.dtype),), merged=False)
    kind = options.dtype or first.dtype
    if vocabularies is not None and vocabularies.concern(name, homes):
        shape, rows = aligned(name, homes, vocabularies)
        return Item(name, key, Entry(kind, shape, 0, 0), rows, merged=True)
    for (model, _), entry in zip(homes, entries, strict=True):
        if entry.shape != first.shape:
            raise DataError(_shapes(name, homes[0][0], first, model, entry))
    parts = tuple(
        Whole(model, at, entry.dtype) for (model, at), entry in zip(homes, entries, strict=True)
    )
    return Item(name, key, Entry(kind, first.shape, 0, 0), parts, merged=True)


def _shapes(name: str, first: Model, entry: Entry, model: Model, other: Entry) -> str:
    text = (
        f"Tensor {name!r} has shape {entry.shape} in {first.label} and {other.shape} in "
        f"{model.label}."
    )
    if entry.shape[1:] == other.shape[1:] and len(entry.shape):
        return (
            f"{text} If its rows are those of a vocabulary, align them by the models' tokenizers: "
            "vocabulary='base' or 'union' (tokenizer_source in a recipe). Else leave it out."
        )
    return f"{text} Merge models of one architecture, or leave the tensor out with leave_out."


def _check_copy(name: str, homes: Sequence[tuple[Model, str]], buffers: Buffers) -> None:
    """Raise DataError where models do not agree on a tensor that cannot be merged."""
    if buffers == "base":
        return
    other = unequal(homes, Arena(2 * COMPARED))
    if other is not None:
        entry = homes[0][0].entries[homes[0][1]]
        kind = str(entry.dtype).removeprefix("torch.")
        raise DataError(
            f"Tensor {name!r} is {kind}, which is not merged but copied, and "
            f"{homes[other][0].label} differs in it from {homes[0][0].label}. Leave it out with "
            "leave_out, or take that of the base with buffers='base'."
        )
