"""The sections of `docs/results.md` on adapters, from the tables of `../adapt`."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from merging import spread
from page import grid

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


def pictures(table: Mapping[str, Any]) -> str:
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
