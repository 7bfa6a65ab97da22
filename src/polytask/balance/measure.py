"""How far an approximation is from the exact method, on one step.

Shapes: K = tasks present, P = shared parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polytask.balance import gradients
from polytask.balance.base import State
from polytask.balance.losses import Weights
from polytask.balance.turn import Said, Turn
from polytask.balance.weighed import Weighed
from polytask.balance.wrapper import Method, Wrapper, under


@dataclass(frozen=True)
class Measured:
    """An approximation beside the exact method, on the same losses and from the same state.

    gram_error: |G' - G| / |G|, Frobenius; NaN where this update took no Gramian (EveryN between
        two looks) or the exact one is zero.
    shape_error: the same after the best scale, min over c of |c G' - G| / |G|. Most methods answer
        alike to a Gramian and to its multiples.
    cosine: of the update of the shared parameters with the exact one; NaN where one is zero.
    length: of the update, over that of the exact one.
    weights, exact_weights: by task.
    gram_KK, exact_gram_KK: what the method was asked with, float64; None where it was not asked.
    """

    gram_error: float
    shape_error: float
    cosine: float
    length: float
    weights: Weights
    exact_weights: Weights
    gram_KK: Tensor | None
    exact_gram_KK: Tensor


def measure(turn: Turn, method: Method, state: State) -> Measured:
    """Return the comparison; the losses keep their graph, every `.grad` is left as it was."""
    turn = replace(turn, retain=True, said=Said())
    leaves, _ = gradients.leaves(turn.losses)
    kept = [(p, p.grad) for p in dict.fromkeys((*turn.shared, *leaves))]
    devices = [turn.shared[0].device] if turn.shared[0].is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            for parameter, _ in kept:
                parameter.grad = None
            exact_P, exact_K, exact_gram_KK = _exact(turn, method, state)
            update = turn.exact(method, state)
        direction_P = _gathered(turn.shared)
    finally:
        for parameter, grad in kept:
            parameter.grad = grad
    gram_KK = turn.said.gram_KK
    names = turn.axis.names(turn.at)
    return Measured(
        *_errors(gram_KK, exact_gram_KK),
        _cosine(direction_P, exact_P),
        float(direction_P.norm() / exact_P.norm()),
        Weights(names, update.weights_K.detach(), turn.losses_K),
        Weights(names, exact_K, turn.losses_K),
        gram_KK,
        exact_gram_KK,
    )


def _exact(turn: Turn, method: Method, state: State) -> tuple[Tensor, Tensor, Tensor]:
    """Return the plain method's direction, (P,), float64, its weights, and the exact Gramian."""
    scale_K: Tensor | None = None
    while isinstance(method, Wrapper):
        if isinstance(method, Weighed):
            scale_K = turn.ask(method.by, under("by", state)).weights_K.detach()
            turn = turn.weighed(scale_K)
        inner = method.methods()["method"]
        method, state = inner, under("method", state)
    rows_KP = gradients.rows(turn.losses, turn.shared)
    gram_KK = gradients.gram(rows_KP)
    found = turn.ask(method, state, gram_KK, rows_KP)
    turn.said.gram_KK = None
    direction_P = found.direction_P
    weights_K = found.weights_K.detach()
    if direction_P is None:
        direction_P = weights_K.to(rows_KP.dtype) @ rows_KP
    if scale_K is not None:
        weights_K = weights_K * scale_K.to(weights_K.dtype)
    return direction_P.double(), weights_K, gram_KK


def _gathered(shared: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [
            torch.zeros(p.numel(), device=p.device, dtype=torch.float64)
            if p.grad is None
            else p.grad.flatten().double()
            for p in shared
        ]
    )


def _errors(gram_KK: Tensor | None, exact_KK: Tensor) -> tuple[float, float]:
    size = exact_KK.norm()
    if gram_KK is None or gram_KK.shape != exact_KK.shape or not bool(size > 0):
        return float("nan"), float("nan")
    square = gram_KK.square().sum()
    best = (gram_KK * exact_KK).sum() / square if bool(square > 0) else square
    return float((gram_KK - exact_KK).norm() / size), float(
        (best * gram_KK - exact_KK).norm() / size
    )


def _cosine(one_P: Tensor, other_P: Tensor) -> float:
    return float(one_P @ other_P / (one_P.norm() * other_P.norm()))
