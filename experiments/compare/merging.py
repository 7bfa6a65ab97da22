"""The section of `docs/results.md` on merging, from the table of `../merge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from page import grid

from polytask.evaluate import interval

NAMES = {"cnn": "CNN", "vit": "ViT"}

TEXT = """\
## Merging eight image tasks: normalised accuracy in %

`python experiments/merge/eight.py --seed {seeds}`: a small CNN and a small ViT, pretrained on
CIFAR-10, tuned apart on eight image tasks, merged by every method. Mean over tasks of a merged
model's accuracy over that of the task's own tuned model, seeds {seeds}, with the 95 % interval of
the mean over seeds. *individual* and *joint* (one model trained on all) are the two ends, *base* is
the pretraining under the tasks' heads. Sorted by the mean of both backbones. *success* is how often
a backdoor planted in one of the models works after merging. Accuracy per task, factors and settings
stand in [`experiments/merge/results.md`](../experiments/merge/results.md), what was claimed in
[the ledger](claims.md).

Made with {versions}.

"""


def section(table: Mapping[str, Any]) -> str:
    """Return the section, of the methods that have all seeds; "" where nothing was run."""
    backbones = {name: rows for name, rows in table.get("backbones", {}).items() if rows}
    whole = {
        backbone: {n: row for n, row in rows.items() if row["seeds"] == table["seeds"]}
        for backbone, rows in backbones.items()
    }
    names = list(dict.fromkeys(n for rows in whole.values() for n in rows))
    if not names:
        return ""

    def mean(name: str) -> float:
        return fmean(fmean(rows[name]["normalised"]) for rows in whole.values() if name in rows)

    def cells(name: str) -> list[str]:
        found = [rows.get(name) for rows in whole.values()]
        shown = [spread(row["normalised"]) if row else "" for row in found]
        return shown + [
            f"{fmean(row['attack_success']):.0f} %" if row and "attack_success" in row else ""
            for row in found
        ]

    titles = [NAMES[backbone] for backbone in whole]
    head = ["method", *titles, *(f"success, {title}" for title in titles)]
    rows = [[name, *cells(name)] for name in sorted(names, key=lambda name: -mean(name))]
    made = table["versions"]
    text = TEXT.format(
        seeds=" ".join(map(str, table["seeds"])),
        versions=", ".join(f"{key} {made[key]}" for key in ("torch", "device") if key in made),
    )
    return "\n" + text + grid(head, rows)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean with its interval, where there is one."""
    found, mean = interval(values), f"{fmean(values):.{digits}f}"
    return mean + (f" [{found[0]:.{digits}f}, {found[1]:.{digits}f}]" if found else "")
