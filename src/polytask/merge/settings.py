"""Values of a recipe that may differ from tensor to tensor: a number, a gradient over the layers,
or conditions on the tensor's name. They mean what they mean in mergekit's recipes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polytask.errors import UsageError

Value = float | bool | str

LAYER = re.compile(r"(?:^|.*?\.)(\d+)\.")
"""The first number in a tensor's name is its layer."""


@dataclass(frozen=True)
class Layers:
    """Of each tensor with a layer its place from 0 (the first layer) to 1 (the last)."""

    places: Mapping[str, float] = field(default_factory=dict)
    count: int = 0

    @classmethod
    def of(cls, names: Iterable[str]) -> Layers:
        """Return the places of all tensors of a model; layers are counted apart by what is before
        their number, such as an encoder's and a decoder's."""
        found = {name: match for name in names if (match := LAYER.match(name))}
        last: dict[str, int] = {}
        for name, match in found.items():
            stem = name[: match.start(1)]
            last[stem] = max(last.get(stem, 0), int(match[1]))
        places = {
            name: int(match[1]) / last[stem] if last[stem := name[: match.start(1)]] else 1.0
            for name, match in found.items()
        }
        return cls(places, max(last.values(), default=-1) + 1)


def check(raw: Any, what: str) -> Any:
    """Return a setting as it is, or raise UsageError where it is none of the three forms."""
    if isinstance(raw, (bool, int, float, str)):
        return raw
    if isinstance(raw, Mapping):
        return check([raw], what)
    if isinstance(raw, list) and raw:
        if all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in raw):
            return raw
        if all(isinstance(item, Mapping) for item in raw):
            for item in raw:
                extra = sorted(set(map(str, item)) - {"filter", "value"})
                if extra or "value" not in item:
                    raise UsageError(
                        f"{what}: a condition has the keys filter and value; "
                        f"{f'{extra[0]!r} is none' if extra else 'value is missing'}."
                    )
                check(item["value"], what)
            return raw
    raise UsageError(
        f"{what} is {raw!r}; give a value, numbers from the first layer to the last, or conditions "
        "with filter and value."
    )


def varies(raw: Any) -> bool:
    """Return whether a setting depends on the tensor."""
    return not isinstance(raw, (bool, int, float, str))


def value(raw: Any, name: str, layers: Layers) -> Value | None:
    """Return a setting's value for a tensor; None where no condition holds.

    Tensors outside the layers, such as embeddings, take the first value of a gradient.
    """
    if not varies(raw):
        found: Value = raw
        return found
    if isinstance(raw[0], Mapping):
        for item in raw:
            pattern = item.get("filter")
            if pattern is None or pattern == "*" or str(pattern) in name:
                return value(check(item["value"], "value"), name, layers)
        return None
    at = layers.places.get(name, 0.0) * (len(raw) - 1)
    low = min(int(at), len(raw) - 1)
    high = min(low + 1, len(raw) - 1)
    return float(raw[low] + (at - low) * (raw[high] - raw[low]))
