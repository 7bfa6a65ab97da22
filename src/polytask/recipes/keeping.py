"""A shared model parts of which keep their bits while it is trained, in anybody's loop.

What an optimiser's weight decay or momentum does to numbers that are held is taken back before the
next update, before validation and before weights are saved, so no loop has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from polytask.adapt import Held
from polytask.share import Inputs, SharedModel, Trace

Stages = tuple[int, Callable[[float], Held]]
"""How many stages a training has, and what holds the parameters of the one that begins at a part
of it, 0 to 1."""


class Keeping(SharedModel):
    """The model, with what is held kept.

    held: throughout. stages: another half, or whatever it is, in every stage of the training.
    """

    def __init__(
        self, model: SharedModel, held: Held | None = None, stages: Stages | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.held, self.stages = held, stages
        self._stage = -1
        self.register_state_dict_pre_hook(_as_it_was)  # type: ignore[no-untyped-call]

    @property
    def traces(self) -> bool:  # type: ignore[override]
        """Whether the model takes a trace."""
        return self.model.traces

    @property
    def penalises(self) -> bool:  # type: ignore[override]
        """Whether training needs the gradients of penalties."""
        return self.model.penalises

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.model.tasks

    def forward(
        self, inputs: Inputs, tasks: Sequence[str] | None = None, trace: Trace | None = None
    ) -> dict[str, Tensor]:
        """Return what the model does."""
        if trace is None:
            return self.model(inputs, tasks=tasks)  # type: ignore[no-any-return]
        return self.model(inputs, tasks=tasks, trace=trace)  # type: ignore[no-any-return]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the model's, held or not."""
        return self.model.shared_parameters()

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the model's, held or not."""
        return self.model.task_parameters(task)

    def at(self, part: float) -> None:
        """Begin another stage where it is time, and put back what was moved since the last update;
        told before every update."""
        self.model.at(part)
        if self.stages is not None:
            many, hold = self.stages
            stage = min(int(part * many), many - 1)
            if stage != self._stage:
                if self.held is not None:
                    self.held.release()
                self.held, self._stage = hold(stage / many), stage
        self._restore()

    def train(self, mode: bool = True) -> Keeping:
        """Set the mode; what is held is put back before anybody looks at it."""
        self._restore()
        super().train(mode)
        return self

    def _restore(self) -> None:
        if self.held is not None:
            self.held.restore()


def _as_it_was(model: Keeping, prefix: str, keep_vars: bool) -> None:
    """Put back what is held before a state is taken."""
    model._restore()
