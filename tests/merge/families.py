"""Small families of models for the tests of methods with data: CNN, ViT, MLP, shared models."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from polytask.merge.family import Family
from polytask.share import HardSharing
from polytask.suites.vit import ViT
from polytask.tasks import Binary, Multiclass, Multilabel, Regression, Task, TaskSet

TASKS = TaskSet([Task("a", Multiclass(3)), Task("b", Binary()), Task("c", Multilabel(2))])
OUTPUTS = {"a": 3, "b": 1, "c": 2}
ROWS = 24


class CNN(nn.Module):
    """Pictures (B, 3, 8, 8) -> logits; batch norm inside, so there are buffers."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, stride=2),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 6, 3, groups=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(24, 5),
            nn.Tanh(),
        )
        self.head = nn.Linear(5, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class MLP(nn.Module):
    """Vectors (B, 4) -> a mapping that holds the output of one task."""

    def __init__(self, task: str, outputs: int) -> None:
        super().__init__()
        self.task = task
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        self.head = nn.Linear(5, outputs)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {self.task: self.head(self.body(x))}


def moved(model: nn.Module, seed: int, by: float = 0.3) -> nn.Module:
    """Return a copy with every float tensor moved at random; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor += by * (drawn if name.endswith("var") else 2 * drawn - 1)
    return model


def cnn() -> Family:
    torch.manual_seed(0)
    base = CNN(7).double()
    tuned = {}
    for i, task in enumerate(TASKS.names):
        whole = CNN(OUTPUTS[task]).double()
        whole.body = copy.deepcopy(base.body)
        tuned[task] = moved(whole, i)
    return Family(base, tuned, TASKS)


def mlp(tasks: TaskSet = TASKS, dtype: torch.dtype = torch.float64) -> Family:
    torch.manual_seed(1)
    base = MLP("none", 7).double()
    tuned = {}
    for i, task in enumerate(tasks):
        whole = MLP(task.name, OUTPUTS.get(task.name, 1)).double()
        whole.body = copy.deepcopy(base.body)
        tuned[task.name] = moved(whole, i).to(dtype)
    return Family(base.to(dtype), tuned, tasks)


def vit() -> Family:
    torch.manual_seed(2)
    encoder = ViT(
        [0.5] * 3, [0.5] * 3, (8, 8), patch=4, dim=8, depth=2, heads=2, ratio=2, width=5, ends="row"
    )
    base = HardSharing.build(encoder, 5, TaskSet([Task("first", Multiclass(7))])).double()
    tuned = {}
    for i, task in enumerate(TASKS):
        own = HardSharing.build(copy.deepcopy(encoder), 5, TaskSet([task])).double()
        own.encoder = moved(own.encoder, i, 0.1)
        own.encoder.mean_C11, own.encoder.scale_C11 = encoder.mean_C11, encoder.scale_C11
        tuned[task.name] = own
    return Family(base, tuned, TASKS)


FAMILIES = {"cnn": cnn, "vit": vit, "mlp": mlp}


def inputs(kind: str, rows: int = ROWS, seed: int = 3) -> dict[str, Tensor]:
    """Return inputs of every task for a family, float64 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4,) if kind == "mlp" else (3, 8, 8)
    return {
        t: torch.rand(rows, *shape, generator=generator, dtype=torch.float64) for t in TASKS.names
    }


def targets(rows: int = ROWS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "a": torch.randint(3, (rows,), generator=generator),
        "b": torch.randint(2, (rows,), generator=generator).double(),
        "c": torch.randint(2, (rows, 2), generator=generator).double(),
    }


WITH_REGRESSION = TaskSet([Task("a", Multiclass(3)), Task("price", Regression())])
