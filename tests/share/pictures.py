"""What the tests of architectures for pictures share: a staged encoder, tasks, models."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.parsing import parse
from polytask.share import SharedModel
from polytask.suites import About, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.dense_encoders import UNet
from polytask.suites.encoders import ConvNet
from polytask.suites.vit import ViT
from polytask.tasks import (
    Binary,
    DenseLabels,
    DenseRegression,
    Multiclass,
    Regression,
    Task,
    TaskSet,
)

SIZE = (6, 10)
"""No multiple of three, so that thirds are rounded."""

SETTINGS = {
    "medusa": ("", "reduction=2"),
    "task-expert": ("", "experts=1,memory=5"),
    "mtan": ("", "reduction=3"),
    "m3vit": ("", "experts=3,k=3,balance=0", "experts=5,k=2,ratio=2"),
}
"""Settings every architecture for pictures is tried with; the first is its default."""

RECIPES = [f"{name}:{text}" if text else name for name, texts in SETTINGS.items() for text in texts]


class Steps(nn.Module):
    """A step down to a third and one up; features of pixels ("map") and of pictures ("row")."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.stage_channels = ((8, 8), (16, 12), (20, 8))
        self.scales = (1, 2)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=stride, padding=1)
            for i, o, stride in ((2, 8, 1), (8, 8, 1), (8, 16, 3), (16, 12, 1), (20, 8, 1))
        )

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return self.finish(self.stages(inputs)[-1][1], inputs.shape[-2:])

    def stages(self, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        before = self.convolutions[0](inputs).relu()
        seen = [(before, self.convolutions[1](before).relu())]
        before = self.convolutions[2](seen[0][1]).relu()
        seen.append((before, self.convolutions[3](before).tanh()))
        up = functional.interpolate(seen[1][1], size=inputs.shape[-2:], mode="nearest")
        before = torch.cat([up, seen[0][1]], 1)
        return [*seen, (before, self.convolutions[4](before).relu())]

    def finish(self, last: Tensor, size) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        assert tuple(size) == SIZE
        return {"map": last * 2, "row": last.mean((2, 3))}


class Patches(ViT):
    """A transformer of five blocks with features of pixels and of pictures."""

    def __init__(self) -> None:
        super().__init__((0.1, 0.2), (1.0, 2.0), SIZE, patch=2, dim=12, depth=5, heads=3, width=8)
        self.row = nn.Linear(12, 8)

    def end(self, tokens_BND: Tensor, size) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        return {**super().end(tokens_BND, size), "row": self.row(tokens_BND.square().mean(1))}


def encoder(recipe: str) -> nn.Module:
    """Return an encoder of the kind the recipe's sharing needs."""
    return Patches() if parse(recipe).stands_on == "tokens" else Steps()


def tasks(number: int = 4) -> TaskSet:
    """Return tasks of pixels and of pictures, in turn."""
    kinds = (DenseLabels(3), Binary(), DenseRegression(), Multiclass(4))
    return TaskSet(Task(f"t{i}", kinds[i % 4]) for i in range(number))


def make(recipe: str, given: int | TaskSet = 4, seed: int = 0) -> SharedModel:
    """Return a model of the recipe, float64, as `build` makes it."""
    share = parse(recipe).share
    torch.manual_seed(seed)
    names = tasks(given) if isinstance(given, int) else given
    settings = {n: v for n, v in share.settings if n != "on"}
    return share.method.load().build(encoder(recipe), 8, names, **settings).double()


def pictures(number: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 2, *SIZE, generator=generator, dtype=torch.float64)


def suite(of: str) -> Suite:
    """Return a suite of blobs: where they are ("pixels"), or how many and how bright ("pictures").

    Its encoders are those of camvid and of digits2, but small.
    """
    draw = torch.Generator().manual_seed(0)
    dense = of == "pixels"
    kinds = (DenseLabels(2), DenseRegression()) if dense else (Multiclass(2), Regression())

    def stream(number: int) -> Stream:
        blobs = torch.randn(number, 1, 12, 16, generator=draw)
        blobs = functional.avg_pool2d(blobs, 3, 1, 1)
        noisy = blobs + 0.05 * torch.randn(blobs.shape, generator=draw)
        inside, height = (blobs[:, 0] > 0).long(), blobs[:, 0]
        if not dense:
            inside, height = (blobs.mean((1, 2, 3)) > 0).long(), blobs[:, 0, 4:8, 4:8].mean((1, 2))
        return Stream("blobs", noisy, {"inside": inside, "height": height})

    return make_suite(
        name="blobs",
        tasks=TaskSet(Task(n, k) for n, k in zip(("inside", "height"), kinds, strict=True)),
        train=[stream(96)],
        val=[stream(32)],
        test=[stream(16)],
        encoder=lambda: UNet((0.0,), (1.0,), (8, 16)) if dense else ConvNet(1, 12, 16, maps=(8, 8)),
        width=8 if dense else 128,
        tokens=lambda: _vit("map", 8) if dense else _vit("row", 128),
        about=About("", "", "", "", ""),
        batch_size=16,
        epochs=2,
    )


def _vit(ends: Literal["map", "row"], width: int) -> ViT:
    return ViT((0.0,), (1.0,), (12, 16), patch=4, dim=24, depth=2, heads=2, width=width, ends=ends)
