"""What the YAML file of a person's own data says, checked before any table is opened.

The whole schema, with an example per case, stands in docs/own-data.md. Every scalar is read as
text, so that `no`, `2020-01-01`, `1e5` and `NA` mean what the table's cells say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml

from polytask.errors import UsageError, unknown
from polytask.suites.base import SPLITS, Split

InputKind = Literal["numeric", "category", "text", "tokens"]
TargetKind = Literal["binary", "multiclass", "multilabel", "regression", "sequence"]

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "?")
"""Cells that mean "no value here", unless a table lists its own."""


@dataclass(frozen=True)
class Input:
    """An input: its name in the suite, its kind, and the column it is read from."""

    name: str
    kind: InputKind
    column: str


@dataclass(frozen=True)
class Target:
    """A task's labels in one table.

    columns: one name, or for a multilabel task one per label.
    positive: the cell that means 1 in a binary task; None: guessed from the two values.
    unit: of a regression task, in which its errors are reported.
    """

    task: str
    kind: TargetKind
    columns: tuple[str, ...]
    positive: str | None = None
    unit: str = "target units"


@dataclass(frozen=True)
class Fractions:
    """A random split. val, test: shares of the rows, > 0; the rest is train.

    group: a column whose equal cells stay in one split; None splits row by row.
    """

    val: float = 0.1
    test: float = 0.2
    seed: int = 0
    group: str | None = None


@dataclass(frozen=True)
class ByColumn:
    """A split written in the table: each cell of `column` says train, val or test."""

    column: str


@dataclass(frozen=True)
class DeclaredTable:
    """One table: one stream of the suite.

    files: one path under "all", or paths under "train" and any of "val" and "test"; a split
        without its own file is drawn from the rows of train.
    delimiter: between the cells of a text file; None takes the suffix's own.
    """

    name: str
    files: Mapping[Literal["all"] | Split, Path]
    split: Fractions | ByColumn
    inputs: tuple[Input, ...]
    targets: tuple[Target, ...]
    missing: frozenset[str]
    delimiter: str | None


@dataclass(frozen=True)
class EncoderSize:
    """width: channels of the features; depth: layers; dropout: probability in [0, 1).

    words: the most words a row keeps; longer texts are cut.
    """

    width: int = 128
    depth: int = 2
    dropout: float = 0.1
    words: int = 256


@dataclass(frozen=True)
class Declaration:
    """The file as a whole. about: title, source, licence and citation, where given."""

    path: Path
    name: str
    tables: tuple[DeclaredTable, ...]
    encoder: EncoderSize
    batch_size: int
    epochs: int
    about: Mapping[str, str]


def parse(path: Path) -> Declaration:
    """Return what the YAML file at `path` declares.

    Raises UsageError, naming the file and the place in it, for anything unknown, missing, doubled
    or contradictory: a column that is both input and target, tables whose inputs disagree, a task
    with two kinds.
    """
    top = Node.load(path).fields("name", "tables", "encoder", "batch_size", "epochs", "about")
    tables = tuple(
        _table(node, path.parent) for node in top.need("tables", "a list of tables").items()
    )
    _agree(path, tables)
    about = top.get("about")
    keys = ("title", "source", "licence", "citation")
    encoder = top.get("encoder")
    return Declaration(
        path=path,
        name=top["name"].text() if "name" in top else path.stem,
        tables=tables,
        encoder=EncoderSize() if encoder is None else _encoder(encoder),
        batch_size=top["batch_size"].integer(1) if "batch_size" in top else 128,
        epochs=top["epochs"].integer(1) if "epochs" in top else 50,
        about={} if about is None else {k: v.text() for k, v in about.fields(*keys).items()},
    )


class _Loader(yaml.BaseLoader):
    """Reads every scalar as text and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "expected a plain key", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


