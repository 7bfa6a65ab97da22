"""Global and task experts: one LoRA that every task has, and one of its own for each task.

    y_t = W x + scale * B A x + task_scale * B_t A_t x

Source: the form that multi-task work on LoRA repeats, as in Agiza, Neseem & Reda, "MTLoRA", CVPR
    2024, https://arxiv.org/abs/2403.20320, which `mtlora.py` is; with experts of whole networks it
    is Tang et al., "Progressive Layered Extraction", RecSys 2020, doi:10.1145/3383313.3412236
Differs from the source: both parts are always added, with no gate between them.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, R = rank of the global part,
    K = rank of a task's part, I, O = inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Rows
from polytask.adapt.experts import plus_common, reduced_common
from polytask.adapt.low_rank import (
    Factored,
    check_alpha,
    check_dropout,
    draw,
    plus_up,
    product,
    reduced,
)
from polytask.errors import UsageError


@dataclass(frozen=True)
class GlobalTask(Factored):
    """Adapts linear layers, and convolutions without groups; zero change at the start.

    rank, task_rank: of the global part and of each task's; 0: without that part, not both.
    scale, task_scale: what the parts are multiplied by. dropout: of the adapter's input, in
    training.
    """

    rank: int = 8
    task_rank: int = 8
    scale: float = 1.0
    task_scale: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, rank in (("rank", self.rank), ("task_rank", self.task_rank)):
            if type(rank) is not int or rank < 0:
                raise UsageError(f"GlobalTask: {name} is {rank!r}; give a whole number >= 0.")
        if not self.rank and not self.task_rank:
            raise UsageError("GlobalTask: rank and task_rank are 0; one part has to be there.")
        check_alpha("GlobalTask", self.scale)
        check_alpha("GlobalTask", self.task_scale)
        check_dropout("GlobalTask", self.dropout)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's global factors, and those of T tasks."""
        return GlobalTaskAdapter(layer, self, tasks, generator)


class GlobalTaskAdapter(Adapter):
    """down_RI and up_RO of all tasks, down_TKI and up_TKO of each; those that have a rank."""

    folds = True

    def __init__(
        self, layer: Layer, settings: GlobalTask, tasks: int, generator: Generator
    ) -> None:
        super().__init__(layer)
        self.settings = settings
        if settings.rank:
            self.down_RI, self.up_RO = draw(layer, (), settings.rank, generator)
        if settings.task_rank:
            self.down_TKI, self.up_TKO = draw(layer, (tasks,), settings.task_rank, generator)
            self.per_task = ("down_TKI", "up_TKO")

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        settings = self.settings
        if settings.dropout:
            x = functional.dropout(x, settings.dropout, self.training)
        if settings.rank:
            small = rows.only(reduced_common(self.layer, x, self.down_RI), 0.0)
            y = plus_common(y, small, self.up_RO, settings.scale)
        if settings.task_rank:
            small = reduced(self.layer, x, self.down_TKI, rows)
            up_BKO = rows.take(self.up_TKO, y, none=0.0)
            y = plus_up(y, small, up_BKO, settings.task_scale)
        return y

    def change(
        self, task: int, weight_OI: Tensor, bias_O: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        settings = self.settings
        moved_OI = 0 * weight_OI
        if settings.rank:
            moved_OI += settings.scale * product(self.layer, self.down_RI, self.up_RO)
        if settings.task_rank:
            own_OI = product(self.layer, self.down_TKI[task], self.up_TKO[task])
            moved_OI += settings.task_scale * own_OI
        return moved_OI, None
