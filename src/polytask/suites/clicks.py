"""clicks, clicked: impressions that may end in a click, a conversion and a repeat, simulated.

The impressions are the people of `census` with its inputs and splits. What happens to them is
drawn from known probabilities, so the truth of every row given its inputs is known
(`Stream.truth`), also of the conversions of people who never clicked:

- step s happens to a row that came through the steps before it with probability
  sigmoid(level_s + SLOPE * score_s + HIDDEN * mood);
- the mood of a row is a normal number that no input tells, the same for all its steps. The truth
  is the mean over it, so a model of the inputs can know the truth, and no more;
- score_s = LEAN * common + sqrt(1 - LEAN^2) * own_s: whoever is likely to click is likely to
  convert. So the rows that clicked are no sample of all rows, neither in their inputs nor in their
  mood, and what is trained on them alone promises too much of all others;
- common and own_s are tastes: random functions of the inputs, additive in all columns plus a
  product of two such sums; on the training rows they have mean 0, deviation 1 and no correlation.

The two suites are the same rows and the same draws, labelled in the two ways of the field:

- `clicks`: over all impressions. A step's label is 1 where it and all before it happened, and its
  truth is the probability of that: what ESMM and AITM take.
- `clicked`: a step is labelled only where the one before it happened, and its truth is the
  probability of the step of every row, were all to come so far: what a network for each step is
  trained on, and what it is wanted for.

Shapes: N = people, S = steps, D = numeric columns, F = categorical columns, K = moods of a mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polytask.suites.base import SPLITS, About, Stream, Suite
from polytask.suites.census import ABOUT as CENSUS
from polytask.suites.census import Survey, survey
from polytask.suites.check import make_suite
from polytask.suites.splits import frozen_random
from polytask.tasks import Binary, Task, TaskSet

STEPS = ("click", "conversion", "repeat")
RATES = (0.15, 0.25, 0.4)
"""Of the training rows that came through the steps before: how many go on, as expected."""
LEAN = 0.8
"""Correlation of a step's score with what all steps have in common, on the training rows."""
SLOPE = 1.5
"""Deviation of what the inputs make of the logits, on the training rows."""
HIDDEN = 0.7
"""Deviation of what the mood makes of the logits."""
MOODS = 12
"""Points of the Gauss-Hermite means over the mood, which are exact to about 1e-9."""
PRODUCT = 0.7
"""Weight of the product in a taste, whose additive part has weight 1."""
CLIP = 3.0
"""Numeric columns count in deviations, at most this many."""

ABOUT = About(
    title="Simulated clicks, conversions and repeats of the people of Census-Income (KDD)",
    source=f"inputs: {CENSUS.source}; labels: drawn from known probabilities, seed 0",
    licence=CENSUS.licence,
    citation=f"{CENSUS.citation}; the steps: Ma et al., Entire Space Multi-Task Model, SIGIR 2018, "
    "arXiv:1804.07931",
    protocol=f"{CENSUS.protocol}; one draw per row and step",
)
NOTES = (
    "Simulated: the true probability of every row is known (Stream.truth), so bias can be measured "
    "over all impressions (polytask.recipes.measure).",
    "Something that no input tells drives all steps: those who clicked convert more often than "
    "others with their inputs would. The true probabilities are means over it.",
)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Funnel:
    """What was drawn, and the probabilities of it given a row's inputs.

    given_NS: of each step, of every row, were all rows to come so far.
    so_far_NS: of each step and all before it.
    happened_NS: bool, each step and all before it.
    """

    given_NS: Tensor
    so_far_NS: Tensor
    happened_NS: Tensor


