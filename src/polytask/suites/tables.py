"""A suite from a person's own tables, as their YAML file declares it (see docs/own-data.md).

Whatever is learned from the data (means, codes, words, classes) is learned on the training rows
of all tables together, as one encoder and one head per task read them all.
"""

from __future__ import annotations

from pathlib import Path

from polytask.suites.base import SPLITS, About, Split, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.parts import split_tables
from polytask.suites.schema import ByColumn, Declaration, DeclaredTable, parse
from polytask.suites.table_inputs import TableInputs
from polytask.suites.table_labels import read_labels


def load_yaml(path: str | Path) -> Suite:
    """Return the suite that the YAML file at `path` declares. The same files give the same suite.

    Raises UsageError for a faulty declaration and DataError for faulty tables; both name the
    file and the place in it.
    """
    declared = parse(Path(path))
    parts = split_tables(declared.tables)
    notes = [*parts.notes]
    inputs = TableInputs.learn(declared, parts)
    tasks, labels = read_labels(declared, parts, notes)
    splits: dict[Split, list[Stream]] = {split: [] for split in SPLITS}
    for table in declared.tables:
        for split in SPLITS:
            encoded, lengths = inputs.encode(table, parts[table.name, split])
            targets = {t.task: labels[table.name, split, t.task] for t in table.targets}
            sequences = [t.task for t in table.targets if t.kind == "sequence"]
            ragged = () if lengths is None else ("tokens", *sequences)
            splits[split].append(Stream(table.name, encoded, targets, ragged, lengths))
    return make_suite(
        name=declared.name,
        tasks=tasks,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        encoder=inputs.encoder,
        width=declared.encoder.width,
        about=_about(declared),
        batch_size=declared.batch_size,
        epochs=declared.epochs,
        notes=(*notes, *inputs.notes),
        fields=inputs.fields if inputs.vocabulary is None else None,
    )


def _about(declared: Declaration) -> About:
    files = [str(path) for table in declared.tables for path in table.files.values()]
    protocol = "; ".join(f"{table.name}: {_spoken(table)}" for table in declared.tables)
    return About(
        title=declared.about.get("title", declared.name),
        source=declared.about.get("source", ", ".join(files)),
        licence=declared.about.get("licence", "not stated"),
        citation=declared.about.get("citation", f"own tables, declared in {declared.path.name}"),
        protocol=protocol,
    )


def _spoken(table: DeclaredTable) -> str:
    rule = table.split
    if isinstance(rule, ByColumn):
        return f"split by the column {rule.column!r}"
    given = [split for split in SPLITS if split in table.files]
    shares = {"val": rule.val, "test": rule.test}
    drawn = [f"{share:g} {split}" for split, share in shares.items() if split not in given]
    words = [f"{', '.join(given)} as given"] if given else []
    if drawn:
        by = f" by the groups of {rule.group!r}" if rule.group else ""
        words.append(f"{' and '.join(drawn)} drawn at random{by} with seed {rule.seed}")
    return "; ".join(words)
