"""The sections of `docs/results.md` on adapters, from the tables of `../adapt`."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from merging import spread
from page import grid

Table = Mapping[str, Any]

TEXTS = """\
## Adapting a sentence encoder to fourteen text tasks: delta-m in %

`{command}`: all-MiniLM-L6-v2 on the suite minilm, 160 rows a task, two passes. Delta-m against
all weights trained for each task alone with the same seed; *seeds*: how many. *lost*: tasks more
than 2 % below it. *rows, pairs, labels*: mean relative gain of the eight tasks on single texts,
of the four on pairs, and of intents and slots. *trained*: what is trained beside the heads. *ms*:
training time of an update on a busy machine, two runs at a time, to be compared within the table
alone. *MB*: the weights that a run keeps. One learning rate for adapters and one for whole
models, nothing tuned. Scores of every task stand in
[`experiments/adapt`](../experiments/adapt/results.md), what was claimed in [the
ledger](claims.md).

Made with torch {torch}.

"""

KINDS = {
    "rows": ("mr", "subj", "cr", "mpqa", "trec", "sst2", "sst5", "cola"),
    "pairs": ("rte", "wnli", "relatedness", "entailment"),
    "labels": ("intent", "slots"),
}

FEW = """\
## Few rows of a text task that was held out: accuracy in %

`{command}`: {rows} rows of a task that none of the eleven source tasks is, 60 updates, seeds
{seeds}. *trained*: all that training moves, heads included.

Made with torch {torch}.

"""

PICTURES = """\
## Adapting a hierarchical transformer to two dense tasks: delta-m in %

`{command}`: a transformer of windows with {weights} weights, pretrained on CIFAR-10 in minutes,
adapted to camvid's classes of pixels and distances to edges; a decoder for each task, {epochs}
epochs. Delta-m against all weights trained for each task alone, seeds {seeds}, with the 95 %
interval of the mean over seeds. *weights*: what is trained apart from the decoders. Rules, settings
and costs stand in [`experiments/adapt`](../experiments/adapt/results.md), what was claimed in [the
ledger](claims.md).

Made with torch {torch}.

"""


def sections(texts: Table, few: Table, dense: Table) -> str:
    """Return the sections on `minilm.py`, `transfer.py` and `vision.py`."""
    return on_texts(texts) + few_rows(few) + pictures(dense)


def on_texts(table: Table) -> str:
    """Return the section on `minilm.py`, best first; "" where nothing was run."""
    if not table:
        return ""
    rows = []
    for row in sorted(table["rows"], key=lambda row: -row["delta_m"]):
        if row["method"] == "single":
            continue
        gains = {task: fmean(of_seed) for task, of_seed in row["gains"].items()}
        rows.append(
            [
                f"`{row['method']}`",
                f"{row['delta_m']:+.1f}",
                str(len(row["by_seed"])),
                str(row["lost"]),
                *(f"{fmean(gains[task] for task in tasks):+.1f}" for tasks in KINDS.values()),
                f"{row['trained'] - table['heads']:,}",
                f"{row['step_ms']:.0f}",
                f"{row['bytes'] / 1e6:.2f}",
            ]
        )
    head = ["method", "delta-m", "seeds", "lost", *KINDS, "trained", "ms", "MB"]
    text = TEXTS.format(command=table["command"], torch=table["versions"]["torch"])
    return "\n" + text + grid(head, rows)


def few_rows(table: Table) -> str:
    """Return the section on `transfer.py`; "" where nothing was run."""
    if not table:
        return ""
    rows = []
    for name, by_target in table["methods"].items():
        runs = [run for of in by_target.values() for run in of]
        each = (fmean(run["accuracy"] for run in of) for of in by_target.values())
        mean = fmean(run["accuracy"] for run in runs)
        most = max(run["trained"] for run in runs)
        rows.append([name, f"{mean:.1f}", *(f"{value:.1f}" for value in each), f"{most:,}"])
    rows.sort(key=lambda row: -float(row[1]))
    text = FEW.format(
        command=table["command"],
        rows=table["rows"],
        seeds=" ".join(map(str, table["seeds"])),
        torch=table["versions"]["torch"],
    )
    return "\n" + text + grid(["method", "mean", *table["targets"], "trained"], rows)


def pictures(table: Table) -> str:
    """Return the section on `vision.py`, best first; "" where nothing was run."""
    if not table:
        return ""
    rows = [
        [
            name,
            spread(row["delta_m"], 2),
            f"{fmean(row['segments']):.3f}",
            f"{fmean(row['edge_distance']):.3f}",
            f"{row['own']:,}",
        ]
        for name, row in sorted(table["rows"].items(), key=lambda item: -fmean(item[1]["delta_m"]))
    ]
    text = PICTURES.format(
        command=table["command"],
        weights=f"{table['encoder']['weights']:,}",
        epochs=table["epochs"],
        seeds=" ".join(map(str, table["seeds"])),
        torch=table["versions"]["torch"],
    )
    head = ["trained", "delta-m", "mean IoU", "RMSE of edge_distance, px", "weights"]
    return "\n" + text + grid(head, rows)
