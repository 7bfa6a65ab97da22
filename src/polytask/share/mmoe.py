"""MMoE: shared experts, and a softmax gate per task that mixes them anew for every row.

Source: Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", KDD 2018, https://doi.org/10.1145/3219819.3220007
Differs from the source: experts and gates read the encoder's features, whatever the encoder; the
    source's read the inputs' embeddings. Experts end in a ReLU, as in the usual code.
Shapes: R = rows, D = width of the features, E = experts, A = asked tasks, W = width of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import Gate
from polytask.share.experts import Experts, Gates, Stacked, opened, part, run, stack
from polytask.share.mixture import Mixture
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet


class MMoE(Trunk):
    """h_t = sum_e softmax(W_t x)_e f_e(x).

    experts: all shared. gates: one per task, over these experts.
    """

    def __init__(self, experts: Experts, gates: Gates) -> None:
        super().__init__(experts.inputs, experts.width)
        if (gates.inputs, gates.experts) != (experts.inputs, experts.number):
            raise UsageError(
                f"MMoE: {experts.number} experts of {experts.inputs} inputs need gates of as many; "
                f"got gates over {gates.experts} experts, of {gates.inputs} inputs."
            )
        self.experts = experts
        self.gating = gates

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        experts: int = 4,
        widths: tuple[int, ...] = (64,),
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        experts: how many. widths: of each expert's layers. towers: of each task's own layers.
        """
        trunk = MMoE(Experts(experts, width, widths), Gates(tasks.names, width, experts))
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.gating.readers

    def stack(self, tasks: Sequence[str]) -> Stacked:
        experts: Experts = part(self, "experts")
        gating: Gates = part(self, "gating")
        return stack("experts", [experts]) | gating.stack("gates", tasks)

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Mixture:
        experts_ERW = run(stacked, "experts", rows_RD)
        weights_RAE = opened(stacked, "gates", rows_RD)
        if seen is not None:
            seen["weights_RAE"] = weights_RAE
        return Mixture(weights_RAE, experts_ERW)

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        names = tuple(f"expert {e}" for e in range(self.experts.number))
        return [Gate(0, tuple(tasks), names, (None,) * len(names), seen["weights_RAE"])]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the experts' parameters."""
        return list(self.experts.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's gate."""
        return self.gating.parameters_of(task)

    def add_task(self, task: str) -> None:
        self.gating.add(task)
