"""Every data-free method against its equations, written out in float64 numpy, on hard inputs.

Values stand on a grid of 1/1024 times a power of two, so that task vectors are exact in float32
and equal sizes are equal. Matrix methods are tried in float64 alone: a float32 solver's rounding
says nothing about the equations.
"""

import math

import numpy as np
import pytest
import torch

from polytask.merge import (
    PCB,
    SLERP,
    TIES,
    TSVM,
    Average,
    Breadcrumbs,
    Consensus,
    IsoC,
    IsoCTS,
    ModelStock,
    TallMasks,
    TaskArithmetic,
)

SHAPE = (9, 14)


def grid(seed, models, spread=1.0):
    rng = np.random.default_rng(seed)
    return np.round(rng.standard_normal((models, *SHAPE)) * 1024 * spread) / 1024


def inputs():
    base, tau = grid(0, 1)[0], grid(1, 3, 0.1)
    yield "random", base, tau
    yield "one model", base, tau[:1]
    yield "equal models", base, np.stack([tau[0]] * 3)
    yield "opposed", base, np.stack([tau[0], -tau[0]])
    yield "opposed in part", base, np.stack([tau[0], -tau[0], tau[1]])
    yield "equal sizes", base, np.round(grid(2, 4))
    yield "nothing changed", base, np.zeros((3, *SHAPE))
    yield "one unchanged", base, tau * np.array([1.0, 0.0, 1.0])[:, None, None]
    yield "mostly zero", base, tau * (np.random.default_rng(3).random(tau.shape) < 0.05)
    yield "all negative", -abs(base), -abs(tau) - 1 / 1024
    yield "huge", base * 2**33, tau * 2**33
    yield "tiny", base * 2**-33, tau * 2**-33
    yield "one outlier", base, tau + 64 * (np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) == 5)
    yield "base of zeros", base * 0, grid(4, 5, 0.3)


INPUTS = {name: (base, tau) for name, base, tau in inputs()}


def flat(tau):
    return tau.reshape(len(tau), -1)


def average(base, tau, weights=None):
    return np.average(base + tau, axis=0, weights=weights)


def task_arithmetic(base, tau, scale=0.3, weights=None):
    weights = np.ones(len(tau)) if weights is None else np.array(weights)
    return base + scale * np.tensordot(weights, tau, 1)


def largest(sizes, count):
    """Return a mask of the `count` largest, and of all that equal the least of them."""
    return sizes >= np.sort(sizes)[::-1][count - 1]


def ties(base, tau, density=0.2, scale=1.0, weights=None):
    weights = np.ones(len(tau)) if weights is None else np.array(weights)
    rows = flat(tau)
    count = max(1, math.floor(density * rows.shape[1] + 0.5))
    kept = np.stack([row * largest(abs(row), count) for row in rows])
    kept = kept * weights[:, None]
    sign = np.sign(kept.sum(0))
    sign[sign == 0] = np.sign(sign.sum())
    merged = np.zeros(rows.shape[1])
    for p in range(rows.shape[1]):
        agree = [m for m in range(len(tau)) if kept[m, p] * sign[p] > 0]
        if agree:
            merged[p] = kept[agree, p].sum() / abs(weights[agree]).sum()
    return base + scale * merged.reshape(base.shape)


def breadcrumbs(base, tau, beta=0.2, gamma=0.1, scale=0.4):
    merged = np.zeros(base.size)
    for row in flat(tau):
        sizes = np.sort(abs(row))[::-1]
        first = math.floor(gamma * len(row) + 0.5)
        last = min(first + max(1, math.floor(beta * len(row) + 0.5)), len(row)) - 1
        merged += row * ((abs(row) <= sizes[first]) & (abs(row) >= sizes[last]))
    return base + scale * merged.reshape(base.shape)


def spread(values):
    width = values.max() - values.min()
    return (values - values.min()) / (width if width > 0 else 1)


def pcb(base, tau, ratio=0.1, scale=1.0):
    rows = flat(tau)
    elements = rows.shape[1]
    clamped, share = [], []
    for row in rows:
        sizes = np.sort(abs(row))
        low = sizes[int(elements * 1e-4)]
        high = sizes[max(int(elements * (1 - 1e-4) - 1), 0)]
        size = np.clip(abs(row), low, high)
        within = np.exp(len(rows) * spread(size) ** 2)
        score = within * np.tanh(row * rows.sum(0))
        least = np.sort(score)[int(elements * (1 - ratio))]
        clamped.append(np.sign(row) * size)
        share.append(spread(np.maximum(score, least)))
    total = np.maximum(np.sum(share, 0), 1e-12)
    merged = (np.array(share) * np.array(clamped)).sum(0) / total
    return base + scale * merged.reshape(base.shape)


def slerp(base, tau, t=0.5):
    a, b = base + tau[0], base + tau[1]
    cos = (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))
    if abs(cos) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cos)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def model_stock(base, tau):
    rows, cosines = flat(tau), []
    for i in range(len(tau)):
        for j in range(i):
            lengths = np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])
            cosines.append(rows[i] @ rows[j] / lengths if lengths > 0 else 0.0)
    cos = max(0.0, np.mean(cosines))
    t = len(tau) * cos / (1 + (len(tau) - 1) * cos)
    return t * (base + tau.mean(0)) + (1 - t) * base


def needed(base, tau, threshold):
    together = base + tau.sum(0)
    return abs(base - (base + tau)) > threshold * abs(together - (base + tau))


def tall(base, tau, task=0, threshold=0.4):
    return base + needed(base, tau, threshold)[task] * tau.sum(0)


def consensus(base, tau, agree=2, threshold=0.4, scale=0.3):
    return base + scale * (needed(base, tau, threshold).sum(0) >= agree) * tau.sum(0)


