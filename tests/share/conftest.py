"""What the tests of architectures share: an encoder, tasks, models, and a count of operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from polytask.parsing import parse
from polytask.share import SharedModel
from polytask.tasks import Binary, Task, TaskSet

INPUTS, WIDTH = 5, 6

SETTINGS = {
    "mmoe": ("", "experts=3,widths=7/4,towers=5/3"),
    "mmoeex": ("", "experts=6,restricted=0.7", "kind=exclusion,experts=5,towers=4"),
    "cgc": ("", "shared=2,own=3,widths=7/4,towers=5"),
    "dselect-k": (
        "",
        "experts=5,k=3,widths=7/4,gamma=0.5",
        "per_example=true",
        "per_example=true,k=1,experts=3",
        "k=1",
    ),
    "cross-stitch": ("", "widths=9/8/12,own=0.6,towers=3"),
    "sluice": ("", "layers=3,layer_width=12,own=0.6,towers=6", "layers=1"),
    "aitm": ("", "widths=7/4,towers=5"),
    "home": ("", "shared=2,per_category=3,own=2,expert_width=7,rank=1,towers=5"),
    "ple": ("", "levels=1", "levels=3,shared=2,own=2,widths=7/4", "levels=3,widths=5"),
}
"""Settings every architecture is tried with; the first is its default."""

RECIPES = [f"{name}:{text}" if text else name for name, texts in SETTINGS.items() for text in texts]


class Encoder(nn.Module):
    """Rows of 5 numbers -> 6 features."""

    def __init__(self) -> None:
        super().__init__()
        self.width = WIDTH
        self.layer = nn.Linear(INPUTS, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).tanh()


def binary(number: int) -> TaskSet:
    return TaskSet(Task(f"t{i}", Binary()) for i in range(number))


def make(recipe: str, tasks: int | TaskSet = 3, seed: int = 0) -> SharedModel:
    """Return a model of the recipe, float64, as `build` makes it."""
    share = parse(recipe).share
    torch.manual_seed(seed)
    given = binary(tasks) if isinstance(tasks, int) else tasks
    model = share.method.load().build(Encoder(), WIDTH, given, **dict(share.settings))
    return model.double()


def rows(number: int = 9, seed: int = 1) -> Tensor:
    return torch.randn(
        number, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


class Operators(TorchDispatchMode):
    """Counts every operator of a forward pass; views of the same numbers are free."""

    VIEWS = frozenset(
        {"t", "transpose", "view", "_unsafe_view", "expand", "unbind", "detach", "slice", "select",
         "unsqueeze", "permute", "split", "split_with_sizes", "alias", "squeeze"}
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if name not in self.VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def count(run: Callable[[], object]) -> int:
    with Operators() as operators:
        run()
    return len(operators.names)


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)
