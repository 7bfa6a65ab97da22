"""A mix inside another: shares among some of the streams, or among groups of them.

Shapes: S = all streams, K = those chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.mix.base import Mix, Now, Streams, Varies


def among(mix: Mix, streams: Streams, chosen: Sequence[int], now: Now) -> Tensor:
    """Return the shares (S,) that `mix` gives the chosen streams; the others get 0."""
    index_K = torch.tensor(chosen, dtype=torch.int64)
    some = Streams(tuple(streams.names[s] for s in chosen), streams.sizes_S[index_K])
    shares_S = torch.zeros(len(streams), dtype=torch.float64)
    shares_S[index_K] = mix(some, now, mix.start(some))
    return shares_S


def check_inner(outer: str, mix: Mix) -> None:
    """Refuse a method that looks at losses where only one that needs none can stand."""
    if mix.observes:
        raise UsageError(
            f"{outer}: {type(mix).__name__} looks at losses and cannot mix inside {outer}; give "
            "one that looks at sizes and steps alone, such as Temperature()."
        )


def most_varying(*found: Varies) -> Varies:
    """Return what moves the shares of a method made of several."""
    order: tuple[Varies, ...] = ("never", "by step", "by run")
    return max(found, key=order.index)


def check_part(method: str, name: str, value: float) -> None:
    """Refuse a part of the run that is none."""
    if not 0 < value <= 1:
        raise UsageError(
            f"{method}: {name} is {value}; give a part of the run, above 0 and at most 1."
        )


def check_some(method: str, name: str, chosen: Sequence[int], streams: Streams) -> None:
    """Refuse a choice of none or of all streams where it parts them in two."""
    if not chosen or len(chosen) == len(streams):
        which = "all" if chosen else "none"
        raise UsageError(
            f"{method}: {name} names {which} of the {len(streams)} streams; name some and leave "
            f"some. The streams: {', '.join(streams.names)}."
        )
