"""Three tasks on digits with resolutions and losses of their own, and a network for all of them.

- `digit`: which digit, 8 x 8, cross-entropy.
- `place`: where in a field of 16 x 16 the digit lies, squared error of two numbers.
- `clean`: the digit without its noise, 12 x 12, squared error of every pixel.

Shapes: N = rows, C = channels, H, W = height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

TASKS = ("digit", "place", "clean")
SIDES = {"digit": 8, "place": 16, "clean": 12}
TRAIN, VAL = 1000, 300
CHANNELS = 24


@dataclass(frozen=True)
class Data:
    """Pictures (N, 1, H, W) and targets of every task and split."""

    inputs: dict[str, dict[str, Tensor]]
    targets: dict[str, dict[str, Tensor]]


def data(seed: int) -> Data:
    """Return the tasks; split, places and noise are drawn by the seed."""
    random = torch.Generator().manual_seed(seed)
    found = load_digits()
    images_NHW = torch.tensor(found.images, dtype=torch.float32) / 16
    labels_N = torch.tensor(found.target)
    order = torch.randperm(len(images_NHW), generator=random)
    images, labels = images_NHW[order][:, None], labels_N[order]
    count = len(images)
    at_N2 = torch.randint(0, 9, (count, 2), generator=random)
    field = torch.zeros(count, 1, 16, 16)
    for n, (top, left) in enumerate(at_N2.tolist()):
        field[n, 0, top : top + 8, left : left + 8] = images[n, 0]
    larger = F.interpolate(images, size=12, mode="bilinear", align_corners=False)
    noisy = larger + 0.5 * torch.randn(larger.shape, generator=random)
    inputs = {"digit": images, "place": field, "clean": noisy}
    targets = {"digit": labels, "place": (at_N2 - 4) / 2.5, "clean": larger[:, 0]}
    parts = {
        "train": slice(0, TRAIN), "val": slice(TRAIN, TRAIN + VAL), "test": slice(TRAIN + VAL, None)
    }  # fmt: skip
    return Data(
        {t: {split: x[part] for split, part in parts.items()} for t, x in inputs.items()},
        {t: {split: y[part] for split, part in parts.items()} for t, y in targets.items()},
    )


class Network(nn.Module):
    """Convolutions for every resolution, a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, CHANNELS, CHANNELS, CHANNELS)
        layers: list[nn.Module] = []
        for i in range(3):
            layers += [nn.Conv2d(widths[i] + 2 * (i == 0), widths[i + 1], 3, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.digit = nn.Linear(16 * CHANNELS, 10)
        self.place = nn.Linear(2 * CHANNELS, 2)
        self.clean = nn.Conv2d(CHANNELS, 1, 3, padding=1)

    def forward(self, task: str, x_NCHW: Tensor) -> Tensor:
        side = x_NCHW.shape[-1]
        line = torch.linspace(-1, 1, side).expand(len(x_NCHW), 1, side, side)
        maps = self.encoder(torch.cat([x_NCHW, line, line.transpose(2, 3)], 1))
        if task == "digit":
            return self.digit(F.adaptive_avg_pool2d(maps, 4).flatten(1))
        if task == "place":
            return self.place(torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1))
        return self.clean(maps)[:, 0]


def loss(task: str, output: Tensor, target: Tensor) -> Tensor:
    """Return the task's mean loss."""
    if task == "digit":
        return F.cross_entropy(output, target)
    return F.mse_loss(output, target)


def scores(model: Network, made: Data, split: str, side: int | None = None) -> dict[str, float]:
    """Return accuracy of `digit` in %, and R2 in % of the two others. side: see `padded`."""
    found = {}
    with torch.no_grad():
        for task in TASKS:
            output = cropped(task, model(task, padded(made.inputs[task][split], side)))
            target = made.targets[task][split]
            if task == "digit":
                value = (output.argmax(1) == target).float().mean()
            else:
                value = 1 - (output - target).square().mean() / target.var(0).mean()
            found[task] = 100 * float(value)
    return found


def padded(x_NCHW: Tensor, side: int | None) -> Tensor:
    """Return pictures in the corner of a field of this side, as they are where it is None."""
    if side is None:
        return x_NCHW
    missing = side - x_NCHW.shape[-1]
    return F.pad(x_NCHW, [0, missing, 0, missing])


def cropped(task: str, output: Tensor) -> Tensor:
    """Return the part of the output that the target is of."""
    side = SIDES["clean"]
    return output[:, :side, :side] if task == "clean" else output


def multiply_adds(side: int) -> int:
    """Return the multiply-adds of the encoder for a picture."""
    return side * side * 9 * (3 * CHANNELS + 2 * CHANNELS * CHANNELS)
