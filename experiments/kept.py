"""How experiments keep what they find: a file per run, a table per experiment, claims and a page.

Runs go to `runs/FOLDER/` below the working folder; one that is there is not made again. Tables
are committed: small, each with its command, its seeds and the versions it ran on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from polytask.catalog import method
from polytask.evaluate import Claim, Effect, decide, decide_against_all, interval
from polytask.evaluate.claims import Expected, save
from polytask.records import read_json, to_json, versions, write_json

Table = Mapping[str, Any]

Experiment = Any
"""A module with `claims(table)`, which decides what its table says, and `section(table)`, its part
of the page. The table bears the module's name."""

RULE = {"greater": "margin", "no worse": "no worse by", "equal": "equal within"}


@dataclass
class Kept:
    """What the experiments of one folder keep.

    folder: where their tables lie. runs: where their runs go.
    """

    folder: Path
    runs: Path

    def run(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the run of this name, made now where it is not there yet."""
        path = self.runs / f"{name}.json"
        if not path.exists():
            write_json(path, rounded(to_json(make())))
            print(name, flush=True)
        found: dict[str, Any] = read_json(path)
        return found

    def write(self, name: str, table: dict[str, Any]) -> None:
        """Write a table, one line per method, so that one changed figure is one line of a diff."""
        command = f"python experiments/{self.folder.name}/{name}.py"
        whole = {"command": command, "versions": versions()} | table
        text = json.dumps(rounded(to_json(whole)), separators=(",", ":"), allow_nan=False)
        text = text.replace("},", "},\n").replace("],", "],\n")
        (self.folder / f"{name}.json").write_text(text + "\n")

    def load(self, name: str) -> dict[str, Any] | None:
        """Return a table, None where its experiment was not run."""
        path = self.folder / f"{name}.json"
        return read_json(path) if path.exists() else None


@dataclass(frozen=True)
class Page:
    """The page `results.md` of a folder, and its `claims.json`, from the experiments' tables.

    head: the page's first lines. experiments: in its order; one without a table yet has no section.
    """

    kept: Kept
    head: str
    experiments: Sequence[Experiment]

    def tables(self) -> dict[str, Table]:
        """Return the tables that are there, by their experiments' names."""
        names = (experiment.__name__ for experiment in self.experiments)
        return {name: table for name in names if (table := self.kept.load(name))}

    def markdown(self, tables: Mapping[str, Table]) -> str:
        """Return the page: its head, and a section for each table."""
        there = [one for one in self.experiments if one.__name__ in tables]
        return "\n".join([self.head, *(one.section(tables[one.__name__]) for one in there)])

    def claims(self, tables: Mapping[str, Table]) -> list[Claim]:
        """Return the claims that these tables decide."""
        there = [one for one in self.experiments if one.__name__ in tables]
        return [claim for one in there for claim in one.claims(tables[one.__name__])]

    def write(self) -> None:
        """Write the page and the claims."""
        tables = self.tables()
        save(self.kept.folder, self.claims(tables))
        (self.kept.folder / "results.md").write_text(self.markdown(tables))


def rounded(value: Any) -> Any:
    """Return the same with numbers to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def claim(
    table: Table,
    system: str,
    words: str,
    setting: str,
    differences: Sequence[float],
    expected: Expected,
    margin: float,
    unit: str,
    *,
    paper: str = "",
    seeds: Sequence[int] = (),
    reason: str = "",
) -> Claim:
    """Return the record of one claim; `margin` is in the unit of the differences."""
    return Claim(
        system=system,
        paper=paper or method(system).source,
        claim=words,
        setting=f"{setting}; {RULE[expected]} {margin:g}",
        seeds=tuple(seeds or table["seeds"]),
        outcome=decide(differences, expected, margin),
        effect=Effect(fmean(differences), unit),
        interval=interval(differences),
        reason=reason,
        command=table["command"],
        versions=table["versions"],
    )


def claim_against_all(
    table: Table,
    system: str,
    words: str,
    setting: str,
    by_rival: Mapping[str, Sequence[float]],
    expected: Literal["greater", "no worse"],
    margin: float,
    unit: str,
) -> Claim:
    """Return the record of a claim against every one of several rivals; the hardest is shown.

    unit: in words that the hardest rival's name goes on.
    """
    outcome, hardest = decide_against_all(by_rival, expected, margin)
    alone = [decide(differences, expected, margin) for differences in by_rival.values()]
    made = claim(
        table, system, words, setting, by_rival[hardest], expected, margin, f"{unit} {hardest}",
        reason=f"against all of {', '.join(by_rival)}, the hardest shown; alone at 95 % it is seen "
        f"against {alone.count('seen')}, not seen against {alone.count('not seen')}",
    )  # fmt: skip
    return replace(made, outcome=outcome)


def minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def section(
    table: Table, title: str, head: Sequence[str], rows: Sequence[Sequence[str]], words: str = ""
) -> str:
    """Return one experiment's part of a page: a title, its command, a grid. words: below it."""
    ran = table["versions"]
    return "\n".join(
        [
            f"## {title}\n",
            f"`{table['command']}`; Python {ran['python']}, torch {ran['torch']}.\n",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            *([words, ""] if words else []),
        ]
    )


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation."""
    return f"{fmean(values):.4g} ± {stdev(values):.1g}"


def said(setting: Mapping[str, Any]) -> str:
    """Return a setting in few words: `lr 0.01, noise True`."""
    return ", ".join(f"{name} {value}" for name, value in setting.items())
