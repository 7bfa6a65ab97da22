"""Who uses which expert, measured on rows of the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from polytask.fit.validate import chunks
from polytask.share import ExpertUse, SharedModel, UseMeter
from polytask.suites import Stream

ROWS = 4096
"""How many of each stream are looked at: a mean weight is then known to 0.01."""


def used_experts(
    model: SharedModel, streams: Sequence[Stream], batch_size: int, device: str
) -> ExpertUse:
    """Return what each task takes on the first rows of the streams that label it.

    Costs a forward pass of at most `ROWS` rows a stream; one batch for a model without gates.
    """
    meter = UseMeter(model)
    for stream in streams:
        tasks = [task for task in model.tasks if task in stream.targets]
        batches = islice(chunks(stream, batch_size, device), -(-ROWS // batch_size))
        for _, _, inputs in batches if tasks else ():
            if not meter.add(inputs, tasks):
                return meter.compute()
    return meter.compute()
