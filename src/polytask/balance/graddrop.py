"""GradDrop: in every coordinate one sign is drawn, and gradients of the other sign are dropped.

Source: Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign
    Dropout", NeurIPS 2020, https://arxiv.org/abs/2010.06808, algorithm 1
Differs from the source: applied to the gradients of the shared parameters (as the source allows),
    not to those of one layer's activations, so that there is no batch to sum over. The draw
    follows from the seed and the step. One leak for all tasks.
Shapes: K = tasks present, P = shared parameters, C = columns of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.gradients import CHUNK
from polytask.errors import UsageError


@dataclass(frozen=True)
class GradDrop:
    """A direction: the sum of the gradients' coordinates whose sign was drawn.

    Positive is drawn with the probability (1 + sum_k g_k / sum_k |g_k|) / 2.
    leak: in [0, 1], the part of a dropped coordinate that stays; 1 is the plain sum.
    seed: >= 0; of the draws, made anew at every step.
    """

    needs: ClassVar[Needs] = "rows"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    leak: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.leak <= 1:
            raise UsageError(f"GradDrop: leak is {self.leak}; give a number from 0 to 1.")
        if self.seed < 0:
            raise UsageError(f"GradDrop: seed is {self.seed}; give an integer >= 0.")

    def start(self, tasks: int) -> State:
        """Return an empty state: the draw follows from the seed and the step alone."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return the direction, (P,), and weights of 1."""
        rows_KP = signal.rows_KP
        assert rows_KP is not None, "the engine gives the rows to methods that need them"
        words = np.random.SeedSequence((self.seed, signal.step)).generate_state(2)
        generator = torch.Generator(rows_KP.device)
        generator.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
        direction_P = torch.empty_like(rows_KP[0])
        for rows_KC, into_C in zip(
            rows_KP.split(CHUNK, dim=1),  # type: ignore[no-untyped-call]
            direction_P.split(CHUNK),  # type: ignore[no-untyped-call]
            strict=True,
        ):
            drawn_C = torch.rand(
                into_C.shape, generator=generator, dtype=rows_KP.dtype, device=rows_KP.device
            )
            plus_C = rows_KC.clamp(min=0).sum(0)
            minus_C = rows_KC.clamp(max=0).sum(0)
            # plus / (plus - minus) is the probability; products, so that 0 / 0 never comes up.
            positive_C = drawn_C * (plus_C - minus_C) < plus_C
            kept_C = torch.where(positive_C, plus_C, minus_C)
            dropped_C = torch.where(positive_C, minus_C, plus_C)
            into_C.copy_(kept_C + self.leak * dropped_C)
        return Update(state, torch.ones_like(signal.losses_K), direction_P=direction_P)
