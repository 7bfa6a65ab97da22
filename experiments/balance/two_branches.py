"""camvid with a second modality: smaller pictures, and the edges of the pictures beside them.

Shapes: N = pictures, B = pictures of a batch, H, W = 48, 64, C = channels.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.recipes import load_suite
from polytask.suites import SPLITS, Stream, Suite
from polytask.suites.camvid import edge_distance
from polytask.suites.check import fitted
from polytask.tasks import IGNORE

FACTOR = 2
"""Pixels of the suite's pictures, each way, that become one."""
PICTURE, EDGES = (16, 32), (8, 16)
TRUNK, WIDTH = 64, 32


def sobel(brightness_N1HW: Tensor) -> Tensor:
    """Return the magnitude of the gradient of each picture, (N, 1, H, W), as large as the input."""
    across_33 = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels_2133 = torch.stack([across_33, across_33.T])[:, None]
    around = F.pad(brightness_N1HW, (1, 1, 1, 1), mode="replicate")
    slopes_N2HW = F.conv2d(around, kernels_2133)
    return slopes_N2HW.square().sum(1, keepdim=True).sqrt()


def two_modalities() -> Suite:
    """Return the suite: inputs {"picture": (N, 3, H, W), "edges": (N, 1, H, W)}, both floats."""
    full = load_suite("camvid")
    splits = {split: (_stream(full.split(split)[0]),) for split in SPLITS}
    inputs = splits["train"][0].inputs
    assert not isinstance(inputs, Tensor)
    statistics = {
        name: (value.mean((0, 2, 3)).tolist(), value.std((0, 2, 3)).tolist())
        for name, value in inputs.items()
    }
    return replace(
        full,
        name="camvid, two modalities",
        tasks=fitted(full.tasks, **splits),
        encoder=partial(TwoBranches, statistics),
        width=WIDTH,
        epochs=15,
        **splits,
    )


def _stream(stream: Stream) -> Stream:
    assert isinstance(stream.inputs, Tensor)
    pixels_N3HW = stream.inputs.float()
    edges_N1HW = sobel(pixels_N3HW.mean(1, keepdim=True))
    segments_NHW = stream.targets["segments"][:, ::FACTOR, ::FACTOR].contiguous()
    missing_NHW = segments_NHW == IGNORE
    # Unlabelled pixels are things of their own: they end a segment, as in the suite.
    labels_NHW = segments_NHW.masked_fill(missing_NHW, int(segments_NHW.max()) + 1)
    distances = [torch.from_numpy(edge_distance(labels.numpy())) for labels in labels_NHW]
    return Stream(
        name=stream.name,
        inputs={
            "picture": F.avg_pool2d(pixels_N3HW, FACTOR),
            "edges": F.avg_pool2d(edges_N1HW, FACTOR),
        },
        targets={
            "segments": segments_NHW,
            "edge_distance": torch.stack(distances).masked_fill(missing_NHW, float("nan")),
        },
    )


class TwoBranches(nn.Module):
    """Features of every pixel from two modalities: a branch for each, then one trunk.

    `branches` holds the modalities' own layers; `last` is the last layer that the tasks share.
    """

    def __init__(self, statistics: dict[str, tuple[list[float], list[float]]]) -> None:
        super().__init__()
        for name, (mean_C, scale_C) in statistics.items():
            self.register_buffer(f"mean_{name}", torch.tensor(mean_C)[:, None, None])
            self.register_buffer(f"scale_{name}", torch.tensor(scale_C)[:, None, None])
        self.branches = nn.ModuleDict({"picture": _branch(3, PICTURE), "edges": _branch(1, EDGES)})
        joined = PICTURE[-1] + EDGES[-1]
        self.down = nn.Sequential(_block(joined, TRUNK, 2), _block(TRUNK, TRUNK, 1))
        self.last = _block(TRUNK + joined, WIDTH, 1)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = []
        for name, branch in self.branches.items():
            mean, scale = self.get_buffer(f"mean_{name}"), self.get_buffer(f"scale_{name}")
            found.append(branch((inputs[name] - mean) / scale))
        joined_BChw = torch.cat(found, dim=1)
        around_BChw = _sized(self.down(joined_BChw), joined_BChw)
        features_BChw = self.last(torch.cat([around_BChw, joined_BChw], dim=1))
        return {"map": _sized(features_BChw, inputs["picture"])}


def _branch(channels: int, widths: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(_block(channels, widths[0], 2), _block(widths[0], widths[1], 2))


def _block(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(after // 8, after),
        nn.ReLU(),
    )


def _sized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