def polar(columns):
    """Return columns (columns^T columns)^(-1/2), on the span alone."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    inverse = np.where(values > 1e-10, 1 / np.sqrt(np.maximum(values, 1e-10)), 0.0)
    return columns @ (vectors * inverse) @ vectors.T


def svd(matrix):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u, np.where(s > 1e-12 * max(s[0], 1e-300), s, 0.0), vh.T


def side_by_side(parts):
    """Return the columns of several (U, S, V), without those of singular value 0."""
    u, s, v = (np.concatenate([part[i] for part in parts], -1) for i in range(3))
    return u[:, s > 0], s[s > 0], v[:, s > 0]


def tsv_m(base, tau, scale=1.0):
    each = max(1, min(base.shape) // len(tau))
    parts = [tuple(x[..., :each] for x in svd(matrix)) for matrix in tau]
    u, s, v = side_by_side(parts)
    return base + scale * polar(u) @ np.diag(s) @ polar(v).T


def iso_c(base, tau, scale=1.0):
    u, s, v = side_by_side([svd(tau.sum(0))])
    return base + scale * s.sum() / min(base.shape) * u @ v.T


def iso_cts(base, tau, scale=1.0, common=0.8):
    whole, models = min(base.shape), len(tau)
    each = round((whole - int(whole * common)) / models)
    shared = tuple(x[..., : whole - each * models] for x in svd(tau.sum(0)))
    parts = [shared]
    for matrix in tau:
        u = shared[0][:, shared[1] > 0]
        own = matrix - u @ u.T @ matrix
        own[abs(own) < 1e-13 * abs(tau).max()] = 0
        parts.append(tuple(x[..., :each] for x in svd(own)))
    u, s, v = side_by_side(parts)
    return base + scale * s.sum() / whole * polar(u) @ polar(v).T


CASES = [
    (Average(), average),
    (Average((1.0, 2.0, -0.5)), lambda base, tau: average(base, tau, (1.0, 2.0, -0.5))),
    (TaskArithmetic(), task_arithmetic),
    (TaskArithmetic(-1.5), lambda base, tau: task_arithmetic(base, tau, -1.5)),
    (
        TaskArithmetic(0.7, (1.0, 0.0, 2.0)),
        lambda base, tau: task_arithmetic(base, tau, 0.7, (1.0, 0.0, 2.0)),
    ),
    (TIES(), ties),
    (TIES(0.5, 0.3, over="tensor"), lambda base, tau: ties(base, tau, 0.5, 0.3)),
    (TIES(1.0), lambda base, tau: ties(base, tau, 1.0)),
    (
        TIES(0.6, weights=(0.5, 0.0, 2.0)),
        lambda base, tau: ties(base, tau, 0.6, weights=(0.5, 0.0, 2.0)),
    ),
    (
        TIES(0.6, weights=(1.0, -1.0, 0.25)),
        lambda base, tau: ties(base, tau, 0.6, weights=(1.0, -1.0, 0.25)),
    ),
    (Breadcrumbs(), breadcrumbs),
    (Breadcrumbs(0.75, 0.25, 1.0), lambda base, tau: breadcrumbs(base, tau, 0.75, 0.25, 1.0)),
    (Breadcrumbs(0.5, 0.0, 1.0), lambda base, tau: breadcrumbs(base, tau, 0.5, 0.0, 1.0)),
    (PCB(), pcb),
    (PCB(0.3, 0.5), lambda base, tau: pcb(base, tau, 0.3, 0.5)),
    (SLERP(), slerp),
    (SLERP(0.2), lambda base, tau: slerp(base, tau, 0.2)),
    (ModelStock(), model_stock),
    (TallMasks(), tall),
    (TallMasks(0, 0.6), lambda base, tau: tall(base, tau, 0, 0.6)),
    (Consensus(), consensus),
    (Consensus(1, 0.5, 1.0), lambda base, tau: consensus(base, tau, 1, 0.5, 1.0)),
    (Consensus(0, 0.5), lambda base, tau: task_arithmetic(base, tau)),
    (TSVM(), tsv_m),
    (IsoC(0.5), lambda base, tau: iso_c(base, tau, 0.5)),
    (IsoCTS(), iso_cts),
    (IsoCTS(1.3, 0.4), lambda base, tau: iso_cts(base, tau, 1.3, 0.4)),
]


def takes(method, tau):
    weights = getattr(method, "weights", ())
    return len(tau) >= method.least and (not weights or len(weights) == len(tau))


TRIED = [
    pytest.param(method, oracle, name, id=f"{method} {name}")
    for method, oracle in CASES
    for name, (_, tau) in INPUTS.items()
    if takes(method, tau)
]


@pytest.mark.parametrize(("method", "oracle", "name"), TRIED)
def test_a_method_is_its_equations(method, oracle, name):
    base, tau = INPUTS[name]
    tau = tau[: method.most] if method.most else tau
    wanted = oracle(base, tau)
    size = abs(base) + abs(tau).sum(0) * max(1.0, abs(getattr(method, "scale", 1.0)))
    for dtype, digits in ((torch.float64, 1e-13), (torch.float32, 3e-7)):
        if method.reach == "tensor":
            if dtype == torch.float32:
                continue
            size, digits = np.full(SHAPE, abs(tau).max() * 9 + abs(base).max()), 1e-11
        base_P = torch.tensor(base, dtype=dtype)
        merged_P = method(base_P, torch.tensor(base + tau, dtype=dtype))
        assert merged_P.dtype == dtype
        assert merged_P.shape == SHAPE
        off = abs(merged_P.numpy().astype(np.float64) - wanted)
        assert (off <= digits * size).all(), (dtype, float((off / (size + 1e-300)).max()))
