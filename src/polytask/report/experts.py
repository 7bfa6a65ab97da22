"""Who uses which expert, as the page shows it: a grid per level, and what deserves a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from polytask.records import GateUse, Record
from polytask.report.curves import digits

SHARED = "the shared part"
"""What the page calls a reader that is no task."""


def pack_experts(records: Sequence[Record]) -> dict[str, Any] | None:
    """Return what the page shows of one method's use of experts; None where it has none.

    records: one per seed. The grids are the first seed's, because which expert is which is an
    accident of the seed; warnings are counted over all.
    """
    first = records[0]
    if not first.experts:
        return None
    counts = Counter(text for record in records for text in record.warnings)
    return {
        "seed": first.seed,
        "seeds": len(records),
        "levels": [
            _level(number, [gate for gate in first.experts if gate.level == number])
            for number in sorted({gate.level for gate in first.experts})
        ],
        "warnings": [{"text": text, "seeds": count} for text, count in counts.items()],
    }


def _level(number: int, gates: Sequence[GateUse]) -> dict[str, Any]:
    """Return one grid: a row per reader, a column per expert; None where a reader cannot see it."""
    columns: dict[tuple[str, str | None], int] = {}
    for owned in (False, True):  # shared experts first, then every task's own
        for gate in gates:
            for expert in zip(gate.experts, gate.owners, strict=True):
                if (expert[1] is not None) == owned:
                    columns.setdefault(expert, len(columns))
    rows = []
    for gate in gates:
        row: list[float | None] = [None] * len(columns)
        for name, owner, weight in zip(gate.experts, gate.owners, gate.mean, strict=True):
            closed = weight == 0 and owner not in (None, gate.reader) and gate.reader is not None
            row[columns[name, owner]] = None if closed else digits(weight)
        rows.append(row)
    return {
        "level": number,
        "readers": [SHARED if gate.reader is None else gate.reader for gate in gates],
        "experts": [n if owner is None else f"{owner}: {n}" for n, owner in columns],
        "mean": rows,
        "entropy": [digits(gate.entropy) for gate in gates],
        "own": [digits(gate.own) for gate in gates],
        "rows": [gate.rows for gate in gates],
    }
