"""What recipes that train many runs have in common: folders of one identity, who is told."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from polytask.fit import FitConfig
from polytask.recipes.train import Job
from polytask.records import Values, to_json
from polytask.suites import SPLITS, Suite

DIVERGED = "diverged.json"
"""In the folder of a run whose loss left the finite numbers: where and why. It is not tried again;
a run that stopped with any other error is, from its last checkpoint."""


class Show(Protocol):
    """What a person sees meanwhile. phase: an index of `PHASES`; phases overlap."""

    def begin(self, runs: Sequence[int]) -> None:
        """There are this many runs in each phase, those that are done among them; told again
        where more turn out to be wanted."""

    def step(self, phase: int, job: Job, step: int, steps: int, losses: Values) -> None:
        """A run made progress: update `step` of at most `steps`."""

    def done(self, phase: int, job: Job, fresh: bool) -> None:
        """A run is done; not fresh: it was so before this comparison was called."""

    def failed(self, job: Job, reason: str, dropped: Sequence[int]) -> None:
        """A run stopped with an error, so this many runs of each phase will not take place.

        None where other settings may still do; then the run itself is told to `done`, as tried.
        """


def identity_of(suite: Suite, config: FitConfig) -> dict[str, Any]:
    """Return what two calls must have in common to share a folder: data and settings."""
    kept = config.identity()
    for free in ("lr", "weight_decay", "seed"):
        del kept[free]
    identity: dict[str, Any] = to_json(
        {
            "suite": suite.name,
            "tasks": list(suite.tasks.names),
            "data": _fingerprint(suite),
            "config": kept,
        }
    )
    return identity


def _fingerprint(suite: Suite) -> str:
    """Return a checksum of the training data, so that changed data is never mixed with old runs."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for stream in suite.split(split):
            inputs = (
                stream.inputs if isinstance(stream.inputs, Mapping) else {"inputs": stream.inputs}
            )
            for name, value in [*inputs.items(), *stream.targets.items()]:
                digest.update(f"{split}/{stream.name}/{name}/{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