def simulate(read: Survey, seed: int = 0) -> Funnel:
    """Return the steps of every row. The seed decides the probabilities and the draws."""
    random = frozen_random(seed)
    train_N = read.rows["train"].numpy()
    numeric_ND = _standard(read.inputs["numeric"].double().numpy(), train_N).clip(-CLIP, CLIP)
    codes_NF = read.inputs["categorical"].numpy()

    tastes: list[Array] = []
    for _ in range(1 + len(RATES)):
        plain, left, right = (
            _standard(_sum(numeric_ND, codes_NF, read.sizes, random), train_N) for _ in range(3)
        )
        taste = _standard(plain + PRODUCT * np.tanh(left) * np.tanh(right), train_N)
        for other in tastes:
            taste = taste - (taste * other)[train_N].mean() * other
        tastes.append(_standard(taste, train_N))
    common, *own = tastes
    mood_K, weight_K = np.polynomial.hermite_e.hermegauss(MOODS)
    weight_K = weight_K / weight_K.sum()
    mood_N = random.standard_normal(len(common))
    came_NK = np.ones((len(common), MOODS))
    given, so_far, drawn = [], [], []
    for rate, own_N in zip(RATES, own, strict=True):
        logit_N = SLOPE * (LEAN * common + math.sqrt(1 - LEAN**2) * own_N)
        logit_NK = logit_N[:, None] + HIDDEN * mood_K
        level = _level(logit_NK[train_N], came_NK[train_N] * weight_K, rate)
        step_NK = _sigmoid(level + logit_NK)
        came_NK = came_NK * step_NK
        given.append(step_NK @ weight_K)
        so_far.append(came_NK @ weight_K)
        step_N = _sigmoid(level + logit_N + HIDDEN * mood_N)
        drawn.append(random.random(len(step_N)) < step_N)
    happened_NS = np.logical_and.accumulate(np.stack(drawn, 1), axis=1)
    return Funnel(
        given_NS=torch.from_numpy(np.stack(given, 1)),
        so_far_NS=torch.from_numpy(np.stack(so_far, 1)),
        happened_NS=torch.from_numpy(happened_NS),
    )


def clicks() -> Suite:
    """Return the suite of steps over all impressions: every row has every label."""
    read = survey()
    funnel = simulate(read)
    return _suite("clicks", read, funnel.happened_NS.float(), funnel.so_far_NS)


def clicked() -> Suite:
    """Return the suite of steps given the step before: a row that did not come so far has none."""
    read = survey()
    funnel = simulate(read)
    before_NS = torch.ones_like(funnel.happened_NS)
    before_NS[:, 1:] = funnel.happened_NS[:, :-1]
    label_NS = torch.where(before_NS, funnel.happened_NS.float(), torch.nan)
    return _suite("clicked", read, label_NS, funnel.given_NS)


def _suite(name: str, read: Survey, label_NS: Tensor, truth_NS: Tensor) -> Suite:
    impressions = Stream(
        "impressions",
        read.inputs,
        {step: label_NS[:, s].contiguous() for s, step in enumerate(STEPS)},
        truth={step: truth_NS[:, s].contiguous() for s, step in enumerate(STEPS)},
    )
    train, val, test = ([impressions.take(read.rows[split])] for split in SPLITS)
    return make_suite(
        name=name,
        tasks=TaskSet(Task(step, Binary()) for step in STEPS),
        train=train,
        val=val,
        test=test,
        encoder=read.encoder(),
        width=64,
        about=ABOUT,
        batch_size=512,
        epochs=8,
        notes=NOTES,
        fields=read.fields(),
    )


def _sum(
    numeric_ND: Array,
    codes_NF: npt.NDArray[np.int64],
    sizes: Sequence[int],
    random: np.random.Generator,
) -> Array:
    """Return a random sum over all columns; a code that training never saw adds nothing."""
    total_N: Array = numeric_ND @ random.standard_normal(numeric_ND.shape[1])
    for f, size in enumerate(sizes):
        effect = random.standard_normal(size)
        effect[0] = 0.0
        total_N = total_N + random.standard_normal() * effect[codes_NF[:, f]]
    return total_N


def _standard(values: Array, train_N: npt.NDArray[np.int64]) -> Array:
    train = values[train_N]
    standard: Array = (values - train.mean(0)) / train.std(0)
    return standard


def _level(logit: Array, came: Array, rate: float) -> float:
    """Return the level at which, of rows that came so far with these weights, `rate` go on."""
    low, high = -20.0, 20.0
    for _ in range(36):
        level = (low + high) / 2
        goes_on = float((came * _sigmoid(level + logit)).sum() / came.sum())
        low, high = (level, high) if goes_on < rate else (low, level)
    return level


def _sigmoid(logit_N: Array) -> Array:
    likely: Array = 1 / (1 + np.exp(-logit_N))
    return likely
