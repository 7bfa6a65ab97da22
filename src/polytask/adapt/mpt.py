"""MPT: one prompt shared by all tasks, times a matrix of rank one for each task.

    prompt_t = shared * (u_t v_t^T), elementwise

The shared prompt is distilled: prompts of the source tasks are trained apart first
(`PromptTuning`), and MPT's model learns to give what theirs gives, `PromptDistillation`.

Source: Wang, Panda, Karlinsky, Feris, Sun & Kim, "Multitask Prompt Tuning Enables
    Parameter-Efficient Transfer Learning", ICLR 2023, https://arxiv.org/abs/2303.02861; and PEFT
Differs from the source: u and v start at N(0, 0.02^2), as in PEFT. Distillation's form is from
    memory of the paper: the divergence from the teacher's output distribution and the squared
    distance of hidden states, added to the tasks' losses with one weight, 0.9.
Shapes: B = rows of the batch, L = positions, T = tasks, P = positions of the prompt, E = channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Method, Rows, normal
from polytask.adapt.prompt import PromptAdapter, PromptTuning, Start
from polytask.errors import UsageError


@dataclass(frozen=True)
class MPT(Method):
    """Puts positions before what an embedding, or a module named for it, returns, (B, L, E).

    length, start: see `PromptTuning`; of the shared prompt. std: of the first u and v, and of a
    shared prompt that starts from "normal".
    """

    kinds = PromptTuning.kinds

    length: int = 20
    start: Start = "entries"
    std: float = 0.02

    def __post_init__(self) -> None:
        self.plain  # noqa: B018 - checks what it shares with it
        if not self.std > 0:
            raise UsageError(f"MPT: std is {self.std}; give a number > 0 (default 0.02).")

    @property
    def plain(self) -> PromptTuning:
        """What the shared prompt alone would be."""
        return PromptTuning(self.length, self.start, self.std)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the shared prompt, and the factors of T tasks."""
        return MPTAdapter(layer, self, tasks, generator)


class MPTAdapter(Adapter):
    """shared_PE, position_TP (u) and channel_TE (v)."""

    per_task = ("position_TP", "channel_TE")
    lengthens = True
    needs_task = True

    def __init__(self, layer: Layer, settings: MPT, tasks: int, generator: Generator) -> None:
        super().__init__(layer)
        shared = PromptAdapter(layer, settings.plain, 1, generator).prompt_TPE
        self.shared_PE = nn.Parameter(shared.detach()[0].clone())
        self.position_TP = normal((tasks, settings.length), 0.0, settings.std, generator)
        self.channel_TE = normal((tasks, layer.outputs), 0.0, settings.std, generator)

    def prompt(self, rows: Rows, like: Tensor) -> Tensor:
        """Return each row's prompt, (B, P, E)."""
        u_BP1 = rows.take(self.position_TP, like).unsqueeze(2)
        v_B1E = rows.take(self.channel_TE, like).unsqueeze(1)
        return self.shared_PE.to(like.dtype) * u_BP1 * v_B1E

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        return torch.cat([self.prompt(rows, y), y], 1)


@dataclass(frozen=True)
class PromptDistillation:
    """What is added to the tasks' losses while teachers' prompts are distilled into MPT's.

    weight: of both parts, >= 0. temperature: > 0, of both distributions.
    """

    weight: float = 0.9
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0 or not self.temperature > 0:
            raise UsageError(
                f"PromptDistillation: weight is {self.weight} and temperature {self.temperature}; "
                "give a weight >= 0 (default 0.9) and a temperature > 0 (default 1)."
            )

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        student_hidden: Tensor | None = None,
        teacher_hidden: Tensor | None = None,
    ) -> Tensor:
        """Return weight * (divergence of outputs + squared distance of hidden states), a scalar.

        student, teacher: logits, (..., classes), of the same rows, the teacher's from its model
            with the row's own task; averaged over all but the classes. hidden: (..., E), averaged
            over everything; None leaves that part out. No gradient flows into the teacher.
        """
        if (student_hidden is None) != (teacher_hidden is None):
            raise UsageError("PromptDistillation: give hidden states of both models, or of none.")
        for mine, theirs in ((student, teacher), (student_hidden, teacher_hidden)):
            if mine is not None and theirs is not None and mine.shape != theirs.shape:
                raise UsageError(
                    f"PromptDistillation: the student's {tuple(mine.shape)} and the teacher's "
                    f"{tuple(theirs.shape)} differ; give prompts of one length and the same rows."
                )
        ours, wanted = (
            torch.log_softmax(logits.flatten(0, -2) / self.temperature, -1)
            for logits in (student, teacher.detach())
        )
        loss = functional.kl_div(ours, wanted, reduction="batchmean", log_target=True)
        if student_hidden is not None and teacher_hidden is not None:
            loss = loss + functional.mse_loss(student_hidden, teacher_hidden.detach())
        return self.weight * loss
