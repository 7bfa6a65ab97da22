"""A heat map of where two models differ: one SVG file, readable without anything else."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from polytask.merge.diff import Diff, Difference, layer_of, total

CELL, ROW, LEFT, TOP = 92, 22, 10, 78
"""Pixels: a cell's width and height, what is left of the names, and above the first row."""

CHARACTER = 6.7
"""Pixels of one, at the size of the labels."""

LOW, HIGH = (247, 251, 255), (8, 48, 107)
"""Colours of no difference and of the largest; light to dark, so that it prints in grey."""

ROWS = 200
"""Layers that are drawn; of more, those that differ most."""


def heat_map(found: Diff) -> str:
    """Return the picture: a row per layer, a column per kind of tensor; darker is further apart.

    The colour stands for |B - A| / |A|, on a logarithmic scale; every cell says its number, and
    shows all figures where the mouse rests on it.
    """
    cells: dict[str, dict[str, list[Difference]]] = {}
    for name, one in found.tensors.items():
        layer = layer_of(name)
        kind = name[len(layer) :].lstrip(".") or "all of it"
        cells.setdefault(layer, {}).setdefault(kind, []).append(one)
    layers = found.layers
    shown = list(layers)
    if len(shown) > ROWS:
        most = set(sorted(shown, key=lambda layer: -layers[layer].distance)[:ROWS])
        shown = [layer for layer in shown if layer in most]
    inside = {kind for layer in shown for kind in cells[layer] if kind != "all of it"}
    kinds = [
        kind for kind in dict.fromkeys(k for layer in shown for k in cells[layer]) if kind in inside
    ]
    columns = ["all", *kinds]
    values = [d.distance for d in (*found.tensors.values(), *layers.values())]
    ends = _ends(values)
    names = max((len(layer) for layer in shown), default=1) * CHARACTER + LEFT + 12
    tall = max((len(kind) for kind in columns), default=1) * CHARACTER * 0.72 + TOP
    parts = []
    for column, kind in enumerate(columns):
        x = names + column * CELL + CELL / 2
        parts.append(
            f'<text x="{x:.0f}" y="{tall - 8:.0f}" transform="rotate(-45 {x:.0f} {tall - 8:.0f})">'
            f"{escape(kind)}</text>"
        )
    for row, layer in enumerate(shown):
        y = tall + row * ROW
        parts.append(
            f'<text x="{names - 8:.0f}" y="{y + ROW - 7:.0f}" text-anchor="end">'
            f"{escape(layer)}</text>"
        )
        for column, kind in enumerate(columns):
            held = [layers[layer]] if kind == "all" else cells[layer].get(kind)
            if held:
                title = layer if kind == "all" else f"{layer}.{kind}"
                parts.append(_cell(names + column * CELL, y, total(held), title, ends))
    diagonal = max((len(kind) for kind in columns), default=1) * CHARACTER
    width = names + len(columns) * CELL + diagonal * 0.75 + 20
    height = tall + len(shown) * ROW + 20
    return _page(width, height, found, ends, "\n".join(parts))


def _ends(values: list[float]) -> tuple[float, float]:
    """Return the least and the largest finite distance above 0, at least a factor 10 apart: what
    hardly differs shall not look as if it did."""
    finite = [value for value in values if 0 < value < math.inf]
    return (min(*finite, max(finite) / 10), max(finite)) if finite else (0.1, 1.0)


def _shade(value: float, ends: tuple[float, float]) -> float:
    """Return where a distance lies between the ends, from 0 to 1, by its logarithm."""
    if value == 0:
        return 0.0
    if not math.isfinite(value):
        return 1.0
    low, high = map(math.log, ends)
    # The least that is not 0 is told from 0.
    return 0.08 + 0.92 * (math.log(value) - low) / (high - low)


def _colour(shade: float) -> str:
    mixed = (round(a + (b - a) * shade) for a, b in zip(LOW, HIGH, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _cell(x: float, y: float, one: Difference, title: str, ends: tuple[float, float]) -> str:
    shade = 1.0 if math.isnan(one.distance) else _shade(one.distance, ends)
    ink = "#ffffff" if shade > 0.5 else "#1b1b1b"
    said = (
        f"{title}: relative distance {one.distance:.4g}, cosine {one.cosine:.4g}, opposite signs "
        f"{one.conflict:.2%}, largest change {one.largest:.4g}, {one.elements:,} elements"
    )
    return (
        f'<g><title>{escape(said)}</title><rect x="{x:.0f}" y="{y:.0f}" width="{CELL - 2}" '
        f'height="{ROW - 2}" fill="{_colour(shade)}"/><text x="{x + CELL / 2 - 1:.0f}" '
        f'y="{y + ROW - 7:.0f}" text-anchor="middle" fill="{ink}">{one.distance:.3g}</text></g>'
    )


def _page(width: float, height: float, found: Diff, ends: tuple[float, float], cells: str) -> str:
    whole = found.whole
    a, b, *base = found.labels
    heading = f"{b} against {a}" + (f", as changes from {base[0]}" if base else "")
    width = max(width, len(heading) * 8.6 + 20, 560)
    line = (
        f"relative distance {whole.distance:.3g}, cosine {whole.cosine:.4g}, opposite signs "
        f"{whole.conflict:.2%}; darker: further apart, from {ends[0]:.2g} to {ends[1]:.2g}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{escape(heading)}</text>\n'
        f'<text x="{LEFT}" y="42" fill="#555555">{escape(line)}</text>\n{cells}\n</svg>\n'
    )
