"""MTLoRA: low-rank changes that all tasks have everywhere, and changes of each task in few places.

    everywhere      W x + scale * B A x
    where tasks part    W x + scale * B A x + scale * B_t A_t x

In the paper's hierarchical vision transformers tasks part in the last block of each stage, at the
attention's output projection and both layers of the feed-forward block (never at the queries, keys
and values); everything else is the tasks' together.

Source: Agiza, Neseem & Reda, "MTLoRA: A Low-Rank Adaptation Approach for Efficient Multi-Task
    Learning", CVPR 2024, https://arxiv.org/abs/2403.20320, and the authors' code: ranks 64 and 4,
    scale 4, dropout 0.05
Differs from the source: a row has one task and one stream here. There, where tasks part, a picture
    goes on as W x + scale * B A x, once for all tasks, and the streams W x + scale * B_t A_t x_t,
    without the global change, go to the tasks' decoders alone. One stream cannot be both: it has
    both changes, the next layer gets it, and later stages run once for each task. Norms and
    position biases train as well in the source: `adapt(..., train=...)`.
Shapes: none of its own; see `global_task.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from polytask.adapt.engine import At
from polytask.adapt.global_task import GlobalTask
from polytask.adapt.where import Where


def mtlora_at(
    parting: Where | str | Sequence[str],
    where: Where | str | Sequence[str] | None = None,
    rank: int = 64,
    task_rank: int = 4,
    scale: float = 4.0,
    dropout: float = 0.05,
) -> list[At]:
    """Return both parts with their places, for `adapt(model, mtlora_at("layers.3.*.fc2"), tasks)`.

    parting: where every task has a change of its own. where: the layers that change for all tasks
    together; None: every linear layer and convolution. rank, task_rank: of the two. scale: of
    both. dropout: of the adapters' inputs, in training.
    """
    return [
        At(GlobalTask(rank, 0, scale, scale, dropout), where),
        At(GlobalTask(0, task_rank, scale, scale, dropout), parting),
    ]
