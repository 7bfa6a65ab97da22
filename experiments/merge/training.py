"""The two backbones, how they are trained, and what they score.

Shapes: B = pictures, H, W = 32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import images
import torch
from images import TASKS, Pictures
from torch import Tensor, nn

from polytask.share import HardSharing
from polytask.suites.vit import ViT
from polytask.tasks import Multiclass, Task, TaskSet

WIDTH = 64
MEAN, SCALE = [0.45] * 3, [0.27] * 3
BASE = TaskSet([Task("cifar10", Multiclass(10))])

PRETRAIN: dict[str, Any] = {"epochs": 12, "rate": 2e-3, "batch": 128}
PROBE: dict[str, Any] = {"epochs": 20, "rate": 1e-2, "batch": 128}
TUNE: dict[str, Any] = {"epochs": 6, "rate": 5e-4, "batch": 64}
"""Heads are trained on the base's features and then fixed, as the sources' text heads are."""


class CNN(nn.Module):
    """Features (B, 64) of pictures: five convolutions with group norms, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_block(3, 32, 2), *_block(32, 64, 2), *_block(64, 64, 1),
            *_block(64, 128, 2), *_block(128, 128, 1),
        )  # fmt: skip
        self.last = nn.Linear(128, WIDTH)

    def forward(self, pictures_B3HW: Tensor) -> Tensor:
        x = (pictures_B3HW - MEAN[0]) / SCALE[0]
        features: Tensor = self.last(self.layers(x).mean((2, 3)))
        return features


def _block(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, after),
        nn.ReLU(),
    )


def backbone(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if name == "cnn":
        return CNN()
    return ViT(
        MEAN, SCALE, (images.SIDE, images.SIDE), patch=8, dim=64, depth=4, heads=4, ratio=2,
        width=WIDTH, ends="row",
    )  # fmt: skip


def model(encoder: nn.Module, tasks: TaskSet, seed: int) -> HardSharing:
    """Return the encoder (a copy) with new heads."""
    torch.manual_seed(10_000 + seed)
    return HardSharing.build(copy.deepcopy(encoder), WIDTH, tasks)


class Head(nn.Module):
    """A task's head alone, called as the whole model is."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        return {tasks[0]: self.head(features)}


def probed(
    net: HardSharing, rows: Mapping[str, tuple[Tensor, Tensor]], tasks: TaskSet, seed: int
) -> HardSharing:
    """Train the heads in place on the encoder's features, and fix them; return the model."""
    net.eval()
    for task, (x, target) in rows.items():
        with torch.no_grad():
            features = torch.cat([_row(net.encoder(part)) for part in x.split(512)])
        train(Head(net.head(task)), {task: (features, target)}, tasks, seed, **PROBE)
    net.heads.requires_grad_(False)
    return net


def _row(features: Tensor | Mapping[str, Tensor]) -> Tensor:
    return features if isinstance(features, Tensor) else features["row"]


def train(
    net: nn.Module,
    rows: Mapping[str, tuple[Tensor, Tensor]],
    tasks: TaskSet,
    seed: int,
    *,
    epochs: int,
    rate: float,
    batch: int,
    flip: bool = False,
) -> nn.Module:
    """Train in place by Adam with a cosine, one task's batch after the other; return the model.

    rows: task -> pictures in [0, 1] and encoded targets.
    """
    steps = {task: -(-len(target) // batch) for task, (_, target) in rows.items()}
    total = epochs * sum(steps.values())
    generator = torch.Generator().manual_seed(20_000 + seed)
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    net.train()
    for _ in range(epochs):
        parts = [
            (task, index)
            for task, (_, target) in rows.items()
            for index in torch.randperm(len(target), generator=generator).split(batch)
        ]
        for at in torch.randperm(len(parts), generator=generator).tolist():
            name, index = parts[at]
            x, target = (tensor[index.to(tensor.device)] for tensor in rows[name])
            if flip:
                turned = torch.rand(len(x), generator=generator).to(x.device) < 0.5
                x = torch.where(turned[:, None, None, None], x.flip(3), x)
            loss, count = tasks.named(name).kind.loss(net(x, tasks=(name,))[name], target)
            optimiser.zero_grad(set_to_none=True)
            (loss / count).sum().backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def rows_of(task: Task, pictures: Pictures, device: str) -> tuple[Tensor, Tensor]:
    """Return pictures in [0, 1] and encoded targets."""
    target = pictures.target(task.name, device) if task in TASKS else pictures.labels.to(device)
    return pictures.floats(device), task.kind.encode(target)


def predict(net: nn.Module, task: str, x: Tensor) -> Tensor:
    """Return class indices (B,)."""
    answers = []
    with torch.no_grad():
        for part in x.split(512):
            output = net(part, tasks=(task,))[task]
            answers.append(output.argmax(1) if output.shape[1] > 1 else (output[:, 0] > 0).long())
    return torch.cat(answers)


def accuracy(net: nn.Module, task: str, pictures: Pictures, device: str) -> float:
    right = predict(net.to(device), task, pictures.floats(device)) == pictures.labels.to(device)
    return float(right.double().mean())


def accuracies(
    nets: Callable[[str], nn.Module], sets: Mapping[str, images.Splits], split: str, device: str
) -> dict[str, float]:
    """Return each task's accuracy on a split."""
    return {t: accuracy(nets(t), t, sets[t][split], device) for t in TASKS.names}


def settings() -> dict[str, Any]:
    return {"pretrain": PRETRAIN, "probe": PROBE, "tune": TUNE, "width": WIDTH}
