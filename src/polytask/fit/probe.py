"""A look at the tasks' gradients: who conflicts with whom, and who dominates.

Shapes: T = tasks of the run, K = tasks present, P = shared parameters.
"""

from __future__ import annotations

import torch

from polytask.balance import gradients
from polytask.fit.data import Step
from polytask.fit.step import task_losses
from polytask.records import Probe
from polytask.share import SharedModel


def probe(model: SharedModel, fed: Step, step: int) -> Probe:
    """Return cosines and norms of the tasks' gradients in the shared parameters on one batch.

    In evaluation mode and without drawing random numbers: a probe leaves the run as it was.
    Costs one backward per task present.
    """
    was_training = model.training
    model.eval()
    try:
        losses = task_losses(model, fed.micros[0], fed.counts, "float32")
        shared = model.shared_parameters()
        rows_KP = gradients.empty_rows(len(losses), shared)
        gradients.add_rows(list(losses.values()), shared, rows_KP.unbind(0))
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
    gram_KK = gradients.gram(rows_KP)
    norms_K = gram_KK.diagonal().clamp(min=0).sqrt()
    safe_K = torch.where(norms_K > 0, norms_K, torch.nan)
    cosines_KK = (gram_KK / (safe_K[:, None] * safe_K[None, :])).clamp(-1, 1)
    at = {name: k for k, name in enumerate(losses)}
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
