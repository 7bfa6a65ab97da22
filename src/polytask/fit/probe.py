"""A look at the tasks' gradients: who conflicts with whom, and who dominates.

Shapes: T = tasks of the run, K = tasks present, P = shared parameters.
"""

from __future__ import annotations

import torch

from polytask.balance import gradients
from polytask.fit.data import Step
from polytask.fit.step import task_losses
from polytask.fit.validate import evaluating
from polytask.records import Probe
from polytask.share import SharedModel


def probe(model: SharedModel, fed: Step, step: int) -> Probe:
    """Return cosines and norms of the tasks' gradients in the shared parameters on one batch.

    fed: of its micro-batches the first is looked at. step: the update it feeds.
    In evaluation mode and without drawing random numbers: a probe leaves modes, gradients and
    the run as they were. Costs one backward per task present.
    """
    shared = model.shared_parameters()
    before = [(p, p.grad) for p in model.parameters()]
    try:
        # cuDNN's recurrent layers have no backward in evaluation mode; torch's own have.
        with evaluating(model), torch.backends.cudnn.flags(enabled=False):
            tasks, losses_K = task_losses(model, fed.micros[0], fed.counts, "float32")
            rows_KP = gradients.empty_rows(len(tasks), shared)
            for parameter, _ in before:
                parameter.grad = None  # or the tasks' own gradients would be added to it
            gradients.add_rows(losses_K.unbind(), shared, rows_KP.unbind(0))
    finally:
        for parameter, grad in before:
            parameter.grad = grad
    gram_KK = gradients.gram(rows_KP)
    norms_K = gram_KK.diagonal().clamp(min=0).sqrt()
    safe_K = torch.where(norms_K > 0, norms_K, torch.nan)
    cosines_KK = (gram_KK / (safe_K[:, None] * safe_K[None, :])).clamp(-1, 1)
    at = {name: k for k, name in enumerate(tasks)}
    cosines = cosines_KK.tolist()
    norms = norms_K.tolist()

    def cosine(a: str, b: str) -> float | None:
        if a not in at or b not in at:
            return None
        value = cosines[at[a]][at[b]]
        return None if value != value else round(value, 6)

    return Probe(
        step=step,
        cosines=tuple(tuple(cosine(a, b) for b in model.tasks) for a in model.tasks),
        norms=tuple(norms[at[t]] if t in at else None for t in model.tasks),
    )
