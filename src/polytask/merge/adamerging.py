"""AdaMerging: coefficients of the task vectors that make the merged model sure of its answers.

Minimises the entropy of the predicted classes, summed over tasks, on unlabelled rows.

Source: Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024,
    https://arxiv.org/abs/2310.02575
Differs from the source: coefficients are clamped to [0, 1] after a step; the authors' code clamps
    them where they are used, which stops their gradient outside. A "layer" is a tensor, as in the
    authors' code. Any rows may be given; the source takes the test inputs. FusionBench's task-wise
    and layer-wise forms agree: gradients to 2e-8, coefficients after 20 rounds to 1e-7.
Shapes: T = tasks, N = tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from polytask.merge.batches import Unlabelled
from polytask.merge.coefficients import Coefficients, Level
from polytask.merge.family import Family, Merged
from polytask.merge.rounds import Rounds, check_rate, search_coefficients, sure
from polytask.merge.search import Saving, SearchState
from polytask.merge.selected import selected


@dataclass(frozen=True)
class AdaMerging:
    """Base + coefficients x task vectors: one per task, or one per tensor and task.

    level: "task" or "layer". plus: True for AdaMerging++, whose task vectors keep what TIES would
        keep: the largest `density` of the whole model, where the sign is the elected one.
    start: of every coefficient. learning_rate: Adam's. batch_size: rows of a task per round.
    """

    level: Level = "layer"
    plus: bool = False
    density: float = 0.2
    start: float = 0.3
    learning_rate: float = 1e-3
    rounds: int = 500
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("AdaMerging", self.learning_rate, self.batch_size)

    def __call__(
        self,
        family: Family,
        data: Unlabelled,
        *,
        state: SearchState | None = None,
        saving: Saving | None = None,
    ) -> Merged:
        """Return the merged tensors and, learned, the coefficients: (T,) or (N, T).

        data: task -> inputs. state: of an earlier call, to go on from.
        Raises UsageError for a task whose kind has no classes.
        """
        deltas = selected(family.deltas, self.density) if self.plus else family.deltas
        coefficients = Coefficients(family.base, deltas, self.start, self.level)
        rounds = Rounds.of(family, data, "AdaMerging", self.batch_size, self.seed)
        found = search_coefficients(
            "AdaMerging", rounds, coefficients,
            sure(family, "AdaMerging"),
            self.rounds, self.learning_rate, state=state, saving=saving,
        )  # fmt: skip
        values = found.values["coefficients"]
        return Merged(
            coefficients.merge(values), learned={"coefficients": values}, losses=found.losses
        )
