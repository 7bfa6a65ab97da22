"""How a run is trained: settings alone, frozen, as they stand in the record."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from polytask.errors import UsageError


@dataclass(frozen=True)
class FitConfig:
    """Settings of one run. Two runs with equal settings, suite and method are equal bit for bit.

    epochs: at most this many. An epoch is one pass over the training rows, or `min_epoch_steps`
        updates where a pass has fewer: so a task with few rows gets as many chances to be
        validated as one with many.
    batch_size: rows of one update, over all processes and micro-batches together.
    lr, weight_decay: of AdamW.
    schedule: "constant", or "cosine" from lr to 0 over all epochs.
    clip: largest global gradient norm, None for no clipping.
    accumulate: micro-batches per update; the update equals that of the whole batch.
    length_groups: parts of like length that padded rows of a batch run in, so that few long rows do
        not pad the many short ones. The update is that of the whole batch, but for rounding and
        dropout's draws.
    precision: "float32", or "bf16" for autocast of the forward pass.
    patience: epochs without a better validation score before the run stops; 0 never stops.
    probes: at most this many looks at the tasks' gradients (cosines, norms); 0 takes none.
    per_task_best: also keep, for every task, the weights that were best for it alone.
    nonfinite: what a loss or a gradient that is not finite does: "stop" the run, or "skip" that
        update, which the record's notes count.
    checkpoint_seconds: a checkpoint is written whenever this much time has passed; 0 for every
        update.
    """

    epochs: int = 50
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float | None = None
    accumulate: int = 1
    length_groups: int = 1
    precision: Literal["float32", "bf16"] = "float32"
    patience: int = 10
    min_epoch_steps: int = 20
    probes: int = 12
    per_task_best: bool = False
    nonfinite: Literal["stop", "skip"] = "stop"
    checkpoint_seconds: float = 30.0
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("accumulate", 1),
            ("length_groups", 1),
            ("min_epoch_steps", 1),
            ("patience", 0),
            ("probes", 0),
            ("checkpoint_seconds", 0),
            ("weight_decay", 0),
            ("seed", 0),
        ):
            if not least <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; give a value >= {least}.")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"lr is {self.lr}; give a learning rate > 0, such as 1e-3.")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip is {self.clip}; give a norm > 0, or none for no clipping.")
        if self.schedule not in ("constant", "cosine"):
            raise UsageError(f"schedule is {self.schedule!r}; give 'constant' or 'cosine'.")
        if self.precision not in ("float32", "bf16"):
            raise UsageError(f"precision is {self.precision!r}; give 'float32' or 'bf16'.")
        if self.nonfinite not in ("stop", "skip"):
            raise UsageError(f"nonfinite is {self.nonfinite!r}; give 'stop' or 'skip'.")
        if self.accumulate > self.batch_size:
            raise UsageError(
                f"accumulate is {self.accumulate}, more than the {self.batch_size} rows of a "
                "batch; give fewer micro-batches."
            )

    def identity(self) -> dict[str, Any]:
        """Return the settings that two runs must have in common to be one."""
        settings = asdict(self)
        # How often a run saves itself changes nothing in its result.
        del settings["checkpoint_seconds"]
        # What most runs leave alone; so folders from before these settings stay good.
        if self.nonfinite == "stop":
            del settings["nonfinite"]
        if self.length_groups == 1:
            del settings["length_groups"]
        return settings
