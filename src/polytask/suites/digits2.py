"""digits2: two handwritten digits in one picture, made from scikit-learn's bundled digits.

The construction is MultiMNIST's (Sabour, Frosst & Hinton 2017, used for multi-task learning by
Sener & Koltun 2018), on 8 x 8 digits: two digits are drawn into one picture at random places,
the left one further left, and their ink is added and clipped. Every digit is real.

Four tasks read the same picture:

- `left`, `right`: which digit it is, of 10. Recognition, whatever the place.
- `offset`: how many pixels the right digit stands to the right of the left one. Localisation,
  whatever the digit.
- `overlap`: the ink that lies under both digits, as a fraction of the ink of the lighter one.
  It is what the picture hides, so it takes both: whose ink is whose, and where.

The regressions are natural in that nothing is labelled by hand: they are what the drawing knew
and the picture does not say. Neither is linear in the pixels (ridge regression explains 0.79 and
0.58 of their variance, the default encoder about 0.95 and 0.85), and they pull in different
directions: a class must not depend on the place, an offset must not depend on the class.

Shapes: N = pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from polytask.suites.base import About, Split, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.encoders import ConvNet
from polytask.suites.splits import frozen_random, random_split
from polytask.suites.vit import ViT
from polytask.tasks import Multiclass, Regression, Task, TaskSet

SIDE = 8
"""Pixels of a source digit."""
HEIGHT, WIDTH = 10, 14
"""Pixels of a picture: a digit can move by two rows, and the pair by what its offset leaves."""
OFFSETS = (2, 6)
"""Smallest and largest offset in pixels; at 2 the digits share most of their columns."""
PICTURES: dict[Split, int] = {"train": 5000, "val": 1000, "test": 2000}

ABOUT = About(
    title="Two overlaid digits with their offset and overlap",
    source="scikit-learn's bundled digits (sklearn.datasets.load_digits): the test part of UCI "
    "Optical Recognition of Handwritten Digits, 1,797 digits",
    licence="CC BY 4.0 (UCI)",
    citation="Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
    "Repository 1998, doi:10.24432/C50P49; construction: Sabour, Frosst & Hinton, Dynamic Routing "
    "Between Capsules, NeurIPS 2017, arXiv:1710.09829; as two tasks: Sener & Koltun, NeurIPS "
    "2018, arXiv:1810.04650",
    protocol="Source digits split at random 60/15/25; pictures of a split are drawn from its own "
    "digits alone: 5,000 train, 1,000 validation, 2,000 test, seed 0",
)

Array = npt.NDArray[np.float64]


class Pictures(NamedTuple):
    """Drawn pictures, which two source digits each shows, and what the drawing knew."""

    pixels_NHW: Array
    left_N: npt.NDArray[np.int64]
    right_N: npt.NDArray[np.int64]
    offset_N: npt.NDArray[np.int64]
    overlap_N: Array


def draw(
    digits: Array, sources: npt.NDArray[np.int64], count: int, random: np.random.Generator
) -> Pictures:
    """Return `count` pictures of pairs of digits from `sources` (row numbers of `digits`).

    digits: (rows, 8, 8), ink from 0 to 1.
    """
    left_N, right_N = random.choice(sources, (2, count))
    offset_N = random.integers(OFFSETS[0], OFFSETS[1] + 1, count)
    column_N = random.integers(0, WIDTH - SIDE - offset_N + 1)
    row_2N = random.integers(0, HEIGHT - SIDE + 1, (2, count))
    layers_2NHW = np.zeros((2, count, HEIGHT, WIDTH))
    for n in range(count):
        for layer, source, row, column in (
            (layers_2NHW[0, n], left_N[n], row_2N[0, n], column_N[n]),
            (layers_2NHW[1, n], right_N[n], row_2N[1, n], column_N[n] + offset_N[n]),
        ):
            layer[row : row + SIDE, column : column + SIDE] = digits[source]
    ink_2N = layers_2NHW.sum((2, 3))
    overlap_N = layers_2NHW.min(0).sum((1, 2)) / ink_2N.min(0)
    return Pictures(layers_2NHW.sum(0).clip(max=1.0), left_N, right_N, offset_N, overlap_N)


def digits2() -> Suite:
    """Return the suite: pictures (1, 10, 14) with ink from 0 to 1, one stream per split."""
    from sklearn.datasets import load_digits  # 0.8 s to import; only this suite needs it

    data, classes = load_digits(return_X_y=True)
    digits = data.reshape(-1, SIDE, SIDE) / 16.0
    random = frozen_random(0)
    sources = random_split(len(digits), val=0.15, test=0.25, random=random)
    streams = {}
    for split, rows_N in sources.items():
        drawn = draw(digits, rows_N.numpy(), PICTURES[split], random)
        targets: dict[str, Tensor] = {
            "left": torch.from_numpy(classes[drawn.left_N]).long(),
            "right": torch.from_numpy(classes[drawn.right_N]).long(),
            "offset": torch.from_numpy(drawn.offset_N).float(),
            "overlap": torch.from_numpy(drawn.overlap_N).float(),
        }
        pixels_N1HW = torch.from_numpy(drawn.pixels_NHW).float().unsqueeze(1)
        streams[split] = Stream("pictures", pixels_N1HW, targets)
    return make_suite(
        name="digits2",
        tasks=TaskSet(
            [
                Task("left", Multiclass(10)),
                Task("right", Multiclass(10)),
                Task("offset", Regression(unit="px")),
                Task("overlap", Regression(unit="fraction")),
            ]
        ),
        train=[streams["train"]],
        val=[streams["val"]],
        test=[streams["test"]],
        encoder=_encoder,
        width=128,
        tokens=_tokens,
        about=ABOUT,
        batch_size=128,
        epochs=15,
        notes=(
            "The pictures are drawn, the digits are real; no source digit occurs in two splits.",
            "A training digit occurs in about nine pictures, beside others and elsewhere.",
        ),
    )


def _encoder() -> nn.Module:
    return ConvNet(1, HEIGHT, WIDTH, maps=(16, 32, 48), features=128, dropout=0.2)


def _tokens() -> nn.Module:
    size = (HEIGHT, WIDTH)
    return ViT((0.0,), (1.0,), size, patch=2, dim=48, depth=4, width=128, ends="row")
