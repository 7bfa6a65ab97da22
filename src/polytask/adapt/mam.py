"""MAM: a short prefix in attention, and a scaled parallel bottleneck around the feed-forward block.

Source: He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning", ICLR 2022,
    https://arxiv.org/abs/2110.04366, section 4.6: prefix of 30, bottleneck of 512, scale 4
Differs from the source: nothing known of its parts but what `prefix.py` and `bottleneck.py` say.
Shapes: none of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from polytask.adapt.bottleneck import Bottleneck
from polytask.adapt.engine import At
from polytask.adapt.prefix import PrefixTuning
from polytask.adapt.where import Where


def MAM(
    feed_forward: Where | str | Sequence[str],
    attention: Where | str | Sequence[str] = (),
    length: int = 30,
    width: int = 512,
    scale: float = 4.0,
    hidden: int = 0,
) -> list[At]:
    """Return both parts with their places, for `adapt(model, MAM("mlp"), tasks)`.

    feed_forward: the blocks, as modules: their input and output have one width. attention: which
    of the model's; () is all that takes a prefix. length, hidden: see `PrefixTuning`. width,
    scale: see `Bottleneck`.
    """
    where = Where(kinds=("attention",)) if attention == () else attention
    return [
        At(PrefixTuning(length, hidden=hidden), where),
        At(Bottleneck(width, source="parallel", scale=scale), feed_forward),
    ]
