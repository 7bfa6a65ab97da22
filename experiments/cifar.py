"""CIFAR-10 as experiments read it: bytes of pictures 32 x 32, and which of ten classes.

Shapes: N = pictures.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from polytask.errors import need
from polytask.suites.files import DataFile, read

SUMS = {
    "train": "0ea57eccdc339fc5a7cf94ade6c2d6edcb27d9d928a27d49915897c22bdb093a",
    "test": "8d00f729b90973940ed0b023e8510fe66f0fffc54b1cbcb4f3ead8811d52ce96",
}


def cifar10(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Return pixels (N, 3, 32, 32), bytes, and class indices (N,); classes are mixed."""
    parquet = need("pyarrow.parquet", "images", "The experiment")
    image = need("PIL.Image", "images", "The experiment")
    file = DataFile("cifar10", f"{split}.parquet", SUMS[split], "the set cifar10")
    rows = parquet.read_table(io.BytesIO(read(file))).to_pydict()
    pixels = np.stack([np.asarray(image.open(io.BytesIO(jpeg))) for jpeg in rows["jpeg"]])
    labels = torch.tensor(rows["label"])
    # The source is sorted by class; a fixed shuffle makes "the first rows" a random part.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)[order].contiguous(), labels[order]