@dataclass(frozen=True)
class Node:
    """A value of the file, and where it stands, for the error texts."""

    file: Path
    at: str
    value: Any

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the file's root."""
        try:
            # _Loader builds nothing but text, lists and mappings
            return cls(path, "", yaml.load(path.read_text(encoding="utf-8"), _Loader))
        except FileNotFoundError:
            raise UsageError(
                f"{path} does not exist; write one with: polytask init TABLE."
            ) from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from error
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise UsageError(f"{path}{line} is not valid YAML here: {problem}.") from error

    def wrong(self, expected: str) -> UsageError:
        place = f"at {self.at}" if self.at else "at the top"
        shown = repr(self.value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return UsageError(f"{self.file}: {place}, expected {expected}; got {shown}.")

    def unknown(self, what: str, name: str, known: Iterable[str]) -> UsageError:
        options = list(known)
        place = f"at {self.at}" if self.at else "at the top"
        return unknown(what, name, options, f"{self.file}, {place}, takes: {', '.join(options)}.")

    def child(self, key: str) -> Node:
        return Node(self.file, f"{self.at}.{key}" if self.at else key, self.value[key])

    def fields(self, *known: str) -> Fields:
        """Return the entries of a mapping that may have these keys and no others."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"a mapping with any of {', '.join(known)}")
        for key in self.value:
            if key not in known:
                raise self.unknown("key", key, known)
        return Fields(self, {key: self.child(key) for key in self.value})

    def named(self) -> dict[str, Node]:
        """Return the entries of a mapping whose keys are names."""
        if not isinstance(self.value, dict) or not self.value:
            raise self.wrong("a mapping with at least one entry, as in `column: kind`")
        return {key: self.child(key) for key in self.value}

    def items(self) -> list[Node]:
        if not isinstance(self.value, list) or not self.value:
            raise self.wrong("a list with at least one entry")
        return [Node(self.file, f"{self.at}[{i}]", item) for i, item in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("a text")
        return self.value

    def number(self, low: float, high: float, expected: str) -> float:
        """Return a number with low < number < high."""
        try:
            number = float(self.text())
        except ValueError:
            raise self.wrong(expected) from None
        if not low < number < high:
            raise self.wrong(expected)
        return number

    def integer(self, low: int, high: int = 2**32 - 1) -> int:
        """Return a whole number with low <= number <= high; by default what a seed may be."""
        expected = f"a whole number from {low} to {high}"
        try:
            number = int(self.text())
        except ValueError:
            raise self.wrong(expected) from None
        if not low <= number <= high:
            raise self.wrong(expected)
        return number

    def option(self, what: str, known: Iterable[str]) -> str:
        text = self.text()
        options = tuple(known)
        if text not in options:
            raise self.unknown(what, text, options)
        return text


class Fields(dict[str, Node]):
    """The entries of a mapping with known keys."""

    def __init__(self, owner: Node, entries: dict[str, Node]) -> None:
        super().__init__(entries)
        self.owner = owner

    def need(self, key: str, what: str) -> Node:
        if key not in self:
            raise self.owner.wrong(f"the key {key!r} with {what}")
        return self[key]


def _encoder(node: Node) -> EncoderSize:
    given = node.fields("width", "depth", "dropout", "words")
    default = EncoderSize()
    return EncoderSize(
        width=given["width"].integer(1) if "width" in given else default.width,
        depth=given["depth"].integer(1) if "depth" in given else default.depth,
        dropout=given["dropout"].number(-1e-9, 1.0, "a probability in [0, 1)")
        if "dropout" in given
        else default.dropout,
        words=given["words"].integer(1) if "words" in given else default.words,
    )


def _table(node: Node, folder: Path) -> DeclaredTable:
    given = node.fields("name", "file", "split", "inputs", "targets", "missing", "delimiter")
    files = _files(given.need("file", "the path of a table"), folder)
    name = given["name"].text() if "name" in given else _stem(next(iter(files.values())))
    inputs = tuple(_input(k, v) for k, v in given.need("inputs", "columns").named().items())
    targets = tuple(_target(k, v) for k, v in given.need("targets", "tasks").named().items())
    split = _split(given["split"], files) if "split" in given else Fractions()
    read_twice = {i.column for i in inputs} & {c for t in targets for c in t.columns}
    if read_twice:
        raise UsageError(
            f"{node.file}: table {name!r} has {_names(read_twice)} both as input and as target; "
            "the label would be given away. Keep one of the two."
        )
    if isinstance(split, ByColumn) and split.column in {i.column for i in inputs}:
        raise UsageError(
            f"{node.file}: table {name!r} has {split.column!r} both as input and as the column "
            "of the split; leave it out of the inputs."
        )
    if any(t.kind == "sequence" for t in targets):
        written = [i for i in inputs if i.kind in ("text", "tokens")]
        if [i.kind for i in written] != ["tokens"]:
            found = ", ".join(f"{i.name}: {i.kind}" for i in written) or "none"
            raise UsageError(
                f"{node.file}: table {name!r} has a sequence target, which labels the words of "
                f"one input of kind tokens and no text beside it; the inputs of words are {found}."
            )
    delimiter = given.get("delimiter")
    if delimiter is not None and len(delimiter.text()) != 1:
        raise delimiter.wrong('one character, such as ";" or "\\t" in double quotes')
    return DeclaredTable(
        name=name,
        files=files,
        split=split,
        inputs=inputs,
        targets=targets,
        missing=frozenset(_missing(given["missing"]) if "missing" in given else MISSING),
        delimiter=None if delimiter is None else delimiter.value,
    )


def _missing(node: Node) -> list[str]:
    if not isinstance(node.value, list) or not all(isinstance(v, str) for v in node.value):
        raise node.wrong('a list of cells, such as ["", "NA"]')
    return [value.strip() for value in node.value]


def _files(node: Node, folder: Path) -> dict[Literal["all"] | Split, Path]:
    if isinstance(node.value, str):
        return {"all": folder / node.text()}
    given = node.fields(*SPLITS)
    given.need("train", "the path of a table")
    return {name: folder / given[name].text() for name in SPLITS if name in given}


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or path.name


def _split(node: Node, files: Mapping[Literal["all"] | Split, Path]) -> Fractions | ByColumn:
    given = node.fields("val", "test", "seed", "group", "column")
    if "column" in given:
        if len(given) > 1:
            raise node.wrong("either `column`, or any of val, test, seed and group")
        if "all" not in files:
            raise node.wrong("no `column` beside a file per split")
        return ByColumn(given["column"].text())
    for name in ("val", "test"):
        if name in given and name in files:
            raise node.wrong(f"no share for {name}, which has its own file")
    default = Fractions()
    expected = "a share of the rows above 0 and below 1"
    split = Fractions(
        val=given["val"].number(0, 1, expected) if "val" in given else default.val,
        test=given["test"].number(0, 1, expected) if "test" in given else default.test,
        seed=given["seed"].integer(0) if "seed" in given else default.seed,
        group=given["group"].text() if "group" in given else default.group,
    )
    if split.val + split.test >= 1:
        raise node.wrong(
            f"shares that leave rows for train (val {split.val:g} + test {split.test:g} < 1)"
        )
    return split


def _input(name: str, node: Node) -> Input:
    kinds = get_args(InputKind)
    if isinstance(node.value, str):
        return Input(name, node.option("kind of input", kinds), name)  # type: ignore[arg-type]
    given = node.fields("kind", "column")
    kind = given.need("kind", f"one of {', '.join(kinds)}").option("kind of input", kinds)
    column = given["column"].text() if "column" in given else name
    return Input(name, kind, column)  # type: ignore[arg-type]  # option() returned one of kinds


def _target(task: str, node: Node) -> Target:
    kinds = get_args(TargetKind)
    if isinstance(node.value, str):
        kind = node.option("kind of target", kinds)
        if kind == "multilabel":
            raise node.wrong("{kind: multilabel, columns: [...]}, one column per label")
        return Target(task, kind, (task,))  # type: ignore[arg-type]
    every = node.fields("kind", "column", "columns", "positive", "unit")
    kind = every.need("kind", f"one of {', '.join(kinds)}").option("kind of target", kinds)
    if kind == "multilabel":
        given = node.fields("kind", "columns")
        columns = tuple(c.text() for c in given.need("columns", "one column per label").items())
        if len(set(columns)) != len(columns):
            raise given["columns"].wrong("each column once")
        return Target(task, "multilabel", columns)
    own = {"binary": ("positive",), "regression": ("unit",)}
    given = node.fields("kind", "column", *own.get(kind, ()))
    return Target(
        task,
        kind,  # type: ignore[arg-type]  # option() returned one of kinds
        (given["column"].text() if "column" in given else task,),
        given["positive"].text() if "positive" in given else None,
        given["unit"].text() if "unit" in given else Target.unit,
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def _agree(path: Path, tables: tuple[DeclaredTable, ...]) -> None:
    names = [table.name for table in tables]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(
            f"{path}: tables must have names of their own, but {_names(twice)} occurs more than "
            "once; give each a `name`."
        )
    first = tables[0]
    tasks: dict[str, tuple[str, Target]] = {}
    for table in tables:
        _same_inputs(path, first, table)
        for target in table.targets:
            where, known = tasks.setdefault(target.task, (table.name, target))
            if _spoken(known) != _spoken(target):
                raise UsageError(
                    f"{path}: the task {target.task!r} is {_spoken(known)} in table {where!r} and "
                    f"{_spoken(target)} in {table.name!r}; one task has one kind. Make them equal, "
                    "or give one another name with {column: ..., kind: ...}."
                )
            if target.kind == "multilabel" and known.columns != target.columns:
                raise UsageError(
                    f"{path}: the task {target.task!r} has the labels {', '.join(known.columns)} "
                    f"in table {where!r} and {', '.join(target.columns)} in {table.name!r}; one "
                    "task has the same labels everywhere."
                )


def _spoken(target: Target) -> str:
    said = f" (positive {target.positive!r})" if target.positive else ""
    return f"{target.kind}{said}" + (f" in {target.unit}" if target.unit != Target.unit else "")


def _same_inputs(path: Path, one: DeclaredTable, two: DeclaredTable) -> None:
    ones = {i.name: i.kind for i in one.inputs}
    twos = {i.name: i.kind for i in two.inputs}
    differing = [
        *(f"{name!r} only in {one.name!r}" for name in ones.keys() - twos.keys()),
        *(f"{name!r} only in {two.name!r}" for name in twos.keys() - ones.keys()),
        *(
            f"{name!r} is {ones[name]} in {one.name!r} and {twos[name]} in {two.name!r}"
            for name in ones.keys() & twos.keys()
            if ones[name] != twos[name]
        ),
    ]
    if differing:
        raise UsageError(
            f"{path}: all tables must have the same inputs, but {'; '.join(sorted(differing))}. "
            "Leave out what they do not share, or rename with {column: ..., kind: ...}."
        )
