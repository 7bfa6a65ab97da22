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
    "stem": ("", "levels=2,shared=2,own=2,widths=7/4,gate_widths=none,towers=5", "levels=3,own=2"),
    "apem": ("", "patterns=3,pattern_width=5,reduction=1,widths=9/6,towers=5"),
    "dtrn": ("", "embedding=5,reduction=1,widths=9/6,towers=5"),
    "sparse-moe": (
        "",
        "experts=9,k=2,layers=2,hidden=7,towers=4",
        "experts=3,k=3,balance=none",
        "experts=16,k=3,balance=global",
    ),
    "task-gating": (
        "",
        "form=gates,experts=9,k=2,layers=2,hidden=7,towers=4",
        "form=embedding,experts=16,k=2",
        "form=embedding,experts=5,k=2,layers=2,embedding=3,balance=global",
        "form=fixed,experts=2,layers=2",
    ),
    "skillnet": ("", "layers=3,hidden=7,towers=4"),
    "learning-to-branch": ("", "widths=9/8/12,towers=3"),
    "ple": ("", "levels=1", "levels=3,shared=2,own=2,widths=7/4", "levels=3,widths=5"),
}
"""Settings every architecture is tried with; the first is its default."""

SEARCHES = ("learning-to-branch",)
"""Those that draw while they train: `make` gives them in evaluation mode, where they do not."""

APART = ("hard", "esmm", "dsmtl", "multimodn")
"""Those that are no trunks, with tests of their own."""

RECIPES = [f"{name}:{text}" if text else name for name, texts in SETTINGS.items() for text in texts]


class Encoder(nn.Module):
    """Rows of 5 numbers -> 6 features, which are two fields."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.fields = WIDTH, 2
        self.layer = nn.Linear(INPUTS, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).tanh()


class Columns(nn.Module):
    """Rows of 5 numbers -> which of 9 vectors each field takes, and times what.

    The first three numbers are numbers, the last two stand for one of three categories each.
    """

    width = INPUTS

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        code = (inputs[:, 3:] > -0.5).long() + (inputs[:, 3:] > 0.5).long()
        numbers = torch.arange(3, device=inputs.device).expand(inputs.shape[0], -1)
        index = torch.cat([numbers, code + torch.tensor([3, 6], device=inputs.device)], 1)
        return {"index": index, "row": torch.cat([inputs[:, :3], torch.ones_like(code)], 1)}


class FieldEncoder(nn.Module):
    """Rows of 5 numbers -> 5 fields of 3 features."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.fields = 3 * INPUTS, INPUTS
        self.columns, self.table = Columns(), nn.Embedding(9, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        row = self.columns(inputs)
        return (self.table(row["index"]) * row["row"][..., None]).flatten(1)


def encoder_for(recipe: str) -> nn.Module:
    """Return the encoder that this architecture is tried on."""
    return FieldEncoder() if recipe.startswith("stem") else Encoder()


def binary(number: int) -> TaskSet:
    return TaskSet(Task(f"t{i}", Binary()) for i in range(number))


def make(recipe: str, tasks: int | TaskSet = 3, seed: int = 0) -> SharedModel:
    """Return a model of the recipe, float64, as `build` makes it."""
    share = parse(recipe).share
    torch.manual_seed(seed)
    given = binary(tasks) if isinstance(tasks, int) else tasks
    encoder = encoder_for(recipe)
    model = share.method.load().build(encoder, encoder.width, given, **dict(share.settings))
    return model.double().eval() if recipe.startswith(SEARCHES) else model.double()


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
